//! The state machine of a job.

use crate::jobs::{after, any_event, at, cancel, claim, queued};
use proptest::prelude::*;
use serde_json::Map;
use std::time::Duration;
use virtbus_wire::{
    Code, Event, JobError, Record, StateName,
    protocol::outcome,
    record::TIMELINE_MAX,
    state::{Phase, Progress, WaitReason},
};

fn error(code: Code) -> JobError {
    JobError::new(code, "it broke")
}

#[test]
fn a_job_without_locks_begins_with_its_claim() {
    let running = after(&queued(), [claim(1, true)]);
    assert_eq!(
        (running.claim, running.attempt, running.tries_left),
        (1, 1, 2)
    );
    let done = after(&running, [Event::Succeed(Map::new())]);
    assert_eq!(done.state.name(), StateName::Succeeded);
}

#[test]
fn a_take_over_always_cleans_first() {
    let taken = after(&queued(), [claim(1, true), claim(2, true)]);
    assert_eq!(taken.state.hold().unwrap().phase, Phase::Clean);
    assert_eq!((taken.claim, taken.attempt), (2, 1));
    let working = after(
        &taken,
        [Event::Enter(Phase::Locks), Event::Enter(Phase::Work)],
    );
    assert_eq!((working.attempt, working.tries_left), (2, 1));
}

#[test]
fn no_attempt_begins_without_a_try_left() {
    let takes = (0..3).flat_map(|n| [claim(n, false), Event::Enter(Phase::Work)]);
    let spent = after(&queued(), takes);
    assert_eq!(spent.tries_left, 0);
    let taken = after(&spent, [claim(9, false)]);
    assert!(taken.apply(Event::Enter(Phase::Work), at(3)).is_err());
    assert_eq!(outcome::worker_lost(&taken).code, Code::WorkerLost);
}

#[test]
fn a_cancel_after_the_fence_comes_too_late() {
    let working = after(&queued(), [claim(1, true)]);
    assert_eq!(
        after(&working, [cancel()]).state.name(),
        StateName::Cancelling
    );
    let committing = after(&working, [Event::Enter(Phase::Commit)]);
    assert!(committing.apply(cancel(), at(3)).is_err());
    assert!(!committing.is_cancelable());
}

#[test]
fn a_cancelling_job_succeeds_only_by_an_effect_that_was_found() {
    let cancelling = after(&queued(), [claim(1, true), cancel(), claim(2, true)]);
    assert_eq!(cancelling.state.name(), StateName::Cancelling);
    assert!(cancelling.apply(Event::Succeed(Map::new()), at(3)).is_err());
    assert!(cancelling.apply(Event::Recover(Map::new()), at(3)).is_ok());
    assert!(cancelling.apply(Event::GiveUp, at(3)).is_ok());
}

#[test]
fn parking_keeps_the_claim_and_the_ticket() {
    let on = WaitReason::Lock {
        resource: "disk.d1".to_owned(),
        holder: None,
        since: None,
    };
    let park = |ticket| Event::Park {
        on: on.clone(),
        refund: false,
        ticket: Some(ticket),
    };
    let parked = after(&queued(), [claim(1, false), park(40)]);
    let again = after(
        &parked,
        [Event::Publish { round: false }, claim(1, false), park(90)],
    );
    assert_eq!((again.claim, again.ticket, again.attempt), (2, Some(40), 0));
    assert_eq!(again.generation, 2);
}

#[test]
fn a_try_is_given_back_on_shutdown_only_if_it_was_begun() {
    let begun = after(&queued(), [claim(1, true), outcome::after_shutdown(at(2))]);
    assert_eq!(begun.tries_left, 3);
    let not_begun = after(&queued(), [claim(1, false), outcome::after_shutdown(at(2))]);
    assert_eq!(not_begun.tries_left, 3);
}

#[test]
fn errors_that_may_pass_are_tried_again_until_none_is_left() {
    let mut job = queued();
    for attempt in 1..=3 {
        job = after(&job, [claim(1, job.claim == 0)]);
        if job.claim > 1 {
            job = after(&job, [Event::Enter(Phase::Work)]);
        }
        let event = outcome::after_failure(&job, error(Code::ToolFailed), at(2), 0.5);
        job = after(&job, [event]);
        if attempt < 3 {
            assert_eq!(job.state.name(), StateName::Waiting);
            job = after(&job, [Event::Publish { round: false }]);
        }
    }
    let virtbus_wire::JobState::Failed(_, end) = &job.state else {
        panic!("{:?}", job.state)
    };
    assert_eq!(end.code, Code::JobAttemptsExhausted);
    assert_eq!(end.detail["cause"], "tool.failed");
}

