//! The states of a job, the events that join them, and the one function that applies an event.
//!
//! ```text
//!              +--------> waiting ---+
//!              |           |   ^     |
//!   (none) -> queued ------|---|-----+--> cancelled, failed
//!              |  ^        v   |
//!              |  +------ queued
//!              v               |
//!            running ----------+---> succeeded, failed
//!              |
//!              +--> cancelling ----> cancelled, failed (succeeded: an earlier claim's effect)
//! ```
//! `succeeded`, `failed` and `cancelled` are final: only an explicit retry leaves them.

use crate::{
    error::JobError,
    id::{BootId, JobId, WorkerId},
    queue::Queue,
    time::Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// A state's name, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    /// Ready to be taken from its queue.
    Queued,
    /// Parked: it holds no slot, no message, no timer of the server.
    Waiting,
    /// A worker has it.
    Running,
    /// A worker has it and was told to give it up.
    Cancelling,
    /// Done. Final.
    Succeeded,
    /// Ended with an error. Final.
    Failed,
    /// Ended because somebody, or a dependency, said so. Final.
    Cancelled,
}

impl StateName {
    /// Whether nothing but an explicit retry leaves it.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Queued | Self::Waiting | Self::Running | Self::Cancelling => false,
        }
    }

    /// The name as it stands in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A state with its data.
#[derive(Debug, Clone, PartialEq)]
pub enum JobState {
    /// Ready to be taken.
    Queued,
    /// Parked, with the reason.
    Waiting(Waiting),
    /// A worker has it.
    Running(Hold),
    /// A worker has it and was told to give it up.
    Cancelling(Hold),
    /// Done, with its result.
    Succeeded(Ended, Map<String, Value>),
    /// Ended with an error.
    Failed(Ended, JobError),
    /// Ended on request, or (with an error) because a dependency can't come true any more.
    Cancelled(Ended, Option<JobError>),
}

/// One process of one worker. Alive = the worker's lease is there and names this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The worker.
    pub worker: WorkerId,
    /// The start of its process.
    pub boot: BootId,
}

/// What a worker has of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// The worker that has it.
    pub owner: Owner,
    /// How far it came.
    pub phase: Phase,
}

/// How far a claim came. Each claim begins anew.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Removing what older claims left.
    Clean,
    /// Taking locks.
    Locks,
    /// The work itself.
    Work,
    /// The effect is being made: no cancel from here on.
    Commit,
}

/// When and under whom a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The time.
    pub at: Timestamp,
    /// The worker that ended it, if one did.
    pub by: Option<Owner>,
}

/// Why a job is parked, and since when.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The reason.
    pub on: WaitReason,
    /// Since when.
    pub since: Timestamp,
}

/// Why a job is parked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "on", content = "detail", rename_all = "lowercase")]
pub enum WaitReason {
    /// For another job to end.
    Dependency {
        /// The job.
        job: JobId,
        /// Its state; none when nobody has seen it yet.
        state: Option<StateName>,
    },
    /// For a lock.
    Lock {
        /// The lock, such as `disk.d7`.
        resource: String,
        /// `job.<id>` or `domain.<id>`.
        holder: Option<String>,
        /// Since when the holder has it.
        since: Option<Timestamp>,
    },
    /// For a time.
    Time {
        /// Not before this.
        until: Timestamp,
        /// The error that is being retried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<JobError>,
    },
    /// For a host with room.
    Capacity {
        /// What the job needs.
        needs: Map<String, Value>,
    },
    /// For the tenant's other jobs to end.
    Tenant {
        /// How many run.
        running: u32,
        /// How many may.
        limit: u32,
    },
    /// For the bytes of an upload.
    Transfer {
        /// Bytes that came.
        received: u64,
        /// Bytes announced.
        size: Option<u64>,
        /// When the URL ends.
        expires_at: Timestamp,
    },
}

/// Who asked for a cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// The user, or the service.
    pub by: Option<String>,
    /// When.
    pub at: Timestamp,
    /// Kill a tool that ignores the request at once.
    pub force: bool,
    /// Why, for people, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far the work came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// 0 to 100; none when it can't be told.
    pub percent: Option<f64>,
    /// The step of the task.
    #[serde(default)]
    pub phase: Option<String>,
    /// Bytes done.
    #[serde(default)]
    pub done_bytes: Option<u64>,
    /// Bytes in all.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    /// The present rate.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
    /// Seconds to go, about.
    #[serde(default)]
    pub eta_s: Option<u64>,
}

