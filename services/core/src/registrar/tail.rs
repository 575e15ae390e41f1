//! One stream, read on from the last sequence seen.

use super::{
    PATIENCE, REST_MAX,
    message::{KnownJobs, Lying, lying},
    register::{register, register_new},
};
use crate::service::{Stores, per_job};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, Page, Stored};
use virtbus_wire::{JobId, Queue, Timestamp};

/// Records that are being made at the same time, of one stream. With fewer the server waits for
/// us, with more it gets no faster.
const AT_ONCE: usize = 256;

/// The place in one stream up to which every message has a record.
pub(super) struct Tail {
    stream: &'static str,
    next: watch::Sender<u64>,
    clock: ServerClock,
}

impl Tail {
    pub(super) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            next: watch::Sender::new(1),
            clock: ServerClock::default(),
        }
    }

    pub(super) fn stream(&self) -> &'static str {
        self.stream
    }

    /// The sequence before which every message has a record, as it grows.
    pub(super) fn place(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// Makes the records of all that has lain there long enough. While those of one page are
    /// made, the next one is read. Says how long to rest until the next look.
    pub(super) async fn read_on(
        &mut self,
        stores: &Stores,
        stop: &CancellationToken,
    ) -> Result<Duration, BusError> {
        let next = *self.next.borrow();
        let mut page = stores.bus.browse(self.stream, ">", next).await?;
        while !stop.is_cancelled() {
            let now = stores.bus.now();
            page.items
                .iter()
                .for_each(|item| self.clock.saw(item.time, now));
            let old = |item: &&Stored| self.clock.age(item.time, now) >= PATIENCE;
            let ripe: Vec<&Stored> = page.items.iter().take_while(old).collect();
            let all_ripe = ripe.len() == page.items.len();
            let last = ripe.last().map(|item| item.seq);
            let unripe = page.items.get(ripe.len());
            let rest = unripe.map_or(REST_MAX, |item| {
                PATIENCE.saturating_sub(self.clock.age(item.time, now))
            });
            let from = page.next.filter(|_| all_ripe);
            let (registered, ahead) = tokio::join!(
                register_all(stores, &ripe),
                read_ahead(stores, self.stream, from)
            );
            registered?;
            if let Some(last) = last {
                self.next.send_replace(last + 1);
            }
            match ahead? {
                Some(next) => page = next,
                None => return Ok(rest),
            }
        }
        Ok(REST_MAX)
    }
}

async fn read_ahead(
    stores: &Stores,
    stream: &str,
    from: Option<u64>,
) -> Result<Option<Page<Stored>>, BusError> {
    match from {
        Some(seq) => stores.bus.browse(stream, ">", seq).await.map(Some),
        None => Ok(None),
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
    let missing: Vec<Lying<'_>> = found.into_iter().filter(|one| !known.have(one)).collect();
    let served = &served(stores, &missing).await?;
    let known = &known;
    let made = missing.into_iter().map(|lying| async move {
        let made = if known.holds(lying.id()) {
            register(stores, lying).await
        } else {
            register_new(stores, lying, served).await
        };
        // One that can't be registered must not keep the others waiting. The sweep comes back
        // to it, and says so where people look.
        per_job(made).map(|_| ())
    });
    let made: Vec<_> = made.collect();
    stream::iter(made)
        .buffer_unordered(AT_ONCE)
        .try_for_each(|()| std::future::ready(Ok(())))
        .await
}

/// Which of the queues of these messages somebody registered.
async fn served(
    stores: &Stores,
    messages: &[Lying<'_>],
) -> Result<BTreeMap<Queue, bool>, BusError> {
    let queues: BTreeSet<Queue> = messages.iter().filter_map(Lying::queue).cloned().collect();
    let looks = queues.into_iter().map(|queue| async move {
        let is_known = stores.catalogue.knows(&queue).await?;
        Ok((queue, is_known))
    });
    let looks: Vec<_> = looks.collect();
    stream::iter(looks)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
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