#[test]
fn what_fails_before_its_work_is_not_tried_for_ever() {
    let mut job = queued();
    for claims in 1..=3 {
        job = after(&job, [claim(1, false)]);
        let event = outcome::after_failure(&job, error(Code::PoolUnreachable), at(2), 0.5);
        job = after(&job, [event]);
        if claims < 3 {
            assert_eq!((job.tries_left, job.attempt), (3 - claims, 0));
            job = after(&job, [Event::Publish { round: false }]);
        }
    }
    let virtbus_wire::JobState::Failed(_, end) = &job.state else {
        panic!("{:?}", job.state)
    };
    assert_eq!(
        (end.code, &end.detail["attempts"]),
        (Code::JobAttemptsExhausted, &3.into())
    );
}

#[test]
fn the_wait_before_a_retry_grows_with_the_attempts_that_failed_and_is_spread() {
    for (failed, jitter, wait_ms) in [
        (1, 0.0, 4_500),
        (1, 0.5, 5_000),
        (1, 1.0, 5_500),
        (2, 0.0, 27_000),
        (2, 0.5, 30_000),
        (2, 1.0, 33_000),
        (3, 0.0, 108_000),
        (3, 0.5, 120_000),
        (3, 1.0, 132_000),
        (4, 0.0, 108_000),
        (4, 0.5, 120_000),
        (4, 1.0, 132_000),
    ] {
        let mut job = queued();
        (job.retry.max_attempts, job.tries_left) = (9, 9);
        for _ in 1..failed {
            job = after(&job, attempt(Code::ToolFailed));
        }
        let job = after(&job, [claim(1, false), Event::Enter(Phase::Work)]);
        let event = outcome::after_failure(&job, error(Code::ToolFailed), at(2), jitter);
        let until = at(2).after(Duration::from_millis(wait_ms));
        let on = WaitReason::Time {
            until,
            error: Some(error(Code::ToolFailed)),
        };
        let expected = Event::Park {
            on,
            refund: false,
            ticket: None,
        };
        assert_eq!(event, expected, "{failed} failed, jitter {jitter}");
    }
}

#[test]
fn an_error_that_cannot_pass_is_final_at_once() {
    let job = after(&queued(), [claim(1, true)]);
    let event = outcome::after_failure(&job, error(Code::DiskExists), at(2), 0.5);
    assert!(matches!(event, Event::Fail(end) if end.code == Code::DiskExists));
}

#[test]
fn a_retry_starts_with_all_tries_and_a_new_generation() {
    let ended = after(
        &queued(),
        [claim(1, true), Event::Fail(error(Code::DiskExists))],
    );
    let again = after(&ended, [Event::Retry]);
    assert_eq!(
        (again.state.name(), again.generation, again.claim),
        (StateName::Queued, 2, 1)
    );
    assert_eq!(
        (again.tries_left, again.ticket, again.progress),
        (3, None, None)
    );
}

#[test]
fn progress_never_goes_back_within_an_attempt() {
    let tell = |p| {
        Event::Progress(Progress {
            percent: Some(p),
            ..Progress::default()
        })
    };
    let job = after(&queued(), [claim(1, true), tell(60.0), tell(20.0)]);
    assert_eq!(job.progress.unwrap().percent, Some(60.0));
}

#[test]
fn progress_that_goes_back_says_only_the_phase_anew() {
    let told = |percent, phase: &str, done, total| Progress {
        percent,
        phase: Some(phase.to_owned()),
        done_bytes: Some(done),
        total_bytes: Some(total),
        ..Progress::default()
    };
    let copied = told(Some(60.0), "copy", 60, 100);
    let back = told(Some(20.0), "verify", 1, 5).after(Some(&copied));
    assert_eq!(back, told(Some(60.0), "verify", 60, 100));
    // What can't be told doesn't take back what was.
    let unknown = told(None, "verify", 1, 5).after(Some(&copied));
    assert_eq!(unknown, back);
    let on = told(Some(101.0), "verify", 100, 100).after(Some(&copied));
    assert_eq!(on, told(Some(100.0), "verify", 100, 100));
    assert_eq!(copied.clone().after(None), copied);
}

