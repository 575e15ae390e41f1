//! How an attempt ends: what becomes of a job whose work failed.

use crate::{
    error::{Code, JobError},
    protocol::poison::is_poison,
    record::Record,
    state::{Event, Phase, WaitReason},
    time::Timestamp,
};
use std::time::Duration;

/// The wait before the second, third and each later attempt.
pub const BACKOFF: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
];

/// The wait before the next attempt, when `failed` attempts have failed. `jitter` is from 0 to 1
/// and spreads the wait over 20 % around its middle.
#[must_use]
pub fn backoff(failed: u32, jitter: f64) -> Duration {
    let step = (failed.max(1) as usize - 1).min(BACKOFF.len() - 1);
    BACKOFF[step].mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0))
}

/// What becomes of a running job whose attempt failed and was cleaned up.
///
/// An error that may pass parks the job until its next attempt; the last one ends it with
/// `job.attempts_exhausted` and the code in `detail.cause`; any other error is final at once.
#[must_use]
pub fn after_failure(record: &Record, error: JobError, now: Timestamp, jitter: f64) -> Event {
    if !error.retryable {
        return Event::Fail(error);
    }
    // A claim that failed before its work uses up a try as well.
    let began = record
        .state
        .hold()
        .is_some_and(|hold| hold.phase >= Phase::Work);
    let left = record.tries_left.saturating_sub(u32::from(!began));
    let failed = record.retry.max_attempts.saturating_sub(left);
    if left == 0 {
        let message = format!("gave up after {failed} attempts: {}", error.message);
        let exhausted = JobError::new(Code::JobAttemptsExhausted, message)
            .with("cause", error.code.as_str())
            .with("attempts", failed);
        return Event::Fail(exhausted);
    }
    let until = now.after(backoff(failed, jitter));
    let on = WaitReason::Time {
        until,
        error: Some(error),
    };
    Event::Park {
        on,
        refund: false,
        ticket: None,
    }
}

/// What becomes of a running job whose worker was told to stop: cleaned up, its try given back,
/// ready at once.
#[must_use]
pub fn after_shutdown(now: Timestamp) -> Event {
    let error = JobError::new(Code::WorkerShutdown, "the worker was stopped");
    let on = WaitReason::Time {
        until: now,
        error: Some(error),
    };
    Event::Park {
        on,
        refund: true,
        ticket: None,
    }
}

/// The end of a job whose last attempt's worker died, or of whose workers each died before its work.
#[must_use]
pub fn worker_lost(record: &Record) -> JobError {
    if is_poison(record) {
        let lost = record.lost;
        let message = format!("{lost} workers in a row were lost before its work began");
        return JobError::new(Code::WorkerLost, message).with("claims", lost);
    }
    JobError::new(Code::WorkerLost, "the worker of the last attempt died")
        .with("attempts", record.attempt)
}
