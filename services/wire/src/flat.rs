//! The record as it is written.

use crate::{
    envelope::{Dependency, IfInUse, PublisherLocks, Retry},
    error::JobError,
    id::{BootId, JobId, Tenant, User, WorkerId},
    queue::{Priority, Queue},
    record::{Address, Dedupe, Moment, Record, Trace},
    state::{
        Cancel, Ended, Hold, JobState, Owner, Phase, Progress, StateName, WaitReason, Waiting,
    },
    time::Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The record as it is written: flat, each field at its place whatever the state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Record", title = "Record")]
pub(crate) struct Flat {
    id: JobId,
    task: String,
    queue: Address,
    priority: Option<Priority>,
    objects: Vec<String>,
    state: StateName,
    params: Value,
    user: Option<User>,
    tenant: Option<Tenant>,
    labels: BTreeMap<String, String>,
    reason: Option<String>,
    after: Vec<Dependency>,
    locks: PublisherLocks,
    if_in_use: IfInUse,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    timeout_s: Option<u64>,
    retry: Retry,
    trace: Option<Trace>,
    generation: u64,
    claim: u64,
    attempt: u32,
    tries_left: u32,
    /// Claims lost in a row, each before its work began; left out when there are none.
    #[serde(default, skip_serializing_if = "is_none")]
    lost: u32,
    seq: Option<u64>,
    ticket: Option<u64>,
    rounds: u32,
    cancel: Option<Cancel>,
    dedupe: Option<Dedupe>,
    worker: Option<WorkerId>,
    boot: Option<BootId>,
    phase: Option<Phase>,
    progress: Option<Progress>,
    waiting: Option<FlatWaiting>,
    result: Option<Map<String, Value>>,
    error: Option<JobError>,
    cancelable: bool,
    submitted_at: Timestamp,
    queued_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    timeline: Vec<Moment>,
}

/// For counts that are left out when they are zero.
pub(crate) fn is_none(count: &u32) -> bool {
    *count == 0
}

/// `{"on", "since", "detail"}`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Waiting")]
struct FlatWaiting {
    #[serde(flatten)]
    on: WaitReason,
    since: Timestamp,
}

/// A record whose fields contradict its state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {state} record without {field}")]
pub struct IncompleteRecord {
    state: StateName,
    field: &'static str,
}

impl From<Record> for Flat {
    fn from(record: Record) -> Self {
        let state = record.state.name();
        let cancelable = record.is_cancelable();
        let priority = record.queue.queue().map(Queue::priority);
        let (mut owner, mut phase, mut waiting) = (None, None, None);
        let (mut finished_at, mut result, mut error) = (None, None, None);
        let mut close = |ended: Ended| {
            finished_at = Some(ended.at);
            owner = ended.by;
        };
        match record.state {
            JobState::Queued => {}
            JobState::Waiting(Waiting { on, since }) => waiting = Some(FlatWaiting { on, since }),
            JobState::Running(hold) | JobState::Cancelling(hold) => {
                owner = Some(hold.owner);
                phase = Some(hold.phase);
            }
            JobState::Succeeded(ended, value) => {
                close(ended);
                result = Some(value);
            }
            JobState::Failed(ended, cause) => {
                close(ended);
                error = Some(cause);
            }
            JobState::Cancelled(ended, cause) => {
                close(ended);
                error = cause;
            }
        }
        let (worker, boot) = owner.map(|owner| (owner.worker, owner.boot)).unzip();
        Self {
            id: record.id,
            task: record.task,
            queue: record.queue,
            priority,
            objects: record.objects,
            state,
            params: record.params,
            user: record.user,
            tenant: record.tenant,
            labels: record.labels,
            reason: record.reason,
            after: record.after,
            locks: record.locks,
            if_in_use: record.if_in_use,
            not_before: record.not_before,
            expires_at: record.expires_at,
            timeout_s: record.timeout_s,
            retry: record.retry,
            trace: record.trace,
            generation: record.generation,
            claim: record.claim,
            attempt: record.attempt,
            tries_left: record.tries_left,
            lost: record.lost,
            seq: record.seq,
            ticket: record.ticket,
            rounds: record.rounds,
            cancel: record.cancel,
            dedupe: record.dedupe,
            worker,
            boot,
            phase,
            progress: record.progress,
            waiting,
            result,
            error,
            cancelable,
            submitted_at: record.submitted_at,
            queued_at: record.queued_at,
            started_at: record.started_at,
            finished_at,
            timeline: record.timeline,
        }
    }
}

impl Flat {
    fn split_state(&mut self) -> Result<JobState, IncompleteRecord> {
        let state = self.state;
        let need = |field| IncompleteRecord { state, field };
        let owner = self.worker.take().zip(self.boot.take());
        let owner = owner.map(|(worker, boot)| Owner { worker, boot });
        let phase = self.phase.take();
        let hold = |owner: Option<Owner>| -> Result<Hold, IncompleteRecord> {
            let owner = owner.ok_or(need("worker and boot"))?;
            Ok(Hold {
                owner,
                phase: phase.ok_or(need("phase"))?,
            })
        };
        let finished_at = self.finished_at.take();
        let ended = |by| -> Result<Ended, IncompleteRecord> {
            Ok(Ended {
                at: finished_at.ok_or(need("finished_at"))?,
                by,
            })
        };
        Ok(match state {
            StateName::Queued => JobState::Queued,
            StateName::Waiting => {
                let FlatWaiting { on, since } = self.waiting.take().ok_or(need("waiting"))?;
                JobState::Waiting(Waiting { on, since })
            }
            StateName::Running => JobState::Running(hold(owner)?),
            StateName::Cancelling => JobState::Cancelling(hold(owner)?),
            StateName::Succeeded => {
                JobState::Succeeded(ended(owner)?, self.result.take().unwrap_or_default())
            }
            StateName::Failed => {
                JobState::Failed(ended(owner)?, self.error.take().ok_or(need("error"))?)
            }
            StateName::Cancelled => JobState::Cancelled(ended(owner)?, self.error.take()),
        })
    }
}

impl TryFrom<Flat> for Record {
    type Error = IncompleteRecord;

    fn try_from(mut flat: Flat) -> Result<Self, IncompleteRecord> {
        let state = flat.split_state()?;
        Ok(Self {
            id: flat.id,
            task: flat.task,
            queue: flat.queue,
            objects: flat.objects,
            params: flat.params,
            user: flat.user,
            tenant: flat.tenant,
            labels: flat.labels,
            reason: flat.reason,
            after: flat.after,
            locks: flat.locks,
            if_in_use: flat.if_in_use,
            not_before: flat.not_before,
            expires_at: flat.expires_at,
            timeout_s: flat.timeout_s,
            retry: flat.retry,
            trace: flat.trace,
            generation: flat.generation,
            claim: flat.claim,
            attempt: flat.attempt,
            tries_left: flat.tries_left,
            lost: flat.lost,
            seq: flat.seq,
            ticket: flat.ticket,
            rounds: flat.rounds,
            cancel: flat.cancel,
            dedupe: flat.dedupe,
            progress: flat.progress,
            state,
            submitted_at: flat.submitted_at,
            queued_at: flat.queued_at,
            started_at: flat.started_at,
            timeline: flat.timeline,
        })
    }
}
