use super::*;
use serde_json::{Map, json};
use virtbus_wire::{
    BootId, Envelope, Queue, StateName, Timestamp,
    state::{Owner, WaitReason},
};

/// A job on `storage.p.low`, or on another queue, as these events leave it.
fn job(queue: &str, events: Vec<Event>) -> Record {
    let now = Timestamp::now();
    let queue: Queue = queue.parse().unwrap();
    let job = Record::new(
        "j".parse().unwrap(),
        Envelope::bare("ping"),
        queue.into(),
        now,
    );
    let next = |job: Record, event| job.apply(event, now).unwrap();
    events.into_iter().fold(job, next)
}

fn claim(begin: bool) -> Event {
    let owner = Owner {
        worker: "st-1".parse().unwrap(),
        boot: BootId::default(),
    };
    Event::Claim {
        owner,
        seq: 1,
        begin,
    }
}

fn stop(force: bool) -> state::Cancel {
    state::Cancel {
        by: Some("alice".to_owned()),
        at: Timestamp::now(),
        force,
        reason: None,
    }
}

fn waiting() -> Event {
    let until = Timestamp::now();
    Event::Wait(WaitReason::Time { until, error: None })
}

fn done() -> Vec<Event> {
    vec![claim(true), Event::Succeed(Map::new())]
}

fn told(force: bool) -> Vec<Event> {
    vec![claim(true), Event::Cancel(stop(force))]
}

#[test]
fn a_cancel_comes_to_what_the_state_says() {
    let commit = vec![claim(true), Event::Enter(Phase::Commit)];
    use CancelOutcome as Is;
    for (events, only_waiting, force, outcome, happens) in [
        (vec![], false, false, Is::Cancelled, true),
        (vec![], true, false, Is::Cancelled, true),
        (vec![waiting()], true, false, Is::Cancelled, true),
        (vec![claim(true)], false, false, Is::Cancelling, true),
        (vec![claim(false)], false, true, Is::Cancelling, true),
        (vec![claim(true)], true, true, Is::AlreadyStarted, false),
        (commit.clone(), false, true, Is::TooLate, false),
        (commit, true, false, Is::AlreadyStarted, false),
        (told(false), false, false, Is::Cancelling, false),
        (told(false), false, true, Is::Cancelling, true),
        (told(true), false, true, Is::Cancelling, false),
        (told(false), true, true, Is::AlreadyStarted, false),
        (done(), false, true, Is::AlreadyFinished, false),
        (done(), true, false, Is::AlreadyFinished, false),
    ] {
        let job = job("storage.p.low", events);
        let request = stop(force);
        let expected = match happens {
            true => Verdict::Happens(Event::Cancel(request.clone()), outcome),
            false => Verdict::Stands(outcome),
        };
        assert_eq!(cancelled(&job, only_waiting, &request), expected);
        if let Verdict::Happens(event, _) = expected {
            let after = job.apply(event, Timestamp::now()).unwrap();
            assert_eq!(after.cancel.unwrap().by.as_deref(), Some("alice"));
        }
    }
}

#[test]
fn a_priority_changes_only_of_what_nobody_took() {
    use PriorityOutcome as Is;
    let high: Queue = "storage.p.high".parse().unwrap();
    let happens = || Verdict::Happens(Event::Move(high.clone()), Is::Changed);
    for (queue, events, verdict) in [
        ("storage.p.low", vec![], happens()),
        ("storage.p.low", vec![waiting()], happens()),
        ("storage.p.high", vec![], Verdict::Stands(Is::Changed)),
        (
            "storage.p.high",
            vec![waiting()],
            Verdict::Stands(Is::Changed),
        ),
        (
            "storage.p.low",
            vec![claim(true)],
            Verdict::Stands(Is::AlreadyStarted),
        ),
        (
            "storage.p.low",
            told(false),
            Verdict::Stands(Is::AlreadyStarted),
        ),
        (
            "storage.p.low",
            done(),
            Verdict::Stands(Is::AlreadyFinished),
        ),
    ] {
        let job = job(queue, events);
        assert_eq!(moved(&job, Priority::High).unwrap(), verdict, "{queue}");
    }
    let error = moved(&job("core", vec![]), Priority::High).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
}

#[test]
fn a_waiting_job_gets_its_priority_without_a_publication() {
    let before = job("storage.p.low", vec![waiting()]);
    let after = before
        .apply(
            Event::Move("storage.p.high".parse().unwrap()),
            Timestamp::now(),
        )
        .unwrap();
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.state.name(), StateName::Waiting);
    assert_eq!(json!(after)["priority"], "high");
}

#[test]
fn only_a_final_job_is_retried() {
    for events in [vec![], vec![waiting()], vec![claim(true)], told(false)] {
        let verdict = retried(&job("storage.p.low", events));
        assert_eq!(verdict, Verdict::Stands(RetryOutcome::NotFinal));
    }
    let mut ended = told(false);
    ended.push(Event::GiveUp);
    for events in [done(), ended, vec![Event::Fail(JobError::internal("x"))]] {
        let verdict = retried(&job("storage.p.low", events));
        let expected = Verdict::Happens(Event::Retry, RetryOutcome::Queued);
        assert_eq!(verdict, expected);
    }
}
