//! Jobs as any program with a NATS client publishes and watches them.

use crate::events::Events;
use async_nats::jetstream::{self, Context, kv::Store};
use async_nats::{Client, ConnectOptions, HeaderMap};
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_testbed::{server, until, within};
use virtbus_wire::{JobId, Record, StateName};

/// Longest wait for a job that a dead worker had: its message comes again after 30 s, and again
/// as long as its worker's lease lasts.
pub const TAKE_OVER: Duration = Duration::from_secs(150);
/// Longest wait for any other: while the machine is short of disk a long one isn't begun for a
/// minute, and there may be others before it.
const JOB: Duration = Duration::from_secs(180);
/// The longest that a tool may take which starts a machine, without KVM on a busy host.
const MACHINE: Duration = Duration::from_secs(240);

/// A connection, with the buckets.
pub struct Bus {
    /// The connection itself.
    pub client: Client,
    /// JetStream on it.
    pub jetstream: Context,
    jobs: Store,
    disks: Store,
}

impl Bus {
    /// Connects.
    pub async fn connect(url: &str) -> Self {
        let client = server::connect(url, ConnectOptions::new()).await;
        let jetstream = jetstream::new(client.clone());
        let jobs = jetstream.get_key_value("jobs").await.unwrap();
        let disks = jetstream.get_key_value("disks").await.unwrap();
        Self {
            client,
            jetstream,
            jobs,
            disks,
        }
    }

    /// Every change of a record from now on.
    pub async fn events(&self) -> Events {
        Events::listen(&self.client).await
    }

    /// Publishes a job, with the stream's promise: its sequence.
    pub async fn publish(&self, subject: &str, job: &Value) -> u64 {
        self.publish_bytes(subject, job.to_string().into_bytes())
            .await
    }

    /// Publishes anything.
    pub async fn publish_bytes(&self, subject: &str, payload: Vec<u8>) -> u64 {
        self.publish_with(subject, HeaderMap::new(), payload).await
    }

    /// Publishes anything, with headers.
    pub async fn publish_with(&self, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> u64 {
        let subject = subject.to_owned();
        let sent = self
            .jetstream
            .publish_with_headers(subject, headers, payload.into());
        sent.await.unwrap().await.unwrap().sequence
    }

    /// A plain publish: nobody says anything.
    pub async fn publish_plainly(&self, subject: &str, job: &Value) {
        let sent = self
            .client
            .publish(subject.to_owned(), job.to_string().into());
        sent.await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Publishes a job with a new id, and returns the id.
    pub async fn submit(&self, subject: &str, task: &str, params: Value) -> String {
        let id = JobId::new().to_string();
        let job = json!({"id": id, "task": task, "params": params});
        self.publish(subject, &job).await;
        id
    }

    /// Submits a job, and returns its record at the end.
    pub async fn run(&self, subject: &str, task: &str, params: Value) -> Value {
        let id = self.submit(subject, task, params).await;
        self.end_of(&id).await
    }

    /// The same for one that must succeed; returns the result.
    pub async fn succeed(&self, subject: &str, task: &str, params: Value) -> Value {
        let record = self.run(subject, task, params).await;
        assert_eq!(state_of(&record), "succeeded", "{record:#}");
        record["result"].clone()
    }

    /// A ping on this subject succeeds.
    pub async fn ping(&self, subject: &str) -> Value {
        self.succeed(subject, "ping", json!({})).await
    }

    /// Asks the control service.
    ///
    /// # Errors
    /// What it refuses, with its error; or that nobody answers.
    pub async fn ask(&self, subject: &str, question: &Value) -> Result<Value, Value> {
        let sent = self
            .client
            .request(subject.to_owned(), question.to_string().into());
        let answer = sent.await.map_err(|error| json!(error.to_string()))?;
        let body: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match body.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(body),
        }
    }

    /// A record as it is now.
    pub async fn record(&self, id: &str) -> Option<Value> {
        let bytes = self.jobs.get(id).await.ok()??;
        let parsed: Result<Record, _> = serde_json::from_slice(&bytes);
        if let Err(error) = parsed {
            panic!("the record of {id} can't be read: {error}");
        }
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// The record of a job, once it fits.
    pub async fn once(&self, id: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{id}: {what}"), async || {
            self.fitting(id, &fits).await
        })
        .await
    }

    async fn fitting(&self, id: &str, fits: impl Fn(&Value) -> bool) -> Result<Value, Value> {
        match self.record(id).await {
            Some(record) if fits(&record) => Ok(record),
            Some(record) => Err(record),
            None => Err(Value::Null),
        }
    }

    /// The record of a job, once it's over.
    pub async fn end_of(&self, id: &str) -> Value {
        let what = format!("{id}: over");
        within(JOB, &what, async || self.fitting(id, is_final).await).await
    }

    /// The same of one that a dead worker had.
    pub async fn end_after_take_over(&self, id: &str) -> Value {
        let what = format!("{id}: over, by another claim");
        within(TAKE_OVER, &what, async || self.fitting(id, is_final).await).await
    }

    /// The same of one whose tool starts a machine, emulated perhaps.
    pub async fn end_of_machine(&self, id: &str) -> Value {
        let what = format!("{id}: over");
        within(MACHINE, &what, async || self.fitting(id, is_final).await).await
    }

    /// What the catalogue says of a disk.
    pub async fn disk(&self, disk: &str) -> Option<Value> {
        let bytes = self.disks.get(disk).await.unwrap()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }
}

/// Whether a record's job has ended.
pub fn is_final(record: &Value) -> bool {
    let state: StateName = serde_json::from_value(record["state"].clone()).unwrap();
    state.is_final()
}

/// A record's state.
pub fn state_of(record: &Value) -> &str {
    record["state"].as_str().unwrap()
}

/// A record's error code; empty without one.
pub fn code_of(record: &Value) -> &str {
    record["error"]["code"].as_str().unwrap_or_default()
}

/// The field that a record's error names; empty without one.
pub fn field_of(record: &Value) -> &str {
    record["error"]["detail"]["field"]
        .as_str()
        .unwrap_or_default()
}
