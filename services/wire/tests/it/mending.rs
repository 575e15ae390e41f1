//! What core mends, and what it leaves alone.

use crate::jobs::{after, at, cancel, claim, job, queued};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};
use virtbus_wire::{
    Code, Event, JobError, JobId, Record, StateName, Timestamp,
    envelope::Dependency,
    protocol::{
        delivery::Message,
        lock::{Holder, Lock, Mode, Waiter},
        reconcile::{AGE_MIN, DEPENDENCY_PATIENCE, Seen, Stray, cycles, mend, stray, tidy},
    },
    state::{Phase, WaitReason},
};

const PUBLISH: Option<Event> = Some(Event::Publish { round: false });

fn seen(states: &BTreeMap<JobId, StateName>) -> Seen<'_> {
    Seen {
        age: AGE_MIN,
        has_message: Some(true),
        lock_is_free: None,
        all_registered: true,
        owner_is_alive: true,
        states,
    }
}

fn mended(record: &Record, change: impl FnOnce(&mut Seen<'_>), now: Timestamp) -> Option<Event> {
    let states = BTreeMap::new();
    let mut seen = seen(&states);
    change(&mut seen);
    mend(record, &seen, now)
}

fn parked(on: WaitReason) -> Record {
    let park = Event::Park {
        on,
        refund: false,
        ticket: Some(4),
    };
    after(&queued(), [claim(1, false), park])
}

#[test]
fn a_queued_job_is_published_again_only_when_its_message_is_gone_for_long() {
    let record = queued();
    let lost = |seen: &mut Seen<'_>| seen.has_message = Some(false);
    assert_eq!(mended(&record, lost, at(60)), PUBLISH);
    assert_eq!(mended(&record, |_| {}, at(60)), None);
    assert_eq!(
        mended(&record, |seen| seen.has_message = None, at(60)),
        None
    );
    let young = |seen: &mut Seen<'_>| {
        seen.has_message = Some(false);
        seen.age = AGE_MIN - Duration::from_millis(1);
    };
    assert_eq!(mended(&record, young, at(60)), None);
}

#[test]
fn a_job_whose_owner_died_is_published_again_with_the_same_owner() {
    let running = after(&queued(), [claim(1, true)]);
    let cancelling = after(&running, [cancel()]);
    for record in [running, cancelling] {
        for (message, alive, expected) in [
            (Some(false), false, PUBLISH),
            (Some(true), false, None),
            (Some(false), true, None),
            (None, false, None),
        ] {
            let change = |seen: &mut Seen<'_>| {
                (seen.has_message, seen.owner_is_alive) = (message, alive);
            };
            assert_eq!(mended(&record, change, at(60)), expected);
        }
        let again = after(&record, [Event::Publish { round: false }]);
        assert_eq!(again.state, record.state);
        assert_eq!(again.generation, record.generation + 1);
    }
}

#[test]
fn a_time_that_has_come_wakes_and_one_that_has_not_does_not() {
    let error = Some(JobError::new(Code::ToolFailed, "it broke"));
    for error in [None, error] {
        let record = parked(WaitReason::Time {
            until: at(50),
            error,
        });
        assert_eq!(mended(&record, |_| {}, at(49)), None);
        assert_eq!(mended(&record, |_| {}, at(50)), PUBLISH);
    }
}

#[test]
fn a_job_that_waits_for_room_asks_again_after_a_while() {
    let needs = [("slot".to_owned(), "long".into())].into_iter().collect();
    let record = after(&queued(), [Event::Wait(WaitReason::Capacity { needs })]);
    assert_eq!(mended(&record, |_| {}, at(11)), None);
    assert_eq!(mended(&record, |_| {}, at(12)), PUBLISH);
}

#[test]
fn a_lock_that_would_be_granted_wakes() {
    let record = parked(WaitReason::Lock {
        resource: "disk.d1".to_owned(),
        holder: None,
        since: None,
    });
    assert_eq!(mended(&record, |_| {}, at(60)), None);
    assert_eq!(
        mended(&record, |seen| seen.lock_is_free = Some(false), at(60)),
        None
    );
    assert_eq!(
        mended(&record, |seen| seen.lock_is_free = Some(true), at(60)),
        PUBLISH
    );
}

