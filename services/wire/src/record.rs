//! The record of a job: the single truth about it, kept under its id in the bucket `jobs`.

use crate::{
    envelope::{Dependency, Envelope, IfInUse, PublisherLocks, Retry},
    error::Code,
    flat::Flat,
    id::{JobId, Tenant, User, WorkerId},
    queue::Queue,
    state::{Cancel, JobState, Owner, Phase, Progress, StateName},
    time::Timestamp,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// The most entries of a timeline; beyond it one that tells of no attempt goes, the first stays.
pub const TIMELINE_MAX: usize = 64;

/// A job's record. Every change is a compare-and-set, and each change is the event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Flat", into = "Flat")]
pub struct Record {
    /// The job's id, which is the record's key.
    pub id: JobId,
    /// What to do.
    pub task: String,
    /// The queue it belongs to now.
    pub queue: Address,
    /// What it works on, such as `disk.d7`.
    pub objects: Vec<String>,
    /// The task's parameters.
    pub params: Value,
    /// On whose behalf.
    pub user: Option<User>,
    /// The user's tenant.
    pub tenant: Option<Tenant>,
    /// The publisher's labels.
    pub labels: BTreeMap<String, String>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Jobs that must end first.
    pub after: Vec<Dependency>,
    /// Locks of the publisher's own.
    pub locks: PublisherLocks,
    /// What to do when a domain or a download uses what the job needs.
    pub if_in_use: IfInUse,
    /// Not to be started before this.
    pub not_before: Option<Timestamp>,
    /// Not to be started after this.
    pub expires_at: Option<Timestamp>,
    /// Seconds an attempt may take.
    pub timeout_s: Option<u64>,
    /// How often to try.
    pub retry: Retry,
    /// The publisher's trace context.
    pub trace: Option<Trace>,
    /// Publications by the system; 1 = the publisher's own.
    pub generation: u64,
    /// Claims so far; never goes down.
    pub claim: u64,
    /// Starts of the work itself.
    pub attempt: u32,
    /// Starts that are left.
    pub tries_left: u32,
    /// Claims lost in a row, each before its work began.
    pub lost: u32,
    /// Stream sequence of the message it was claimed with.
    pub seq: Option<u64>,
    /// Place in waiting lists of locks.
    pub ticket: Option<u64>,
    /// Publications because deliveries ran out without a claim.
    pub rounds: u32,
    /// Who asked for a cancel.
    pub cancel: Option<Cancel>,
    /// The message it came with.
    pub dedupe: Option<Dedupe>,
    /// How far the work came.
    pub progress: Option<Progress>,
    /// The state, with its data.
    pub state: JobState,
    /// When it was published.
    pub submitted_at: Timestamp,
    /// When it last became ready to be taken.
    pub queued_at: Option<Timestamp>,
    /// When it was first claimed.
    pub started_at: Option<Timestamp>,
    /// What happened, oldest first.
    pub timeline: Vec<Moment>,
}

/// A job's queue, or the subject that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Address {
    /// A queue.
    Queue(Queue),
    /// A subject that no service takes jobs from.
    Unknown(String),
}

/// The publisher's trace context, carried through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// As in W3C Trace Context.
    pub traceparent: String,
}

/// The message a job came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dedupe {
    /// The stream.
    pub stream: String,
    /// Its sequence there.
    pub seq: u64,
    /// When the server took it.
    pub time: Timestamp,
}

/// One entry of a job's timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Moment {
    /// The state entered.
    pub state: StateName,
    /// When.
    pub at: Timestamp,
    /// By which worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// In which attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// With which error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

impl Moment {
    /// An entry with nothing but the state and the time.
    #[must_use]
    pub fn new(state: StateName, at: Timestamp) -> Self {
        Self {
            state,
            at,
            worker: None,
            attempt: None,
            code: None,
        }
    }
}

