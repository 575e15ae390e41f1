//! Jobs that were read ahead, since they can only go to the end of a long line: whoever is behind
//! them on the queue doesn't wait until all of them stand in it.

use crate::{perform::Perform, worker::Worker};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use virtbus_bus::{Delivery, limits::tenant_lock};
use virtbus_wire::{Envelope, protocol::delivery::GENERATION_HEADER, task::Task};

/// How many are put in line at once.
const AT_ONCE_MAX: usize = 64;
/// How many are kept here. The server gives out 100,000 messages of a queue that nobody has
/// acknowledged; two workers may have as many.
const SHELF_MAX: usize = 50_000;
/// How much room they may take, in bytes.
const SHELF_BYTES_MAX: usize = 64 << 20;
/// What one takes beside its payload, in bytes, about: names, headers, times.
const EACH_BYTES: usize = 512;

/// Messages that are ours and wait to be put in line, in the order they came.
#[derive(Debug)]
pub(crate) struct Ahead {
    shelf: VecDeque<Shelved>,
    bytes: usize,
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shelved {
    delivery: Delivery,
    /// When the server last heard that it's ours.
    kept: Instant,
}

impl Ahead {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            shelf: VecDeque::new(),
            bytes: 0,
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
        }
    }

    /// A place for one that only goes to the end of a line; none when enough do just now.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// How many there are places for.
    pub(crate) fn places(&self) -> u32 {
        u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX)
    }

    /// How many more may be kept here.
    pub(crate) fn room(&self) -> u32 {
        if self.bytes >= SHELF_BYTES_MAX {
            return 0;
        }
        u32::try_from(SHELF_MAX.saturating_sub(self.shelf.len())).unwrap_or(u32::MAX)
    }

    pub(crate) fn put(&mut self, delivery: Delivery, now: Instant) {
        self.bytes += size_of(&delivery);
        self.shelf.push_back(Shelved {
            delivery,
            kept: now,
        });
    }

    /// The next to be put in line, with its place.
    pub(crate) fn next(&mut self) -> Option<(Delivery, OwnedSemaphorePermit)> {
        let place = self.place()?;
        let Shelved { delivery, .. } = self.shelf.pop_front()?;
        self.bytes -= size_of(&delivery);
        Some((delivery, place))
    }

    /// When the server must hear of one again, so that it gives it to nobody else.
    pub(crate) fn due(&self, ack_wait: Duration) -> Option<Instant> {
        Some(self.shelf.front()?.kept + ack_wait / 3)
    }

    /// Tells the server that all are still ours.
    pub(crate) async fn keep(&mut self, now: Instant) {
        for shelved in &mut self.shelf {
            shelved.delivery.keep().await;
            shelved.kept = now;
        }
    }

    /// Hands all back, for others or for later.
    pub(crate) async fn hand_back(&mut self) {
        self.bytes = 0;
        for shelved in self.shelf.drain(..) {
            shelved.delivery.hand_back(None).await;
        }
    }
}

fn size_of(delivery: &Delivery) -> usize {
    delivery.payload().len() + EACH_BYTES
}

impl<P: Perform> Worker<P> {
    /// Whether a job that nobody has seen yet waits for a lock with a long line, by what its message
    /// says. One that comes again may be what all others wait for.
    pub(crate) fn is_most_likely_in_line(&self, delivery: &Delivery) -> bool {
        if delivery.delivered > 1 || delivery.header(GENERATION_HEADER).is_some() {
            return false;
        }
        let Ok(job) = Envelope::decode(delivery.payload()) else {
            return false;
        };
        let class = self.perform.class();
        let objects = Task::restore(class, &job.task, &job.params).map(|task| task.objects());
        let objects = objects.unwrap_or_default();
        let objects = objects.iter().map(ToString::to_string);
        let own = job.locks.exclusive.iter().chain(&job.locks.shared);
        let own = own.map(ToString::to_string);
        let tenant = job.tenant.iter().map(|tenant| tenant_lock(class, tenant));
        let locks: Vec<String> = objects.chain(own).chain(tenant).collect();
        let lines = self.locks.long_lines();
        lines.has_one(locks.iter().map(String::as_str))
    }
}
