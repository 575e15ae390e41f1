//! What happened, as events told it: every change of every record, in order.

use async_nats::{Client, Message};
use futures_util::StreamExt;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;
use virtbus_wire::{Record, StateName};

/// One change of a record.
#[derive(Debug, Clone)]
pub struct Change {
    /// The job.
    pub id: String,
    /// The revision in bucket `jobs`.
    pub revision: u64,
    /// The whole record.
    pub record: Value,
}

impl Change {
    fn read(message: &Message) -> Option<Self> {
        // An empty body is the end of a record's life.
        if message.payload.is_empty() {
            return None;
        }
        let id = message.subject.strip_prefix("events.jobs.").unwrap();
        let headers = message
            .headers
            .as_ref()
            .expect("a republished message has headers");
        let parsed: Record = serde_json::from_slice(&message.payload)
            .unwrap_or_else(|error| panic!("an event is a record: {error}"));
        assert_eq!(parsed.id.as_str(), id);
        Some(Self {
            id: id.to_owned(),
            revision: virtbus_testbed::watch::sequence_of(headers),
            record: serde_json::from_slice(&message.payload).unwrap(),
        })
    }

    /// The state after the change.
    pub fn state(&self) -> &str {
        self.record["state"].as_str().unwrap()
    }

    /// Whether the job has ended.
    pub fn is_final(&self) -> bool {
        let name: StateName = serde_json::from_value(self.record["state"].clone()).unwrap();
        name.is_final()
    }
}

/// All changes since it was made.
pub struct Events {
    seen: Arc<Mutex<Vec<Change>>>,
    listening: JoinHandle<()>,
}

impl Events {
    /// Listens from now on.
    pub async fn listen(client: &Client) -> Self {
        let mut messages = client.subscribe("events.jobs.>").await.unwrap();
        client.flush().await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        let listening = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                notes.lock().unwrap().extend(Change::read(&message));
            }
        });
        Self { seen, listening }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Vec<Change> {
        assert!(!self.listening.is_finished(), "an event couldn't be read");
        self.seen.lock().unwrap().clone()
    }

    /// What was seen of one job.
    pub fn of(&self, id: &str) -> Vec<Change> {
        let mut seen = self.seen();
        seen.retain(|change| change.id == id);
        seen
    }

    /// How many final changes were seen; cheaper than to look at each.
    pub fn ends(&self) -> usize {
        assert!(!self.listening.is_finished(), "an event couldn't be read");
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|change| change.is_final()).count()
    }

    /// The states of one job, in order, each named once where it stays.
    pub fn states(&self, id: &str) -> Vec<String> {
        let mut states: Vec<String> = self.of(id).iter().map(|c| c.state().to_owned()).collect();
        states.dedup();
        states
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
