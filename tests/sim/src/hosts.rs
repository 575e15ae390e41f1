//! Workers that have queues of their own: which of them should have a job is looked at before its
//! claim, as for domains that are on one host.

use crate::{chance::hash, perform::label};
use std::time::Duration;
use virtbus_wire::{Label, Place, Priority, Queue, Record, state::WaitReason};
use virtbus_worker::Look;

/// How often a job is handed on to other workers before it's claimed.
const HAND_BACKS: u64 = 2;
/// For how long.
const HAND_BACK: Duration = Duration::from_secs(1);

/// How a publisher's label says what is to be found out about a job before its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Looks {
    /// Whoever claims it first keeps it.
    Here = 1,
    /// It belongs to a worker that its id says.
    Pass = 2,
    /// Others should have it, if there are any.
    HandBack = 3,
    /// There's no room for it at first.
    Wait = 4,
}

impl Looks {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Here, Self::Pass, Self::HandBack, Self::Wait];
}

/// A worker's own place among all.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its own.
    pub own: usize,
    /// How many there are.
    pub count: usize,
}

/// What the queues of a worker are named after.
#[must_use]
pub fn name(worker: usize) -> Label {
    format!("h{worker}").parse().expect("a pool's name")
}

/// The queues of a worker alone.
pub fn queues(worker: usize) -> impl Iterator<Item = Queue> {
    Priority::ALL
        .into_iter()
        .map(move |priority| Queue::Storage(Place::Pool(name(worker)), priority))
}

impl Host {
    /// What is found out about a job before its claim.
    #[must_use]
    pub fn look(&self, job: &Record, deliveries: u64) -> Look {
        let asked = label(job, "look");
        let is_it = |looks: Looks| asked == looks as u64;
        let priority = job.queue.queue().map_or(Priority::Default, Queue::priority);
        let queue = |worker| Queue::Storage(Place::Pool(name(worker)), priority);
        let is_at = |worker: usize| {
            let is_it = |queue: Queue| job.queue.queue() == Some(&queue);
            queues(worker).any(is_it)
        };
        if is_it(Looks::Here) && !is_at(self.own) {
            return Look::ClaimHere(queue(self.own));
        }
        let chosen = hash(1, job.id.as_str().as_bytes()) % self.count.max(1) as u64;
        let chosen = usize::try_from(chosen).unwrap_or(0);
        if is_it(Looks::Pass) && !is_at(chosen) {
            return Look::Pass(queue(chosen));
        }
        if is_it(Looks::HandBack) && deliveries <= HAND_BACKS {
            return Look::HandBack(HAND_BACK);
        }
        if is_it(Looks::Wait) && job.generation == 1 {
            let needs = [("room".to_owned(), "some".into())].into_iter().collect();
            return Look::Wait(WaitReason::Capacity { needs });
        }
        Look::Claim
    }
}