impl Record {
    /// The record of a job that was just seen, `queued`.
    #[must_use]
    pub fn new(id: JobId, job: Envelope, queue: Address, submitted_at: Timestamp) -> Self {
        let tries_left = job.retry.max_attempts;
        Self {
            id,
            task: job.task,
            queue,
            objects: Vec::new(),
            params: job.params,
            user: job.user,
            tenant: job.tenant,
            labels: job.labels,
            reason: job.reason,
            after: job.after,
            locks: job.locks,
            if_in_use: job.if_in_use,
            not_before: job.not_before,
            expires_at: job.expires_at,
            timeout_s: job.timeout_s,
            retry: job.retry,
            trace: None,
            generation: 1,
            claim: 0,
            attempt: 0,
            tries_left,
            lost: 0,
            seq: None,
            ticket: None,
            rounds: 0,
            cancel: None,
            dedupe: None,
            progress: None,
            state: JobState::Queued,
            submitted_at,
            queued_at: Some(submitted_at),
            started_at: None,
            timeline: vec![Moment::new(StateName::Queued, submitted_at)],
        }
    }

    /// The envelope to publish the job with again.
    #[must_use]
    pub fn envelope(&self) -> Envelope {
        Envelope {
            id: Some(self.id.clone()),
            task: self.task.clone(),
            params: self.params.clone(),
            user: self.user.clone(),
            tenant: self.tenant.clone(),
            labels: self.labels.clone(),
            after: self.after.clone(),
            locks: self.locks.clone(),
            if_in_use: self.if_in_use,
            not_before: self.not_before,
            expires_at: self.expires_at,
            timeout_s: self.timeout_s,
            retry: self.retry,
            reason: self.reason.clone(),
        }
    }

    /// Whether a cancel would still stop it.
    #[must_use]
    pub fn is_cancelable(&self) -> bool {
        let committing = self
            .state
            .hold()
            .is_some_and(|hold| hold.phase == Phase::Commit);
        !committing && !self.state.name().is_final()
    }

    /// Whether this claim of this process still has the job.
    #[must_use]
    pub fn is_held_by(&self, owner: &Owner, claim: u64) -> bool {
        self.claim == claim && self.state.hold().is_some_and(|hold| hold.owner == *owner)
    }

    pub(crate) fn remember(&mut self, moment: Moment) {
        if self.timeline.len() >= TIMELINE_MAX {
            self.timeline.remove(self.least_told());
        }
        self.timeline.push(moment);
    }

    /// The oldest entry of the timeline but the first that says neither when an attempt began nor
    /// how it ended; else the oldest of all but the first.
    fn least_told(&self) -> usize {
        let tells = |(index, moment): (usize, &Moment)| {
            let is_last = |attempt: u32| {
                let mut later = self.timeline.iter().skip(index + 1);
                !later.any(|later| later.attempt == Some(attempt))
            };
            moment.code.is_some() || moment.attempt.is_some_and(is_last)
        };
        let mut moments = self.timeline.iter().enumerate().skip(1);
        let least = moments.find(|moment| !tells(*moment));
        least.map_or(1, |(index, _)| index)
    }
}

impl Address {
    /// The queue, if it is one.
    #[must_use]
    pub fn queue(&self) -> Option<&Queue> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Unknown(_) => None,
        }
    }
}

impl From<Queue> for Address {
    fn from(queue: Queue) -> Self {
        Self::Queue(queue)
    }
}

impl From<String> for Address {
    fn from(subject: String) -> Self {
        subject.parse().map_or(Self::Unknown(subject), Self::Queue)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => queue.fmt(f),
            Self::Unknown(subject) => f.write_str(subject),
        }
    }
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The subject of the job's queue; of a failed job perhaps of none.",
            "type": "string"
        })
    }
}

impl JsonSchema for Record {
    fn schema_name() -> Cow<'static, str> {
        "Record".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Flat::json_schema(generator)
    }
}
