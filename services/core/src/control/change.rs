//! `virtbus.jobs.cancel`, `priority`, `retry`: a change of the record, and what follows from it.
//!
//! The rules are pure: a record in, an event and an answer out. The change is a compare-and-set;
//! whoever comes between makes the rule be asked again. The answer is true from then on: what is
//! published or deleted afterwards is done again by the reconciler should it fail here.

use super::{Caller, Failed, jobs, messages};
use crate::service::Stores;
use virtbus_bus::{
    WriteError,
    jobs::{ChangeError, PublishError},
};
use virtbus_wire::{
    Code, Event, JobError, JobId, JobState, Priority, Record,
    control::{
        Cancel, CancelOutcome, Cancelled, ChangePriority, OfJob, PriorityAnswer, PriorityOutcome,
        RetryAnswer, RetryOutcome,
    },
    protocol::arrival::unknown_queue,
    state::{self, Phase},
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 16;

/// What a request comes to, of a job as it is.
#[derive(Debug, Clone, PartialEq)]
enum Verdict<T> {
    /// The job stays as it is.
    Stands(T),
    /// This happens to it.
    Happens(Event, T),
}

/// What a request came to.
struct Outcome<T> {
    answer: T,
    /// The job as the rule saw it.
    before: Record,
    /// As it is since, if it was changed.
    after: Option<Record>,
}

/// Asks the rule until nobody comes between. `None` for a job that isn't there.
async fn settle<T>(
    stores: &Stores,
    id: &JobId,
    rule: impl Fn(&Record) -> Result<Verdict<T>, JobError>,
) -> Result<Option<Outcome<T>>, Failed> {
    for _ in 0..TRIES_MAX {
        let Some(entry) = jobs::find(stores, id).await? else {
            return Ok(None);
        };
        let (event, answer) = match rule(&entry.value)? {
            Verdict::Happens(event, answer) => (event, answer),
            Verdict::Stands(answer) => {
                return Ok(Some(Outcome {
                    answer,
                    before: entry.value,
                    after: None,
                }));
            }
        };
        match stores.jobs.change(&entry, event).await {
            Ok(after) => {
                return Ok(Some(Outcome {
                    answer,
                    before: entry.value,
                    after: Some(after.value),
                }));
            }
            // Somebody came between: look again.
            Err(ChangeError::Illegal(_) | ChangeError::Write(WriteError::Conflict(_))) => {}
            Err(ChangeError::Write(error)) => return Err(error.into()),
        }
    }
    Err(WriteError::Conflict(id.to_string()).into())
}

/// Cancels a job: one that nobody runs ends at once, of the others the worker is told.
pub(super) async fn cancel(
    stores: &Stores,
    asked: Cancel,
    caller: &Caller,
) -> Result<Cancelled, Failed> {
    let request = state::Cancel {
        by: caller.by.clone(),
        at: stores.bus.now(),
        force: asked.force,
        reason: None,
    };
    let rule = |job: &Record| Ok(cancelled(job, asked.only_waiting, &request));
    let Some(outcome) = settle(stores, &asked.id, rule).await? else {
        let outcome = CancelOutcome::Unknown;
        return Ok(Cancelled { outcome });
    };
    let was_queued = matches!(outcome.before.state, JobState::Queued);
    if was_queued && outcome.after.is_some() {
        messages::remove(stores, &outcome.before).await;
    }
    let outcome = outcome.answer;
    Ok(Cancelled { outcome })
}

/// What a cancel of a job in this state comes to.
fn cancelled(job: &Record, only_waiting: bool, request: &state::Cancel) -> Verdict<CancelOutcome> {
    let happens = |outcome| Verdict::Happens(Event::Cancel(request.clone()), outcome);
    match &job.state {
        JobState::Queued | JobState::Waiting(_) => happens(CancelOutcome::Cancelled),
        JobState::Running(_) | JobState::Cancelling(_) if only_waiting => {
            Verdict::Stands(CancelOutcome::AlreadyStarted)
        }
        JobState::Running(hold) if hold.phase >= Phase::Commit => {
            Verdict::Stands(CancelOutcome::TooLate)
        }
        JobState::Running(_) => happens(CancelOutcome::Cancelling),
        JobState::Cancelling(_) => {
            let was_forced = job.cancel.as_ref().is_some_and(|cancel| cancel.force);
            if request.force && !was_forced {
                happens(CancelOutcome::Cancelling)
            } else {
                Verdict::Stands(CancelOutcome::Cancelling)
            }
        }
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
            Verdict::Stands(CancelOutcome::AlreadyFinished)
        }
    }
}