fn waits_for(name: &str) -> Record {
    let on = vec![StateName::Succeeded];
    let mut record = queued();
    record.after = vec![Dependency { job: job(name), on }];
    let state = None;
    after(
        &record,
        [Event::Wait(WaitReason::Dependency {
            job: job(name),
            state,
        })],
    )
}

#[test]
fn a_dependency_wakes_drops_or_is_given_up() {
    let record = waits_for("a");
    let with = |state: Option<StateName>, all_registered, now| {
        let states = state.map(|state| (job("a"), state)).into_iter().collect();
        let seen = Seen {
            all_registered,
            ..seen(&states)
        };
        mend(&record, &seen, now)
    };
    assert_eq!(with(Some(StateName::Succeeded), true, at(3)), PUBLISH);
    assert_eq!(with(Some(StateName::Running), true, at(9_000)), None);
    let Some(Event::Drop(error)) = with(Some(StateName::Cancelled), true, at(3)) else {
        panic!("it can't come true any more");
    };
    assert_eq!(error.code, Code::JobDependencyUnmet);
    let patience = at(2 + DEPENDENCY_PATIENCE.as_secs());
    assert_eq!(with(None, true, at(30)), None);
    assert_eq!(
        with(None, false, patience),
        None,
        "it may still lie in a stream"
    );
    let Some(Event::Fail(error)) = with(None, true, patience) else {
        panic!("nobody will come");
    };
    assert_eq!(error.code, Code::JobDependencyMissing);
}

#[test]
fn a_queued_job_that_has_to_wait_is_parked_without_a_worker() {
    let mut record = queued();
    record.not_before = Some(at(100));
    let wait = Event::Wait(WaitReason::Time {
        until: at(100),
        error: None,
    });
    assert_eq!(mended(&record, |_| {}, at(3)), Some(wait.clone()));
    let waiting = after(&record, [wait]);
    assert_eq!(mended(&waiting, |_| {}, at(99)), None);
    assert_eq!(mended(&waiting, |_| {}, at(100)), PUBLISH);
}

#[test]
fn a_job_whose_time_to_begin_is_over_fails_from_queued_and_from_waiting() {
    let mut record = queued();
    record.expires_at = Some(at(100));
    let waiting = after(
        &record,
        [Event::Wait(WaitReason::Time {
            until: at(500),
            error: None,
        })],
    );
    for record in [record, waiting] {
        let Some(Event::Fail(error)) = mended(&record, |_| {}, at(100)) else {
            panic!("{:?}", record.state);
        };
        assert_eq!(error.code, Code::JobExpired);
    }
}

#[test]
fn final_jobs_are_left_alone() {
    let failed = after(&queued(), [Event::Fail(JobError::internal("x"))]);
    let lost = |seen: &mut Seen<'_>| seen.has_message = Some(false);
    assert_eq!(mended(&failed, lost, at(9_000)), None);
}

fn message(generation: u64) -> Message {
    Message {
        generation,
        queue: "storage.p.low".parse().unwrap(),
        seq: 7,
    }
}

#[test]
fn messages_without_a_purpose_are_deleted_once_they_are_old() {
    let failed = after(&queued(), [Event::Fail(JobError::internal("x"))]);
    let running = after(&queued(), [claim(1, true)]);
    let again = after(&queued(), [Event::Publish { round: false }]);
    let elsewhere = after(&queued(), [Event::Move("storage.p.high".parse().unwrap())]);
    let waiting = waits_for("a");
    let dead = |_: &_| false;
    for (record, generation, expected) in [
        (None, 1, Stray::Register),
        (None, 2, Stray::Delete),
        (Some(&failed), 1, Stray::Delete),
        (Some(&queued()), 1, Stray::Keep),
        (Some(&queued()), 2, Stray::Keep),
        (Some(&again), 1, Stray::Delete),
        (Some(&elsewhere), 1, Stray::Delete),
        (Some(&waiting), 1, Stray::Delete),
        (Some(&running), 1, Stray::Keep),
    ] {
        let found = |age| {
            stray(
                record.map(|r| (r, AGE_MIN)),
                &message(generation),
                age,
                dead,
            )
        };
        assert_eq!(found(AGE_MIN), expected, "{record:?} {generation}");
        let young = match expected {
            Stray::Register => Stray::Register,
            Stray::Keep | Stray::Delete => Stray::Keep,
        };
        assert_eq!(found(Duration::ZERO), young);
    }
}

