//! Messages as they lie in a stream, and the records that some of their jobs have.

use crate::{registrar::Records, service::Stores};
use virtbus_bus::{BusError, Stored, browse::PAGE_MAX};
use virtbus_wire::{
    JobId, Queue, Record, Timestamp,
    protocol::{
        arrival::{Arrival, Arrived, Life, arrive},
        delivery::Message,
    },
};

/// A message and what it is.
#[derive(Debug, Clone)]
pub struct Lying<'a> {
    /// As it lies there.
    pub arrival: Arrival<'a>,
    /// What it is.
    pub arrived: Arrived,
}

/// Looks at a message. `None` for one that isn't in a stream of jobs.
#[must_use]
pub fn lying(stored: &Stored, now: Timestamp) -> Option<Lying<'_>> {
    let arrival = stored.arrival()?;
    let arrived = arrive(&arrival, Life::First, now);
    Some(Lying { arrival, arrived })
}

impl Lying<'_> {
    /// The job.
    #[must_use]
    pub fn id(&self) -> &JobId {
        match &self.arrived {
            Arrived::System { id, .. } | Arrived::Job { id, .. } => id,
        }
    }

    /// The queue of a job that could run.
    #[must_use]
    pub fn queue(&self) -> Option<&Queue> {
        match &self.arrived {
            Arrived::Job { record, .. } => record.as_ref().ok()?.queue.queue(),
            Arrived::System { .. } => None,
        }
    }

    /// Which publication it is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match &self.arrived {
            Arrived::System { generation, .. } => *generation,
            Arrived::Job { .. } => 1,
        }
    }

    /// What matters of it to the protocol; none for a subject that is no queue.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        let queue: Queue = self.arrival.subject.parse().ok()?;
        Some(Message {
            generation: self.generation(),
            queue,
            seq: self.arrival.seq,
        })
    }

    /// The same message seen as of a later life of its stream, if the record that was found under
    /// its id is an earlier life's.
    #[must_use]
    pub fn or_later(mut self, found: Option<&Record>, now: Timestamp) -> Self {
        let is_numbered = matches!(&self.arrived, Arrived::Job { .. });
        let life = found.map_or(Life::First, |record| self.arrival.life(record));
        if is_numbered && life == Life::Later {
            self.arrived = arrive(&self.arrival, Life::Later, now);
        }
        self
    }
}

/// What is known of some jobs.
pub(crate) struct KnownJobs(Records);

impl KnownJobs {
    /// Reads the records of these jobs from any replica.
    pub(crate) async fn read(stores: &Stores, ids: &[&JobId]) -> Result<Self, BusError> {
        let mut records = Records::new();
        for ids in ids.chunks(PAGE_MAX) {
            let keys: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
            for row in stores.jobs.bucket().of_keys(&keys).await? {
                match row.entry {
                    Ok(Some(entry)) => {
                        records.insert(entry.value.id.clone(), entry.value);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a job's record"),
                }
            }
        }
        Ok(Self(records))
    }

    /// Whether there is a record of this id, whoever's.
    pub(crate) fn holds(&self, id: &JobId) -> bool {
        self.0.contains_key(id)
    }

    /// Whether nothing is to be registered for this message.
    pub(crate) fn have(&self, lying: &Lying<'_>) -> bool {
        let is_system = matches!(lying.arrived, Arrived::System { .. });
        let found = self.0.get(lying.id());
        is_system || found.is_some_and(|record| lying.arrival.life(record) == Life::First)
    }
}
