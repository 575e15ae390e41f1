//! `virtbus.jobs.*`, without `submit`.

use crate::error::Code;
use crate::id::{JobId, Tenant, User, WorkerId};
use crate::queue::Priority;
use crate::record::{Address, Record};
use crate::row::Row;
use crate::span::Span;
use crate::state::StateName;
use crate::task::Object;
use crate::task::value::Bounded;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The most rows of one list.
pub const LIST_LIMIT_MAX: u64 = 500;
/// The longest wait of one request, in seconds.
pub const WAIT_S_MAX: u64 = 300;

/// How many rows a list may have.
pub type ListLimit = Bounded<1, LIST_LIMIT_MAX>;

/// A request about one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OfJob {
    /// The job.
    pub id: JobId,
}

/// Waits until a job is final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Wait {
    /// The job.
    pub id: JobId,
    /// How long at most, in seconds.
    pub timeout_s: Bounded<0, WAIT_S_MAX>,
}

/// Lists jobs, the newest first. What is left out doesn't matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListJobs {
    /// In one of these states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state: Vec<StateName>,
    /// On this queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Address>,
    /// Of this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// On behalf of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// On behalf of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// About this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// With all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// On this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// Ended with this code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// How many at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ListLimit>,
    /// Where an earlier list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A point in time, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Since {
    /// The time.
    Time(Timestamp),
    /// So long ago.
    Ago(Span),
}

impl<'de> Deserialize<'de> for Since {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ago = || text.parse().ok().map(Self::Ago);
        let since = text.parse().ok().map(Self::Time).or_else(ago);
        let neither = "is neither a time nor a length of time such as \"2h\"";
        since.ok_or_else(|| de::Error::custom(neither))
    }
}

impl Since {
    /// The point in time, seen from `now`.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Time(time) => time,
            Self::Ago(span) => {
                let millis = i64::try_from(span.duration().as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millis(now.as_millis().saturating_sub(millis))
            }
        }
    }
}

/// A list of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<Row>,
    /// Where it goes on; none at the end.
    pub cursor: Option<String>,
}

/// Cancels a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// The job.
    pub id: JobId,
    /// Whether one that runs is left alone.
    #[serde(default)]
    pub only_waiting: bool,
    /// Whether a tool that ignores the request is killed at once.
    #[serde(default)]
    pub force: bool,
}

/// What came of a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// It wasn't running.
    Cancelled,
    /// The worker has been told.
    Cancelling,
    /// Its effect is being made.
    TooLate,
    /// It runs, and only a waiting one was meant.
    AlreadyStarted,
    /// It's final.
    AlreadyFinished,
    /// No job has this id.
    Unknown,
}

/// The answer to a cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {
    /// What came of it.
    pub outcome: CancelOutcome,
}

/// Changes a job's priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangePriority {
    /// The job.
    pub id: JobId,
    /// The priority it shall have.
    pub priority: Priority,
}

/// What came of a change of priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PriorityOutcome {
    /// It never starts with the old one.
    Changed,
    /// It runs.
    AlreadyStarted,
    /// It's final.
    AlreadyFinished,
    /// No job has this id.
    Unknown,
}

/// The answer to a change of priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PriorityAnswer {
    /// What came of it.
    pub outcome: PriorityOutcome,
    /// The changed record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Record>>,
}

/// What came of a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOutcome {
    /// It's queued again.
    Queued,
    /// It hasn't ended.
    NotFinal,
    /// No job has this id.
    Unknown,
}

/// The answer to a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryAnswer {
    /// What came of it.
    pub outcome: RetryOutcome,
}

/// Asks why a job is where it is.
pub type Explain = OfJob;

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// Its state.
    pub state: StateName,
    /// The reason.
    pub why: Why,
    /// What the reason is about.
    #[serde(default)]
    pub detail: Map<String, Value>,
    /// Its queue.
    pub queue: Address,
    /// How many are before it, if it's in line.
    #[serde(default)]
    pub ahead: Option<u64>,
    /// How many workers serve its queue.
    pub workers: u32,
    /// Seconds to go, about.
    #[serde(default)]
    pub eta_s: Option<u64>,
}

/// Why a job is where it is: a reason to wait, or its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Another job must end first.
    Dependency,
    /// A lock is held.
    Lock,
    /// Its time hasn't come.
    Time,
    /// No host has room.
    Capacity,
    /// The tenant's other jobs run.
    Tenant,
    /// Bytes are awaited.
    Transfer,
    /// Others are before it.
    Position,
    /// Its queue is paused.
    Paused,
    /// Nobody serves its queue.
    NoWorker,
    /// It runs.
    Running,
    /// It's being cancelled.
    Cancelling,
    /// It ended.
    Final,
}
