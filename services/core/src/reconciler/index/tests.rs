//! What is due when.

use super::*;
use std::time::Duration;
use virtbus_wire::{Envelope, Event, Queue, Record, envelope::Dependency, state::Cancel};

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000).after(Duration::from_secs(seconds))
}

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

fn queued(name: &str) -> Record {
    let queue: Queue = "storage.p.low".parse().unwrap();
    Record::new(id(name), Envelope::bare("ping"), queue.into(), at(0))
}

fn brief(record: &Record) -> Option<Brief> {
    Some(serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap())
}

fn waits(name: &str, on: WaitReason) -> Record {
    queued(name).apply(Event::Wait(on), at(0)).unwrap()
}

#[test]
fn the_end_of_a_job_makes_those_due_that_come_after_it() {
    let mut index = Index::default();
    let on = WaitReason::Dependency {
        job: id("a"),
        state: None,
    };
    let mut record = queued("b");
    record.after = vec![Dependency {
        job: id("a"),
        on: vec![StateName::Succeeded],
    }];
    let record = record.apply(Event::Wait(on), at(0)).unwrap();
    assert_eq!(index.learn(&id("b"), 1, at(0), brief(&record)), [id("b")]);
    assert!(
        index
            .learn(&id("a"), 2, at(0), brief(&queued("a")))
            .is_empty()
    );
    let over = queued("a")
        .apply(Event::Fail(virtbus_wire::JobError::internal("x")), at(1))
        .unwrap();
    assert_eq!(index.learn(&id("a"), 3, at(1), brief(&over)), [id("b")]);
    assert_eq!(index.note(&id("a")), None);
}

#[test]
fn who_comes_after_many_is_due_at_the_last_or_when_it_can_not_come_true() {
    let mut index = Index::default();
    let mut revision = 0;
    let mut learn = |index: &mut Index, record: &Record| {
        revision += 1;
        index.learn(&record.id, revision, at(0), brief(record))
    };
    let before = ["a", "b", "c"];
    for name in before {
        learn(&mut index, &queued(name));
    }
    for (name, on) in [("all", StateName::Succeeded), ("clean", StateName::Failed)] {
        let mut record = queued(name);
        let after = before.iter().map(|name| Dependency {
            job: id(name),
            on: vec![on, StateName::Cancelled],
        });
        record.after = after.collect();
        let on = WaitReason::Dependency {
            job: id("a"),
            state: None,
        };
        let record = record.apply(Event::Wait(on), at(0)).unwrap();
        assert_eq!(learn(&mut index, &record), [id(name)]);
    }
    let failed = |name: &str| {
        let error = virtbus_wire::JobError::internal("x");
        queued(name).apply(Event::Fail(error), at(1)).unwrap()
    };
    // `all` can't come true any more; `clean` still waits for two.
    assert_eq!(learn(&mut index, &failed("b")), [id("all")]);
    assert_eq!(learn(&mut index, &failed("a")), [id("all")]);
    // A retry makes it open again.
    let again = failed("a").apply(Event::Retry, at(2)).unwrap();
    assert!(learn(&mut index, &again).is_empty());
    assert_eq!(learn(&mut index, &failed("c")), [id("all")]);
    assert_eq!(learn(&mut index, &failed("a")), [id("all"), id("clean")]);
    let needed = ["a", "b", "c"].map(id);
    assert_eq!(index.needed(), needed.iter().collect());
}

#[test]
fn an_older_row_changes_nothing() {
    let mut index = Index::default();
    let on = WaitReason::Time {
        until: at(9),
        error: None,
    };
    index.learn(&id("a"), 5, at(5), brief(&waits("a", on)));
    index.learn(&id("a"), 4, at(4), brief(&queued("a")));
    assert_eq!(index.note(&id("a")).unwrap().doing, Doing::UntilTime(at(9)));
    assert_eq!(index.revision, 5);
}

#[test]
fn times_come_in_order() {
    let mut index = Index::default();
    for (name, until) in [("b", 20), ("a", 10), ("c", 30)] {
        let until = at(until);
        let on = WaitReason::Time { until, error: None };
        index.learn(
            &id(name),
            until.as_millis().unsigned_abs(),
            at(0),
            brief(&waits(name, on)),
        );
    }
    assert_eq!(index.next_time(), Some(at(10)));
    assert_eq!(index.due(at(20)), [id("a"), id("b")]);
    assert_eq!(index.next_time(), Some(at(30)));
}

#[test]
fn a_message_of_another_generation_or_queue_is_not_the_jobs() {
    let mut index = Index::default();
    index.learn(&id("a"), 1, at(0), brief(&queued("a")));
    assert!(!index.found(&id("a"), 2, "storage.p.low", 7));
    assert!(!index.found(&id("a"), 1, "storage.p.high", 7));
    assert_eq!(index.note(&id("a")).unwrap().found_in, 0);
    assert!(index.found(&id("a"), 1, "storage.p.low", 7));
    assert_eq!(index.note(&id("a")).unwrap().found_in, 7);
}

/// A job that waits for a lock with this ticket, or was woken from that.
fn in_line(name: &str, ticket: u64, mode: &str, woken: bool) -> Record {
    let mut record = queued(name);
    record.locks = serde_json::from_value(serde_json::json!({ mode: ["x.a"] })).unwrap();
    record.ticket = Some(ticket);
    let (resource, holder, since) = ("x.a".to_owned(), None, None);
    let on = WaitReason::Lock {
        resource,
        holder,
        since,
    };
    let waits = record.apply(Event::Wait(on), at(0)).unwrap();
    if woken {
        waits.apply(Event::Publish { round: false }, at(1)).unwrap()
    } else {
        waits
    }
}

#[test]
fn who_leaves_a_line_makes_those_due_that_stood_behind_it() {
    for woken in [false, true] {
        let mut index = Index::default();
        let line = [
            in_line("a", 1, "exclusive", woken),
            in_line("b", 2, "shared", false),
            in_line("c", 3, "shared", false),
            in_line("d", 4, "exclusive", false),
        ];
        for (revision, record) in (1..).zip(&line) {
            index.learn(&record.id, revision, at(0), brief(record));
        }
        let cancel = Cancel {
            by: None,
            at: at(2),
            force: false,
            reason: None,
        };
        let over = |record: &Record| {
            let over = record.apply(Event::Cancel(cancel.clone()), at(2));
            brief(&over.unwrap())
        };
        // One from the middle changes nothing for those in front of it.
        assert_eq!(index.learn(&id("d"), 5, at(2), over(&line[3])), []);
        let due = index.learn(&id("a"), 6, at(2), over(&line[0]));
        assert_eq!(due, [id("b"), id("c")], "woken: {woken}");
    }
}