#[test]
fn locks_keep_only_who_may_hold_or_wait() {
    let holder = |name: &str, claim| Holder {
        job: job(name),
        claim,
        since: None,
    };
    let waiter = |name: &str, ticket| Waiter {
        job: job(name),
        ticket,
        mode: Mode::Exclusive,
        woken_at: None,
    };
    let of_job = |id: &JobId| match id.as_str() {
        "runs" => Some(StateName::Running),
        "waits" => Some(StateName::Waiting),
        "over" => Some(StateName::Succeeded),
        _ => None,
    };
    let lock = Lock {
        exclusive: Some(holder("over", 2)),
        shared: vec![
            holder("runs", 2),
            holder("runs", 3),
            holder("waits", 1),
            holder("gone", 1),
        ],
        waiters: vec![
            waiter("waits", 1),
            waiter("over", 2),
            waiter("gone", 3),
            waiter("runs", 4),
        ],
        beyond: None,
    };
    let tidied = tidy(&lock, of_job);
    assert_eq!(tidied.exclusive, None);
    // An older claim's too: what it did is looked at under its lock.
    assert_eq!(tidied.shared, [holder("runs", 2), holder("runs", 3)]);
    assert_eq!(tidied.waiters, [waiter("waits", 1), waiter("runs", 4)]);
    assert_eq!(tidy(&tidied, of_job), tidied);
}

#[test]
fn the_youngest_of_a_circle_ends_it() {
    let waits = |edges: &[(&str, u64, &[&str])]| -> BTreeMap<_, _> {
        let wait = |(name, time, after): &(&str, u64, &[&str])| {
            (
                job(name),
                (at(*time), after.iter().map(|name| job(name)).collect()),
            )
        };
        edges.iter().map(wait).collect()
    };
    assert_eq!(cycles(&waits(&[("a", 1, &["b"]), ("b", 2, &["c"])])), []);
    let found = cycles(&waits(&[
        ("a", 1, &["b"]),
        ("b", 9, &["c"]),
        ("c", 2, &["a"]),
        ("d", 10, &["a"]),
    ]));
    let [(youngest, circle)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!((youngest.as_str(), circle.len()), ("b", 3));
}

proptest! {
    #[test]
    fn without_the_failed_ones_nobody_waits_in_a_circle(
        edges in prop::collection::vec((0..12u8, 0..12u8, 0..5u64), 0..40),
    ) {
        let name = |number: u8| job(&format!("j{number}"));
        let mut waits: BTreeMap<JobId, (Timestamp, Vec<JobId>)> = BTreeMap::new();
        for (from, to, time) in edges {
            let wait = waits.entry(name(from)).or_insert_with(|| (at(time), Vec::new()));
            wait.1.push(name(to));
        }
        let mut left = waits.clone();
        for (youngest, circle) in cycles(&waits) {
            prop_assert!(circle.contains(&youngest));
            left.remove(&youngest);
        }
        prop_assert_eq!(cycles(&left), []);
    }

    #[test]
    fn what_is_mended_is_legal(phase in 0..3usize, lost: bool, alive: bool, free: bool) {
        let phases = [Phase::Locks, Phase::Work, Phase::Commit];
        let mut running = after(&queued(), [claim(1, false)]);
        for next in phases.into_iter().take(phase + 1).skip(1) {
            running = after(&running, [Event::Enter(next)]);
        }
        for record in [queued(), running, waits_for("a")] {
            let change = |seen: &mut Seen<'_>| {
                seen.has_message = Some(!lost);
                seen.owner_is_alive = alive;
                seen.lock_is_free = Some(free);
            };
            if let Some(event) = mended(&record, change, at(100)) {
                prop_assert!(record.apply(event, at(100)).is_ok());
            }
        }
    }
}
