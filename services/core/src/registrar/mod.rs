//! Jobs that no worker has taken get their record within a second.
//!
//! Each stream is read on from the last sequence seen, by batched direct get, several times a
//! second. What a worker takes at once is never read at all; what lies there for a moment is
//! looked up, and gets its record if it has none. Start, gap and reconnect are the same case.

mod message;
mod register;

pub use message::{Lying, lying};
pub use register::{Registered, copy_to_dead_letters, delete, register, states_before};

use crate::service::{Stores, skip_corrupt};
use futures_util::future::try_join_all;
use message::KnownJobs;
use register::register_new;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, Stored};
use virtbus_wire::{Class, JobId, Record, Timestamp};

/// How often the streams are read on.
const TICK: Duration = Duration::from_millis(200);
/// How long a message may lie before its record is made here: a worker that is free is faster.
const PATIENCE: Duration = Duration::from_millis(300);
/// Records made at the same time.
const AT_ONCE: usize = 64;

/// Reads the streams until `stop`. `caught_up` gets the time up to which all that was published
/// has a record.
pub async fn run(
    stores: Stores,
    caught_up: watch::Sender<Option<Timestamp>>,
    stop: CancellationToken,
) {
    let mut tails = Class::ALL.map(|class| Tail::new(class.stream()));
    let mut tick = time::interval(TICK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let began = stores.bus.now();
        let mut all_read = true;
        for tail in &mut tails {
            match tail.read_on(&stores, &stop).await {
                Ok(()) => {}
                Err(error) => {
                    all_read = false;
                    tracing::warn!(%error, stream = tail.stream, "a stream can't be read on");
                }
            }
        }
        if all_read {
            // What is younger than this may still have been left to the workers.
            let millis = i64::try_from(2 * PATIENCE.as_millis()).unwrap_or(i64::MAX);
            let until = Timestamp::from_millis(began.as_millis().saturating_sub(millis));
            caught_up.send_replace(Some(until));
        }
    }
}

/// The place in one stream up to which every message has a record.
struct Tail {
    stream: &'static str,
    next: u64,
    clock: ServerClock,
}

impl Tail {
    fn new(stream: &'static str) -> Self {
        Self {
            stream,
            next: 1,
            clock: ServerClock::default(),
        }
    }

    async fn read_on(&mut self, stores: &Stores, stop: &CancellationToken) -> Result<(), BusError> {
        while !stop.is_cancelled() {
            let page = stores.bus.browse(self.stream, ">", self.next).await?;
            let now = stores.bus.now();
            page.items
                .iter()
                .for_each(|item| self.clock.saw(item.time, now));
            let old = |item: &&Stored| self.clock.age(item.time, now) >= PATIENCE;
            let ripe: Vec<&Stored> = page.items.iter().take_while(old).collect();
            let all_ripe = ripe.len() == page.items.len();
            let last = ripe.last().map(|item| item.seq);
            register_all(stores, &ripe).await?;
            self.next = last.map_or(self.next, |seq| seq + 1);
            if page.next.is_none() || !all_ripe {
                return Ok(());
            }
        }
        Ok(())
    }
}

async fn register_all(stores: &Stores, messages: &[&Stored]) -> Result<(), BusError> {
    let now = stores.bus.now();
    let found: Vec<Lying<'_>> = messages
        .iter()
        .filter_map(|item| lying(item, now))
        .collect();
    let ids: Vec<&JobId> = found.iter().map(Lying::id).collect();
    let known = KnownJobs::read(stores, &ids).await?;
    let mut missing = Vec::new();
    let mut served = BTreeMap::new();
    for lying in found {
        if known.have(&lying) {
            continue;
        }
        if let Some(queue) = lying.queue()
            && !served.contains_key(queue)
        {
            served.insert(queue.clone(), stores.catalogue.knows(queue).await?);
        }
        missing.push(lying);
    }
    while !missing.is_empty() {
        let rest = missing.split_off(missing.len().min(AT_ONCE));
        let served = &served;
        let known = &known;
        let made = missing.into_iter().map(|lying| async move {
            let made = if known.holds(lying.id()) {
                register(stores, lying).await
            } else {
                register_new(stores, lying, served).await
            };
            skip_corrupt(made)
        });
        try_join_all(made).await?;
        missing = rest;
    }
    Ok(())
}

/// The server's clock, as far as the stamps of its messages tell: how long a message has lain
/// must not depend on the two hosts' clocks being equal.
#[derive(Debug, Default)]
struct ServerClock {
    ahead_millis: Option<i64>,
}

impl ServerClock {
    fn saw(&mut self, stamp: Timestamp, now: Timestamp) {
        let ahead = stamp.as_millis() - now.as_millis();
        self.ahead_millis = Some(self.ahead_millis.map_or(ahead, |before| before.max(ahead)));
    }

    fn age(&self, stamp: Timestamp, now: Timestamp) -> Duration {
        let ahead = self.ahead_millis.unwrap_or(0);
        Timestamp::from_millis(now.as_millis() + ahead).since(stamp)
    }
}

/// The records of these jobs as any replica has them, by id.
pub(crate) type Records = BTreeMap<JobId, Record>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_message_does_not_depend_on_our_own_clock() {
        let at = |millis: i64| Timestamp::from_millis(1_795_000_000_000 + millis);
        for skew in [-5_000, 0, 5_000] {
            let mut clock = ServerClock::default();
            clock.saw(at(0), at(10 + skew));
            assert!(clock.age(at(0), at(10 + skew)) < PATIENCE);
            assert!(clock.age(at(0), at(310 + skew)) >= PATIENCE);
        }
    }

    #[test]
    fn an_old_message_tells_little_of_the_servers_clock() {
        let at = |millis: i64| Timestamp::from_millis(1_795_000_000_000 + millis);
        let mut clock = ServerClock::default();
        clock.saw(at(0), at(60_000));
        clock.saw(at(59_990), at(60_000));
        assert_eq!(clock.age(at(0), at(60_000)), Duration::from_millis(59_990));
    }
}
