//! `virtbus.queues.*`.

use crate::catalog::QueueRecord;
use crate::queue::Queue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request about one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OnQueue {
    /// The queue.
    pub queue: Queue,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A queue as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueRow {
    /// The queue.
    pub queue: Queue,
    /// Jobs that nobody took yet.
    pub depth: u64,
    /// Jobs that run.
    pub running: u64,
    /// How long the oldest job has been waiting, in seconds.
    #[serde(default)]
    pub oldest_age_s: Option<u64>,
    /// Workers that serve it.
    pub workers: u32,
    /// Whether its jobs stay where they are.
    pub paused: bool,
    /// Who paused it, why and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<QueueRecord>,
}

/// All queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueList {
    /// The queues.
    pub queues: Vec<QueueRow>,
}

/// The answer to a pause or its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Paused {
    /// The queue.
    pub queue: Queue,
    /// Whether it's paused now.
    pub paused: bool,
}

/// The answer to a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Purged {
    /// The queue.
    pub queue: Queue,
    /// Jobs that were cancelled.
    pub cancelled: u64,
}
