//! The records of jobs, and the messages that bring them to workers.

use crate::{
    bucket::{Bucket, Entry},
    client::Bus,
    error::{BusError, WriteError},
    limits::Limits,
    transport::StoreError,
};
use async_nats::HeaderMap;
use bytes::Bytes;
use std::time::Duration;
use virtbus_wire::{
    Event, JobId, Record, StateName,
    protocol::{
        arrival::MSG_ID_HEADER,
        delivery::{GENERATION_HEADER, JOB_HEADER},
    },
    state::IllegalEvent,
};

/// The bucket's name.
pub const BUCKET: &str = "jobs";
/// The prefix of the subjects on which live progress goes out.
pub const PROGRESS: &str = "events.progress";
/// The prefix of the subjects on which every change of a record goes out.
pub const EVENTS: &str = "events.jobs";
/// How long the record of a successful ping stays.
const PING_KEEP: Duration = Duration::from_secs(60 * 60);
/// How long a final record stays while core hasn't said what is configured.
pub const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The records of jobs.
#[derive(Debug, Clone)]
pub struct Jobs {
    bus: Bus,
    records: Bucket<Record>,
    limits: Limits,
    keep: Duration,
}

/// A change that wasn't made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The job's state doesn't allow it.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    /// The record wasn't written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A message that wasn't taken.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The queue takes no more.
    #[error("the queue {0} is full")]
    Full(String),
    /// No stream has this subject, or the server doesn't answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Jobs {
    /// The bucket `jobs`, whose final records stay for as long as core says, and for `keep` while
    /// it has said nothing.
    #[must_use]
    pub fn new(bus: &Bus, keep: Duration) -> Self {
        Self {
            bus: bus.clone(),
            records: Bucket::new(bus, BUCKET),
            limits: Limits::new(bus),
            keep,
        }
    }

    /// The bucket itself, for lists.
    #[must_use]
    pub fn bucket(&self) -> &Bucket<Record> {
        &self.records
    }

    /// What core's configuration says.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Reads a record from any replica.
    ///
    /// # Errors
    /// When the server doesn't answer, or the record can't be read.
    pub async fn get(&self, id: &JobId) -> Result<Option<Entry<Record>>, BusError> {
        self.records.get(id.as_str()).await
    }

    /// Reads a record from the leader.
    ///
    /// # Errors
    /// As [`Jobs::get`].
    pub async fn get_latest(&self, id: &JobId) -> Result<Option<Entry<Record>>, BusError> {
        self.records.get_latest(id.as_str()).await
    }

    /// Makes the record of a job that has none, and returns its revision.
    ///
    /// # Errors
    /// `Conflict` when it has one.
    pub async fn create(&self, record: &Record) -> Result<u64, WriteError> {
        let key = record.id.as_str();
        match self.keep_of(record).await {
            None => self.records.create(key, record).await,
            Some(keep) => self.records.create_for(key, record, keep).await,
        }
    }

    /// Writes a record that was read with this revision. Only a final one ever ends by itself.
    ///
    /// # Errors
    /// `Conflict` when the record was changed since.
    pub async fn write(&self, record: &Record, revision: u64) -> Result<u64, WriteError> {
        let key = record.id.as_str();
        match self.keep_of(record).await {
            None => self.records.update(key, record, revision).await,
            Some(keep) => self.records.update_for(key, record, revision, keep).await,
        }
    }

    /// How long a record stays once it's written; none = until it's written again.
    async fn keep_of(&self, record: &Record) -> Option<Duration> {
        let state = record.state.name();
        if !state.is_final() {
            return None;
        }
        let keep = self.limits.keep().await.unwrap_or(self.keep);
        let is_ping = record.task == "ping" && state == StateName::Succeeded;
        Some(if is_ping { PING_KEEP.min(keep) } else { keep })
    }

    /// Applies an event to a record as it was read, and writes the outcome.
    ///
    /// # Errors
    /// When the state doesn't allow it, or the record was changed since.
    pub async fn change(
        &self,
        entry: &Entry<Record>,
        event: Event,
    ) -> Result<Entry<Record>, ChangeError> {
        let now = self.bus.now();
        let value = entry.value.apply(event, now)?;
        let revision = self.write(&value, entry.revision).await?;
        Ok(Entry {
            value,
            revision,
            written_at: now,
        })
    }

    /// Publishes the job again under its present generation. The record must say so already:
    /// record first, then publish.
    ///
    /// # Errors
    /// When the queue is full, or the server doesn't answer; the reconciler does it later then.
    pub async fn publish(&self, record: &Record) -> Result<u64, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(JOB_HEADER, record.id.as_str());
        headers.insert(GENERATION_HEADER, record.generation.to_string().as_str());
        if let Some(trace) = &record.trace {
            headers.insert("traceparent", trace.traceparent.as_str());
        }
        let subject = record.queue.to_string();
        let corrupt = |error| BusError::refused(format!("job {}", record.id), error);
        let payload = serde_json::to_vec(&record.envelope()).map_err(corrupt)?;
        let message_id = format!("{}:{}", record.id, record.generation);
        headers.insert(MSG_ID_HEADER, message_id.as_str());
        self.send(subject, headers, payload.into()).await
    }

    /// Copies a message that nobody will run to the dead letters.
    ///
    /// # Errors
    /// When the server doesn't take it.
    pub async fn dead_letter(&self, letter: DeadLetter<'_>) -> Result<(), PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert("Virtbus-Reason", letter.reason);
        headers.insert("Virtbus-Stream", letter.stream);
        headers.insert("Virtbus-Sequence", letter.seq.to_string().as_str());
        headers.insert(JOB_HEADER, letter.job.as_str());
        let id = format!("{}:{}:{}", letter.stream, letter.seq, letter.reason);
        headers.insert(MSG_ID_HEADER, id.as_str());
        let payload = Bytes::copy_from_slice(letter.payload);
        let subject = format!("dlq.{}", letter.subject);
        self.send(subject, headers, payload).await.map(|_| ())
    }

    async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, PublishError> {
        let stored = self.bus.store(subject.clone(), headers, payload).await;
        stored.map_err(|error| match error {
            StoreError::Refused(_) => PublishError::Full(subject),
            StoreError::Conflict | StoreError::Unsendable(_) | StoreError::InDoubt(_) => {
                BusError::unreachable(format!("a publish to {subject}"), error).into()
            }
        })
    }
}

/// A message that nobody will run.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetter<'a> {
    /// The subject it came on.
    pub subject: &'a str,
    /// The message itself.
    pub payload: &'a [u8],
    /// The job's id: not every message has it in itself, and one that can't be read may name
    /// another's.
    pub job: &'a JobId,
    /// The code it ended with.
    pub reason: &'a str,
    /// The stream it came from.
    pub stream: &'a str,
    /// Its sequence there.
    pub seq: u64,
}