#[test]
fn what_is_done_is_done_to_a_hundred_percent() {
    let began = Event::Progress(Progress {
        percent: Some(0.0),
        total_bytes: Some(8),
        ..Progress::default()
    });
    let done = after(
        &queued(),
        [claim(1, true), began, Event::Succeed(Map::new())],
    );
    let progress = done.progress.unwrap();
    assert_eq!(
        (progress.percent, progress.done_bytes),
        (Some(100.0), Some(8))
    );
}

fn reachable() -> impl Strategy<Value = Record> {
    prop::collection::vec(any_event(), 0..40).prop_map(|events| {
        events.into_iter().fold(queued(), |job, event| {
            job.apply(event, at(2)).unwrap_or(job)
        })
    })
}

proptest! {
    #[test]
    fn nothing_but_a_retry_leaves_a_final_state(job in reachable(), event in any_event()) {
        let is_retry = event == Event::Retry;
        let next = job.apply(event, at(3));
        prop_assert!(!job.state.name().is_final() || next.is_err() || is_retry);
    }

    #[test]
    fn numbers_never_go_back(job in reachable(), event in any_event()) {
        if let Ok(next) = job.apply(event, at(3)) {
            prop_assert!(next.generation >= job.generation);
            prop_assert!(next.claim >= job.claim);
            prop_assert!(next.attempt >= job.attempt);
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written(job in reachable()) {
        let json = serde_json::to_string(&job).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), job);
    }

    #[test]
    fn tries_left_stay_within_what_was_asked_for(job in reachable()) {
        prop_assert!(job.tries_left <= job.retry.max_attempts);
    }
}

/// The claims, and the ends of attempts with their codes, as the timeline tells them.
fn told(record: &Record) -> Vec<(Option<u32>, Option<Code>)> {
    let moments = record.timeline.iter();
    let telling = moments.filter(|moment| moment.attempt.is_some() || moment.code.is_some());
    telling
        .map(|moment| (moment.attempt, moment.code))
        .collect()
}

fn attempt(code: Code) -> [Event; 4] {
    let on = WaitReason::Time {
        until: at(9),
        error: Some(error(code)),
    };
    let park = Event::Park {
        on,
        refund: false,
        ticket: None,
    };
    let publish = Event::Publish { round: false };
    [claim(1, false), Event::Enter(Phase::Work), park, publish]
}

#[test]
fn each_attempt_is_in_the_timeline_with_how_it_ended() {
    let tried = after(&queued(), attempt(Code::ToolFailed));
    let tried = after(&tried, attempt(Code::DiskBusy));
    let spent = [
        claim(1, false),
        Event::Enter(Phase::Work),
        Event::Fail(error(Code::JobAttemptsExhausted)),
    ];
    let failed = after(&tried, spent);
    let expected = [
        (Some(1), None),
        (None, Some(Code::ToolFailed)),
        (Some(2), None),
        (None, Some(Code::DiskBusy)),
        (Some(3), None),
        (None, Some(Code::JobAttemptsExhausted)),
    ];
    assert_eq!(told(&failed), expected);
}

#[test]
fn a_long_timeline_loses_its_waits_before_its_attempts() {
    let tried = after(&queued(), attempt(Code::ToolFailed));
    let on = WaitReason::Lock {
        resource: "disk.d".to_owned(),
        holder: None,
        since: None,
    };
    let waits = (0..TIMELINE_MAX).flat_map(|_| {
        let park = Event::Park {
            on: on.clone(),
            refund: true,
            ticket: Some(1),
        };
        [claim(1, false), park, Event::Publish { round: false }]
    });
    let waited = after(&tried, waits);
    let tried = after(&waited, attempt(Code::DiskBusy));
    assert_eq!(tried.timeline.len(), TIMELINE_MAX);
    assert_eq!(tried.timeline[0], queued().timeline[0]);
    let told = told(&tried);
    assert_eq!(told[..2], [(Some(1), None), (None, Some(Code::ToolFailed))]);
    assert_eq!(told.last(), Some(&(None, Some(Code::DiskBusy))));
}
