//! A job's row: the record without `params`, `result`, `timeline` and `dedupe`, for lists.

use crate::envelope::{Dependency, IfInUse, PublisherLocks, Retry};
use crate::error::Code;
use crate::flat::is_none;
use crate::id::{BootId, JobId, Tenant, User, WorkerId};
use crate::queue::{Priority, Queue};
use crate::record::{Address, Record, Trace};
use crate::state::{Cancel, JobState, Phase, Progress, StateName, Waiting};
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a list shows of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// The job's id.
    pub id: JobId,
    /// What to do.
    pub task: String,
    /// The queue it belongs to now.
    pub queue: Address,
    /// The queue's priority.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// What it works on, such as `disk.d7`.
    pub objects: Vec<String>,
    /// The state.
    pub state: StateName,
    /// On whose behalf.
    #[serde(default)]
    pub user: Option<User>,
    /// The user's tenant.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// The publisher's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Jobs that must end first.
    #[serde(default)]
    pub after: Vec<Dependency>,
    /// Locks of the publisher's own.
    #[serde(default)]
    pub locks: PublisherLocks,
    /// What to do when a domain or a download uses what the job needs.
    #[serde(default)]
    pub if_in_use: IfInUse,
    /// Not to be started before this.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// Not to be started after this.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Seconds an attempt may take.
    #[serde(default)]
    pub timeout_s: Option<u64>,
    /// How often to try.
    #[serde(default)]
    pub retry: Retry,
    /// The publisher's trace context.
    #[serde(default)]
    pub trace: Option<Trace>,
    /// Publications by the system; 1 = the publisher's own.
    pub generation: u64,
    /// Claims so far.
    pub claim: u64,
    /// Starts of the work itself.
    pub attempt: u32,
    /// Starts that are left.
    pub tries_left: u32,
    /// Claims lost in a row, each before its work began; left out when there are none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub lost: u32,
    /// The revision of the record in bucket `jobs`: of two rows the larger one holds.
    pub seq: u64,
    /// Place in waiting lists of locks.
    #[serde(default)]
    pub ticket: Option<u64>,
    /// Publications because deliveries ran out without a claim.
    pub rounds: u32,
    /// Who asked for a cancel.
    #[serde(default)]
    pub cancel: Option<Cancel>,
    /// The worker that has it, or ended it.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// Which start of that worker.
    #[serde(default)]
    pub boot: Option<BootId>,
    /// How far the claim came.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// How far the work came.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Why it's parked.
    #[serde(default)]
    pub waiting: Option<RowWaiting>,
    /// With what it ended.
    #[serde(default)]
    pub error: Option<RowError>,
    /// Whether a cancel would still stop it.
    pub cancelable: bool,
    /// When it was published.
    pub submitted_at: Timestamp,
    /// When it last became ready to be taken.
    #[serde(default)]
    pub queued_at: Option<Timestamp>,
    /// When it was first claimed.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

/// What of a row says who may see it, and for which filters it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The job's id.
    pub id: JobId,
    /// What to do.
    pub task: String,
    /// The queue it belongs to now.
    pub queue: Address,
    /// What it works on, such as `disk.d7`.
    pub objects: Vec<String>,
    /// The state.
    pub state: StateName,
    /// On whose behalf.
    pub user: Option<User>,
    /// The user's tenant.
    pub tenant: Option<Tenant>,
    /// The publisher's labels.
    pub labels: BTreeMap<String, String>,
    /// Starts of the work itself.
    pub attempt: u32,
    /// The revision of the record.
    pub seq: u64,
}

impl From<Row> for Outline {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            task: row.task,
            queue: row.queue,
            objects: row.objects,
            state: row.state,
            user: row.user,
            tenant: row.tenant,
            labels: row.labels,
            attempt: row.attempt,
            seq: row.seq,
        }
    }
}

/// Why a job is parked. A reason that a reader doesn't know is shown as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RowWaiting {
    /// The reason, such as `lock`.
    pub on: String,
    /// Since when.
    pub since: Timestamp,
    /// What the reason is about.
    #[serde(default)]
    pub detail: Map<String, Value>,
}

/// Why a job failed, without the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RowError {
    /// For programs.
    pub code: Code,
}

impl From<&Waiting> for RowWaiting {
    fn from(waiting: &Waiting) -> Self {
        // `{"on", "detail"}`, as the reason is written in the record.
        let reason = serde_json::to_value(&waiting.on).unwrap_or_default();
        let on = reason.get("on").and_then(Value::as_str).unwrap_or_default();
        let detail = reason.get("detail").and_then(Value::as_object);
        Self {
            on: on.to_owned(),
            since: waiting.since,
            detail: detail.cloned().unwrap_or_default(),
        }
    }
}

impl Row {
    /// The row of a record; `seq` is the record's revision in the bucket.
    #[must_use]
    pub fn new(record: &Record, seq: u64) -> Self {
        let hold = record.state.hold();
        let ended = record.state.ended();
        let error = match &record.state {
            JobState::Failed(_, error) | JobState::Cancelled(_, Some(error)) => Some(error),
            JobState::Cancelled(_, None) | JobState::Succeeded(..) | JobState::Queued => None,
            JobState::Waiting(_) | JobState::Running(_) | JobState::Cancelling(_) => None,
        };
        let waiting = match &record.state {
            JobState::Waiting(waiting) => Some(waiting.into()),
            JobState::Queued | JobState::Running(_) | JobState::Cancelling(_) => None,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => None,
        };
        let owner = hold
            .map(|hold| &hold.owner)
            .or(ended.and_then(|e| e.by.as_ref()));
        Self {
            id: record.id.clone(),
            task: record.task.clone(),
            queue: record.queue.clone(),
            priority: record.queue.queue().map(Queue::priority),
            objects: record.objects.clone(),
            state: record.state.name(),
            user: record.user.clone(),
            tenant: record.tenant.clone(),
            labels: record.labels.clone(),
            reason: record.reason.clone(),
            after: record.after.clone(),
            locks: record.locks.clone(),
            if_in_use: record.if_in_use,
            not_before: record.not_before,
            expires_at: record.expires_at,
            timeout_s: record.timeout_s,
            retry: record.retry,
            trace: record.trace.clone(),
            generation: record.generation,
            claim: record.claim,
            attempt: record.attempt,
            tries_left: record.tries_left,
            lost: record.lost,
            seq,
            ticket: record.ticket,
            rounds: record.rounds,
            cancel: record.cancel.clone(),
            worker: owner.map(|owner| owner.worker.clone()),
            boot: owner.map(|owner| owner.boot),
            phase: hold.map(|hold| hold.phase),
            progress: record.progress.clone(),
            waiting,
            error: error.map(|error| RowError { code: error.code }),
            cancelable: record.is_cancelable(),
            submitted_at: record.submitted_at,
            queued_at: record.queued_at,
            started_at: record.started_at,
            finished_at: ended.map(|ended| ended.at),
        }
    }
}
