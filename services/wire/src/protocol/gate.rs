//! What is looked at before a claim: time and dependencies.
//!
//! Core asks when it registers a job, the worker when it meets one before its claim, and core
//! again for each job that waits.

use crate::{
    error::{Code, JobError},
    id::JobId,
    protocol::arrival::expired_error,
    record::Record,
    state::{StateName, WaitReason},
    time::Timestamp,
};

/// What stands between a job and its first claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// It waits for this.
    Wait(WaitReason),
    /// It ends with this error: `failed`.
    Fail(JobError),
    /// What it comes after ended otherwise than asked for: `cancelled`.
    Drop(JobError),
}

/// Whether it's too late for the first start of a job's work.
#[must_use]
pub fn has_expired(record: &Record, now: Timestamp) -> bool {
    record.attempt == 0 && record.expires_at.is_some_and(|end| end <= now)
}

/// Looks at a job that is `queued`, or waits for a time or for another job. `state_of` gives the
/// state of a job it comes after, none for one that nobody has seen yet.
#[must_use]
pub fn gate(
    record: &Record,
    now: Timestamp,
    state_of: impl Fn(&JobId) -> Option<StateName>,
) -> Gate {
    if has_expired(record, now) {
        return Gate::Fail(expired_error());
    }
    if looks_at_dependencies(record) {
        let gate = dependencies(record, state_of);
        if gate != Gate::Open {
            return gate;
        }
    }
    match record.not_before {
        Some(until) if record.attempt == 0 && until > now => {
            Gate::Wait(WaitReason::Time { until, error: None })
        }
        Some(_) | None => Gate::Open,
    }
}

/// Whether `after` still matters: not once a worker had the job, nor after a retry.
#[must_use]
pub fn looks_at_dependencies(record: &Record) -> bool {
    let was_over = || record.timeline.iter().any(|moment| moment.state.is_final());
    !record.after.is_empty() && record.claim == 0 && !was_over()
}

fn dependencies(record: &Record, state_of: impl Fn(&JobId) -> Option<StateName>) -> Gate {
    let mut open = None;
    for dependency in &record.after {
        let state = state_of(&dependency.job);
        match state {
            Some(state) if dependency.on.contains(&state) => {}
            Some(state) if state.is_final() => {
                let message = format!("{} ended {state}", dependency.job);
                let unmet = JobError::new(Code::JobDependencyUnmet, message)
                    .with("job", dependency.job.as_str())
                    .with("state", state.as_str());
                return Gate::Drop(unmet);
            }
            Some(_) | None => {
                open.get_or_insert_with(|| WaitReason::Dependency {
                    job: dependency.job.clone(),
                    state,
                });
            }
        }
    }
    open.map_or(Gate::Open, Gate::Wait)
}
