//! Waking who waited long enough, and mending what crashes and lost messages left.
//!
//! Events of the bucket `jobs` keep an `index::Index` of all jobs that aren't over; it says
//! whom to look at and when. A sweep browses the streams and looks at whose message is missing,
//! and at messages without a purpose. Every decision is one of the pure rules of
//! `virtbus_wire::protocol::reconcile`, on records read anew, and every act a compare-and-set.

mod exhausted;
mod follow;
mod held;
mod index;
mod keep;
mod lines;
mod look;
mod refill;
mod sweep;
mod uses;

pub(crate) use uses::is_used;

use crate::service::Stores;
use exhausted::Notices;
use follow::Follower;
use index::Doing;
use look::Known;
use std::time::Duration;
use sweep::Sweep;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use virtbus_bus::BusError;
use virtbus_wire::{JobId, Timestamp};

/// The least time between two sweeps.
const SWEEP: Duration = Duration::from_secs(5);
/// A sweep takes at most one part in this many of the time.
const SWEEP_SHARE: u32 = 10;
/// The longest rest after one, however long it took: it may have met a slow server.
const SWEEP_REST_MAX: Duration = Duration::from_secs(60);
/// How often the notices of messages at `max_deliver` are read.
const NOTICES: Duration = Duration::from_secs(1);
/// How often it's looked whether the use of a disk that jobs wait for is over.
const USES: Duration = Duration::from_millis(500);
/// The wait after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Reconciles until `stop`. `registered` is the time up to which all that was published has a
/// record.
pub async fn run(
    stores: Stores,
    registered: watch::Receiver<Option<Timestamp>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = reconcile(&stores, &registered) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "reconciling begins anew");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = time::sleep(AGAIN) => {}
        }
    }
}

/// Until something goes wrong. Dropping this at any point is safe: each act is whole by itself,
/// or is done again by the next sweep.
async fn reconcile(
    stores: &Stores,
    registered: &watch::Receiver<Option<Timestamp>>,
) -> Result<(), BusError> {
    let mut follower = Follower::start(stores).await?;
    let mut sweep = Sweep::default();
    let (mut next_sweep, mut swept) = (Instant::now(), Duration::ZERO);
    let mut notices = Notices::default();
    let mut next_notices = Instant::now();
    let mut next_uses = Instant::now();
    loop {
        let due = follower.take_due(stores.bus.now());
        let known = Known {
            registered: *registered.borrow(),
            ..Known::default()
        };
        // Those that wait for a lock one after the other: they would get in each other's way.
        let waits_for_lock = |job: &JobId| {
            let note = follower.index.note(job);
            note.is_some_and(|note| matches!(note.doing, Doing::ForLock(_)))
        };
        let (in_line, others): (Vec<JobId>, Vec<JobId>) = due.into_iter().partition(waits_for_lock);
        look::look_at_all(stores, others, known).await?;
        for job in in_line {
            look::look(stores, &job, known).await?;
        }
        for lock in follower.index.lines.take_due() {
            refill::refill(stores, &mut follower.index, &lock).await?;
        }
        let next_time = follower.index.next_time();
        let wake = next_time.map_or(SWEEP, |time| time.since(stores.bus.now()).min(SWEEP));
        // The regular looks come first: a flood of events must not keep them off.
        tokio::select! {
            biased;
            () = time::sleep_until(next_uses) => {
                for job in uses::over(stores, &follower.index).await? {
                    look::look(stores, &job, Known::default()).await?;
                }
                next_uses = Instant::now() + USES;
            }
            () = time::sleep_until(next_notices) => {
                notices.see_to_new(stores).await?;
                next_notices = Instant::now() + NOTICES;
            }
            () = time::sleep_until(next_sweep) => {
                let began = Instant::now();
                follower.take_in_what_came(stores).await?;
                let is_over = sweep.step(stores, &mut follower, known.registered).await?;
                swept += began.elapsed();
                if is_over {
                    next_sweep = Instant::now() + rest(std::mem::take(&mut swept));
                }
            }
            taken = follower.next(stores) => taken?,
            () = time::sleep(wake) => {}
        }
    }
}

/// The time between a sweep that took this long and the next.
fn rest(took: Duration) -> Duration {
    (took * SWEEP_SHARE).clamp(SWEEP, SWEEP_REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_met_a_slow_server_is_followed_by_another_soon() {
        let seconds = Duration::from_secs;
        assert_eq!(rest(seconds(0)), SWEEP);
        assert_eq!(rest(seconds(2)), seconds(20));
        assert_eq!(rest(seconds(90)), SWEEP_REST_MAX);
    }
}