impl Progress {
    /// What is told after `before` in the same attempt: how far the work came never goes back.
    #[must_use]
    pub fn after(self, before: Option<&Self>) -> Self {
        let percent = self.percent.filter(|percent| !percent.is_nan());
        let percent = percent.map(|percent| percent.clamp(0.0, 100.0));
        let goes_back = |before: &&Self| before.percent.is_some() && before.percent > percent;
        match before.filter(goes_back) {
            Some(before) => Self {
                percent: before.percent,
                done_bytes: before.done_bytes,
                total_bytes: before.total_bytes,
                ..self
            },
            None => Self { percent, ..self },
        }
    }
}

/// What happens to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker takes it: from the queue, or over from a worker that died.
    Claim {
        /// Who.
        owner: Owner,
        /// The stream sequence of the message it came with.
        seq: u64,
        /// Whether the work begins with the claim, since nothing must be cleaned or locked first.
        begin: bool,
    },
    /// As `Claim`, from a queue that others share: from here on it's on a queue of its owner alone.
    ClaimHere {
        /// Who.
        owner: Owner,
        /// The stream sequence of the message it came with.
        seq: u64,
        /// The owner's own queue.
        queue: Queue,
    },
    /// The owner goes on to a later phase; entering `work` begins an attempt.
    Enter(Phase),
    /// The owner tells how far it came.
    Progress(Progress),
    /// The owner parks it, cleaned up.
    Park {
        /// Why.
        on: WaitReason,
        /// Whether the attempt is given back, as it wasn't the job's fault.
        refund: bool,
        /// Its place in waiting lists, from its first wait for a lock.
        ticket: Option<u64>,
    },
    /// It must wait before any claim, or for another reason than before.
    Wait(WaitReason),
    /// The system is about to publish it again.
    Publish {
        /// Whether that is because deliveries ran out without a claim.
        round: bool,
    },
    /// It goes to another queue; while queued it's about to be published there.
    Move(Queue),
    /// Somebody wants it to end.
    Cancel(Cancel),
    /// The owner has done it.
    Succeed(Map<String, Value>),
    /// The owner found an earlier claim's effect, whole.
    Recover(Map<String, Value>),
    /// It ends with an error.
    Fail(JobError),
    /// The owner has given it up and cleaned up.
    GiveUp,
    /// What it waits for can't come true any more.
    Drop(JobError),
    /// Its host is fenced: what it asks for is so.
    Settle(Map<String, Value>),
    /// Its host is fenced: it's about to be published on this queue, for another host.
    Rehome(Queue),
    /// A person wants it run again.
    Retry,
}

/// An event that the job's state doesn't allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {state} job can't {event}")]
pub struct IllegalEvent {
    /// The state.
    pub state: StateName,
    /// The event.
    pub event: &'static str,
}

impl JobState {
    /// The state's name.
    #[must_use]
    pub fn name(&self) -> StateName {
        match self {
            Self::Queued => StateName::Queued,
            Self::Waiting(_) => StateName::Waiting,
            Self::Running(_) => StateName::Running,
            Self::Cancelling(_) => StateName::Cancelling,
            Self::Succeeded(..) => StateName::Succeeded,
            Self::Failed(..) => StateName::Failed,
            Self::Cancelled(..) => StateName::Cancelled,
        }
    }

    /// The claim, while a worker has the job.
    #[must_use]
    pub fn hold(&self) -> Option<&Hold> {
        match self {
            Self::Running(hold) | Self::Cancelling(hold) => Some(hold),
            Self::Queued | Self::Waiting(_) => None,
            Self::Succeeded(..) | Self::Failed(..) | Self::Cancelled(..) => None,
        }
    }

    /// When and under whom it ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match self {
            Self::Succeeded(ended, _) | Self::Failed(ended, _) | Self::Cancelled(ended, _) => {
                Some(ended)
            }
            Self::Queued | Self::Waiting(_) | Self::Running(_) | Self::Cancelling(_) => None,
        }
    }
}

impl Event {
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Claim { .. } | Self::ClaimHere { .. } => "be claimed",
            Self::Enter(_) => "enter that phase",
            Self::Progress(_) => "make progress",
            Self::Park { .. } => "be parked",
            Self::Wait(_) => "wait",
            Self::Publish { .. } => "be published",
            Self::Move(_) => "be moved",
            Self::Cancel(_) => "be cancelled",
            Self::Succeed(_) => "succeed",
            Self::Recover(_) => "be found done",
            Self::Fail(_) => "fail",
            Self::GiveUp => "be given up",
            Self::Settle(_) => "be settled",
            Self::Rehome(_) => "go to another host",
            Self::Drop(_) => "be dropped",
            Self::Retry => "be retried",
        }
    }
}
