//! What a claim does before its work: older claims' leftovers, the locks, and what became of the
//! older claims themselves.

use crate::{
    attempt::{Attempt, Ending},
    perform::{Done, Perform, Stop},
    stop::Why,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use virtbus_bus::{
    WriteError,
    locks::{Granted, LockSet},
};
use virtbus_wire::{
    Code, JobError, JobState,
    protocol::{arrival::expired_error, gate::has_expired},
    state::{Phase, WaitReason},
};

/// How often the set of locks may change under a job that takes them.
const LOCK_ROUNDS_MAX: u32 = 5;

/// How often a job that was cancelled tries for its locks, to look for an effect.
const GIVE_UP_TRIES: u32 = 60;
/// The wait between two of those.
const GIVE_UP_AGAIN: Duration = Duration::from_millis(500);

/// How long a claim waits in its place until it's known what came of the earlier ones.
const EARLIER_WAIT: Duration = Duration::from_secs(30);
/// The wait between two looks at that.
const EARLIER_AGAIN: Duration = Duration::from_millis(500);

impl<P: Perform> Attempt<P> {
    /// Everything before the work: clean up, take locks, find an effect, begin the attempt.
    pub(crate) async fn prepare(&self, held: &mut LockSet) -> Result<(), Ending> {
        let record = &self.job.record;
        let phase = record.state.hold().map(|hold| hold.phase);
        if phase.is_some_and(|phase| phase >= Phase::Work) {
            // Its work began with the first claim, and it needs no locks.
            return Ok(());
        }
        self.clean_and_lock(held).await?;
        if record.claim > 1
            && let Some(done) = self.settle_earlier().await?
        {
            return Err(Ending::Found(done));
        }
        if self.is_cancelling() {
            return Err(Ending::GaveUp);
        }
        if record.tries_left == 0 {
            return Err(Ending::WorkerLost);
        }
        // Its claim may have waited for this one since it was looked at.
        if has_expired(record, self.worker.bus.now()) {
            return Err(Ending::Failed(expired_error()));
        }
        self.keeper
            .enter(Phase::Work)
            .await
            .map_err(|stop| self.stopped(stop))
    }

    /// Removes what older claims left, and takes the locks. A claim that can't may not fail of it
    /// while an older one may have had its effect.
    async fn clean_and_lock(&self, held: &mut LockSet) -> Result<(), Ending> {
        let is_first = self.job.record.claim <= 1;
        let until = Instant::now() + EARLIER_WAIT;
        loop {
            let cleaned = match is_first {
                true => Ok(()),
                false => self.worker.perform.clean(&self.job).await,
            };
            let locked = match cleaned {
                Ok(()) => self.take_locks(held).await,
                Err(error) => Err(Ending::Failed(error)),
            };
            match locked {
                Err(Ending::Failed(error)) if !is_first && error.retryable => {
                    self.look_again(&error, until).await?;
                }
                other => return other,
            }
        }
    }

    /// What came of the claims until now. Only with the locks held: without them an effect might be
    /// somebody else's. As long as that can't be said, no final state may be written; nor may the
    /// job be parked, since one that waits can be cancelled at once.
    pub(crate) async fn settle_earlier(&self) -> Result<Option<Done>, Ending> {
        let until = Instant::now() + EARLIER_WAIT;
        loop {
            let error = match self.worker.perform.recover(&self.job).await {
                Ok(found) => return Ok(found),
                Err(Stop::Earlier(error)) => error,
                Err(Stop::Failed(error)) if error.retryable => error,
                Err(stop) => return Err(self.stopped(stop)),
            };
            self.look_again(&error, until).await?;
        }
    }

    /// Waits until earlier claims can be asked for again. After a while the claim is given up.
    async fn look_again(&self, error: &JobError, until: Instant) -> Result<(), Ending> {
        let why = self.stop.why();
        if why == Some(Why::Lost) {
            return Err(Ending::Lost);
        }
        let is_told = !matches!(why, None | Some(Why::Cancel));
        if is_told || Instant::now() >= until {
            tracing::warn!(job = %self.job.id, %error, "earlier claims are looked at later");
            return Err(Ending::Open);
        }
        sleep(EARLIER_AGAIN).await;
        Ok(())
    }

    /// Whether it was claimed to be given up.
    fn is_cancelling(&self) -> bool {
        matches!(self.job.record.state, JobState::Cancelling(_))
    }

    async fn take_locks(&self, held: &mut LockSet) -> Result<(), Ending> {
        let holder = self.holder();
        let ticket = self.ticket();
        let mut waited = self.job.record.ticket.is_some();
        for _ in 0..LOCK_ROUNDS_MAX {
            let set = self.lock_set().await?;
            let granted = if self.is_cancelling() {
                self.take_to_give_up(&set).await
            } else {
                self.worker.locks.take(&set, &holder, ticket, waited).await
            };
            match granted.map_err(|error| bus_failed(&error))? {
                Granted::All => {}
                Granted::Lost => return Err(Ending::Lost),
                Granted::None { .. } | Granted::Full { .. } if self.is_cancelling() => {
                    tracing::warn!(job = %self.job.id, "others have its locks: looked at later");
                    return Err(Ending::Open);
                }
                Granted::Full { running, limit } => {
                    let on = WaitReason::Tenant { running, limit };
                    return Err(Ending::Wait(on, Some(ticket)));
                }
                Granted::None { resource, before } => {
                    let since = before.as_ref().and_then(|before| before.since);
                    let holder = before.map(|before| format!("job.{}", before.job));
                    let on = WaitReason::Lock {
                        resource,
                        holder,
                        since,
                    };
                    return Err(Ending::Wait(on, Some(ticket)));
                }
            }
            *held = set;
            if self.lock_set().await? == *held {
                return Ok(());
            }
            // What the task needs changed before we had it: begin anew.
            let given_back = self.worker.locks.release(held.keys(), &holder).await;
            given_back.map_err(|error| bus_failed(&error))?;
            held.clear();
            waited = true;
        }
        Err(Ending::Failed(JobError::new(
            Code::DiskBusy,
            "what the job needs changes all the time",
        )))
    }

    /// The locks of a job that will only be looked at and given up. It can't be parked, so it
    /// tries for a while, and before all who wait: an older claim of it had the locks.
    async fn take_to_give_up(&self, set: &LockSet) -> Result<Granted, WriteError> {
        let holder = self.holder();
        let mut granted = self.worker.locks.try_take(set, &holder).await?;
        for _ in 1..GIVE_UP_TRIES {
            let is_refused = matches!(granted, Granted::None { .. } | Granted::Full { .. });
            if !is_refused || self.stop.why().is_some() {
                break;
            }
            sleep(GIVE_UP_AGAIN).await;
            granted = self.worker.locks.try_take(set, &holder).await?;
        }
        Ok(granted)
    }

    async fn lock_set(&self) -> Result<LockSet, Ending> {
        let set = self.worker.lock_set(&self.job).await;
        set.map_err(Ending::Failed)
    }
}

fn bus_failed(error: &WriteError) -> Ending {
    tracing::warn!(%error, "locks could not be taken");
    Ending::Failed(JobError::internal("the messaging server did not answer"))
}