/// Gives a job another priority. One that waits gets it in its record alone; one that is queued
/// is published there, and the older message is nobody's from the change on.
pub(super) async fn priority(
    stores: &Stores,
    asked: ChangePriority,
) -> Result<PriorityAnswer, Failed> {
    let rule = |job: &Record| moved(job, asked.priority);
    let Some(outcome) = settle(stores, &asked.id, rule).await? else {
        let outcome = PriorityOutcome::Unknown;
        return Ok(PriorityAnswer { outcome, job: None });
    };
    if let Some(after) = &outcome.after {
        publish_if_new(stores, &outcome.before, after).await;
    }
    let is_changed = outcome.answer == PriorityOutcome::Changed;
    let job = outcome.after.unwrap_or(outcome.before);
    Ok(PriorityAnswer {
        outcome: outcome.answer,
        job: is_changed.then(|| Box::new(job)),
    })
}

/// What a change of priority comes to.
fn moved(job: &Record, priority: Priority) -> Result<Verdict<PriorityOutcome>, JobError> {
    match &job.state {
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
            return Ok(Verdict::Stands(PriorityOutcome::AlreadyFinished));
        }
        JobState::Queued | JobState::Waiting(_) => {}
        JobState::Running(_) | JobState::Cancelling(_) => {}
    }
    let queue = job.queue.queue();
    let Some(next) = queue.and_then(|queue| queue.with_priority(priority)) else {
        let message = format!("the queue {} has no priorities", job.queue);
        return Err(JobError::new(Code::Conflict, message).with("job", job.id.as_str()));
    };
    if job.state.hold().is_some() {
        return Ok(Verdict::Stands(PriorityOutcome::AlreadyStarted));
    }
    let is_there = queue == Some(&next);
    Ok(match is_there {
        true => Verdict::Stands(PriorityOutcome::Changed),
        false => Verdict::Happens(Event::Move(next), PriorityOutcome::Changed),
    })
}

/// Runs a final job again, under the same id.
pub(super) async fn retry(stores: &Stores, asked: OfJob) -> Result<RetryAnswer, Failed> {
    if let Some(entry) = stores.jobs.get_latest(&asked.id).await? {
        let address = &entry.value.queue;
        let is_served = match address.queue() {
            Some(queue) => stores.catalogue.knows(queue).await?,
            None => false,
        };
        // Nobody would ever see its message.
        if entry.value.state.name().is_final() && !is_served {
            return Err(unknown_queue(address).into());
        }
    }
    let Some(outcome) = settle(stores, &asked.id, |job| Ok(retried(job))).await? else {
        let outcome = RetryOutcome::Unknown;
        return Ok(RetryAnswer { outcome });
    };
    if let Some(after) = &outcome.after {
        publish_if_new(stores, &outcome.before, after).await;
    }
    let outcome = outcome.answer;
    Ok(RetryAnswer { outcome })
}

/// What a retry comes to.
fn retried(job: &Record) -> Verdict<RetryOutcome> {
    if job.state.name().is_final() {
        Verdict::Happens(Event::Retry, RetryOutcome::Queued)
    } else {
        Verdict::Stands(RetryOutcome::NotFinal)
    }
}

/// Publishes a job whose change raised its generation, and deletes the older message. Either may
/// fail: the reconciler publishes what is missing and deletes what is over.
pub(super) async fn publish_if_new(stores: &Stores, before: &Record, after: &Record) {
    if after.generation == before.generation {
        return;
    }
    let job = &after.id;
    match stores.jobs.publish(after).await {
        Ok(_) => {}
        Err(PublishError::Full(queue)) => {
            tracing::warn!(%job, queue, "the queue is full: published later");
        }
        Err(PublishError::Bus(error)) => tracing::warn!(%job, %error, "published later"),
    }
    if matches!(before.state, JobState::Queued) {
        messages::remove(stores, before).await;
    }
}

#[cfg(test)]
mod tests;
