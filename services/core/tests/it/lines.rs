//! Locks, and those in line for them: what core frees, fills up and wakes.

use crate::mending::{claimed, dead};
use crate::stack::{Stack, until};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;
use std::time::Duration;
use virtbus_bus::{Bucket, Entry, locks};
use virtbus_wire::{
    Event, Record, StateName, Timestamp,
    catalog::DiskRecord,
    protocol::lock::{Holder, Lock, Mode, Waiter},
    state::{Cancel, WaitReason},
};

#[tokio::test]
async fn a_lock_of_a_job_that_is_over_is_freed_and_who_waits_for_it_wakes() {
    let (stack, _core) = Stack::start().await;
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let lock = Lock {
        exclusive: Some(Holder {
            job: "long-gone".parse().unwrap(),
            claim: 1,
            since: None,
        }),
        shared: Vec::new(),
        waiters: vec![Waiter {
            job: "waits".parse().unwrap(),
            ticket: 5,
            mode: Mode::Exclusive,
            woken_at: None,
        }],
        beyond: None,
    };
    locks.create("disk.d1", &lock).await.unwrap();
    park(&stack, "waits", ("disk.d1", Some("job.long-gone")), 5).await;
    // On that very change, long before the next sweep.
    let woken = stack.record("waits", StateName::Queued).await;
    assert_eq!(woken.value.generation, 2);
    let lock = locks.get_latest("disk.d1").await.unwrap().unwrap().value;
    assert!(lock.waiters[0].woken_at.is_some());
    until("the holder is gone", async || {
        let found = locks
            .get_latest("disk.d1")
            .await
            .map_err(|error| error.to_string())?;
        let freed = found
            .as_ref()
            .is_none_or(|entry| entry.value.exclusive.is_none());
        if freed {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

/// Makes a job wait for a lock, with its holder, in whose line it has this place.
pub(crate) async fn park(
    stack: &Stack,
    id: &str,
    (resource, holder): (&str, Option<&str>),
    ticket: u64,
) {
    let job = json!({"id": id, "task": "ping"}).to_string();
    let seq = stack.publish("storage.default.low", job).await;
    let entry = claimed(stack, id, seq, false).await;
    let park = Event::Park {
        on: WaitReason::Lock {
            resource: resource.to_owned(),
            holder: holder.map(str::to_owned),
            since: None,
        },
        refund: false,
        ticket: Some(ticket),
    };
    stack.jobs.change(&entry, park).await.unwrap();
}

/// Far less than the age that a sweep lets a lock or a wait come to.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Of so many times one after the other one is in time: the machine may stop for a while, but a
/// core that is slow is slow each time.
const TRIES: usize = 3;

#[tokio::test]
async fn who_is_cancelled_in_line_lets_the_next_go_on_at_once() {
    let (stack, _core) = Stack::start().await;
    let mut delays: Vec<Duration> = Vec::new();
    while delays.iter().all(|delay| *delay >= AT_ONCE) {
        assert!(delays.len() < TRIES, "it is woken at once: {delays:?}");
        delays.push(woken_by_a_cancel(&stack, delays.len()).await);
    }
}

/// How long the next in a line waits on after the one before it was cancelled.
async fn woken_by_a_cancel(stack: &Stack, number: usize) -> Duration {
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let holder = |id: &str| Holder {
        job: id.parse().unwrap(),
        claim: 1,
        since: None,
    };
    let [holds, first, second] = ["holds", "first", "second"].map(|id| format!("{id}-{number}"));
    let resource = format!("disk.d{number}");
    let job = json!({"id": holds, "task": "ping"}).to_string();
    stack.publish("storage.default.low", job).await;
    stack.record(&holds, StateName::Queued).await;
    // One wants it alone and must wait; who stands behind it could share it.
    let lock = Lock {
        shared: vec![holder(&holds)],
        ..Lock::default()
    };
    let lock = lock.enlist(&holder(&first), 1, Mode::Exclusive);
    let lock = lock.enlist(&holder(&second), 2, Mode::Shared);
    locks.create(&resource, &lock).await.unwrap();
    park(stack, &first, (resource.as_str(), None), 1).await;
    park(stack, &second, (resource.as_str(), None), 2).await;
    let cancel = Event::Cancel(Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    });
    let first = stack.record(&first, StateName::Waiting).await;
    stack.record(&second, StateName::Waiting).await;
    let cancelled = stack.jobs.change(&first, cancel).await.unwrap();
    let woken = stack.record(&second, StateName::Queued).await;
    assert_eq!(woken.value.generation, 2);
    woken.written_at.since(cancelled.written_at)
}

#[tokio::test]
async fn a_look_at_a_job_far_back_in_a_line_costs_as_little_as_at_one_in_front() {
    const LINE: u64 = 300;
    let (stack, _core) = Stack::start().await;
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    for id in ["holds", "first"] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        stack.publish("storage.default.low", job).await;
        stack.record(id, StateName::Queued).await;
    }
    let holder = |id: &str| Holder {
        job: id.parse().unwrap(),
        claim: 1,
        since: None,
    };
    let mut lock = Lock {
        exclusive: Some(holder("holds")),
        ..Lock::default()
    };
    lock = lock.enlist(&holder("first"), 1, Mode::Exclusive);
    for ticket in 2..LINE {
        lock = lock.enlist(&holder(&format!("w-{ticket}")), ticket, Mode::Exclusive);
    }
    lock = lock.enlist(&holder("last"), LINE, Mode::Exclusive);
    locks.create("x.long", &lock).await.unwrap();
    let mut reads = stack
        .bus
        .client()
        .subscribe("$JS.API.STREAM.MSG.GET.KV_jobs")
        .await
        .unwrap();
    park(&stack, "last", ("x.long", None), LINE).await;
    // Looked at after the other one; nobody has its lock, so it's woken.
    park(&stack, "next", ("x.free", None), 1).await;
    stack.record("next", StateName::Queued).await;
    stack.bus.flush().await.unwrap();
    let mut behind = Vec::new();
    while let Some(read) = reads.next().now_or_never().flatten() {
        let wanted = String::from_utf8_lossy(&read.payload).into_owned();
        behind.extend(Some(wanted).filter(|wanted| wanted.contains(".w-")));
    }
    let last = stack.record("last", StateName::Waiting).await.value;
    assert_eq!(last.generation, 1, "it was left where it is");
    assert_eq!(
        behind,
        Vec::<String>::new(),
        "who waits behind others isn't asked for"
    );
}

pub(crate) fn domain(name: &str) -> serde_json::Value {
    json!({"domain": name, "hypervisor": "hv-1", "mode": "exclusive"})
}

pub(crate) fn disk(in_use_by: serde_json::Value) -> DiskRecord {
    let disk = json!({"pool": "default", "format": "qcow2", "state": "ready",
        "in_use_by": in_use_by, "updated_at": Timestamp::now()});
    serde_json::from_value(disk).unwrap()
}

/// Claims a job for a dead worker, and parks it; in between `lines_up` sees the claim. Returns its
/// ticket.
pub(crate) async fn park_claimed(
    stack: &Stack,
    job: &serde_json::Value,
    on: WaitReason,
    lines_up: impl AsyncFnOnce(&Entry<Record>),
) -> u64 {
    let seq = stack.publish("storage.default.low", job.to_string()).await;
    let id = job["id"].as_str().unwrap();
    let entry = claimed(stack, id, seq, false).await;
    lines_up(&entry).await;
    let park = Event::Park {
        on,
        refund: true,
        ticket: Some(entry.revision),
    };
    stack.jobs.change(&entry, park).await.unwrap();
    entry.revision
}

#[tokio::test]
async fn those_beyond_a_locks_list_are_put_into_it_as_it_drains_and_the_first_wakes() {
    let (stack, _core) = Stack::start().await;
    let locks = Bucket::<Lock>::new(&stack.bus, locks::BUCKET);
    let holder = |id: &str| Holder {
        job: id.parse().unwrap(),
        claim: 1,
        since: None,
    };
    // Until all three are there, one that runs has it, and all are named: a sweep that came
    // between would fill up the list with some of them alone.
    let job = json!({"id": "runs", "task": "ping"}).to_string();
    let seq = stack.publish("storage.default.low", job).await;
    claimed(&stack, "runs", seq, true).await;
    let mut named = Lock {
        exclusive: Some(holder("runs")),
        ..Lock::default()
    };
    let mut revision = locks.create("x.a", &named).await.unwrap();
    let mut tickets = Vec::new();
    for id in ["a", "b", "c"] {
        let on = WaitReason::Lock {
            resource: "x.a".to_owned(),
            holder: None,
            since: None,
        };
        let (mode, name) = match id {
            "c" => (Mode::Shared, "shared"),
            _ => (Mode::Exclusive, "exclusive"),
        };
        let job = json!({"id": id, "task": "ping", "locks": {name: ["x.a"]}});
        let ticket = park_claimed(&stack, &job, on, async |entry| {
            named = named.enlist(&holder(id), entry.revision, mode);
            revision = locks.update("x.a", &named, revision).await.unwrap();
        });
        tickets.push(ticket.await);
    }
    let held = Lock {
        exclusive: Some(holder("long-gone")),
        beyond: Some(1),
        ..Lock::default()
    };
    locks.update("x.a", &held, revision).await.unwrap();
    stack.record("a", StateName::Queued).await;
    let lock = locks.get_latest("x.a").await.unwrap().unwrap().value;
    let line = lock.waiters.iter();
    let line: Vec<(&str, u64, Mode)> = line.map(|w| (w.job.as_str(), w.ticket, w.mode)).collect();
    let expected = [
        ("a", tickets[0], Mode::Exclusive),
        ("b", tickets[1], Mode::Exclusive),
        ("c", tickets[2], Mode::Shared),
    ];
    assert_eq!(line, expected);
    assert_eq!((lock.exclusive, lock.beyond), (None, None));
    for id in ["b", "c"] {
        let waits = stack.record(id, StateName::Waiting).await.value;
        assert_eq!(waits.generation, 1, "{id}");
    }
}

#[tokio::test]
async fn a_job_that_waits_for_the_end_of_a_use_wakes_then_and_not_before() {
    let (stack, _core) = Stack::start().await;
    let (disks, locks) = (
        Bucket::<DiskRecord>::new(&stack.bus, "disks"),
        Bucket::<Lock>::new(&stack.bus, locks::BUCKET),
    );
    let end = Timestamp::now().after(Duration::from_secs(4));
    let pinned = json!([{"job": "loads", "expires_at": end}]);
    disks.put("d0", &disk(pinned)).await.unwrap();
    for name in ["d1", "d2", "d3"] {
        let used = disk(json!([domain("web1")]));
        disks.put(name, &used).await.unwrap();
    }
    for (id, lock, holder) in [
        ("b", "disk.d0", "job.loads"),
        ("a1", "disk.d1", "domain.web1"),
        ("a2", "disk.d2", "domain.web1"),
        ("a3", "disk.d3", "domain.web1"),
    ] {
        let on = WaitReason::Lock {
            resource: lock.to_owned(),
            holder: Some(holder.to_owned()),
            since: None,
        };
        park_claimed(
            &stack,
            &json!({"id": id, "task": "ping", "if_in_use": "wait"}),
            on,
            async |entry| {
                let claimed = Holder {
                    job: id.parse().unwrap(),
                    claim: 1,
                    since: None,
                };
                let in_line = Lock::default().enlist(&claimed, entry.revision, Mode::Exclusive);
                locks.create(lock, &in_line).await.unwrap();
            },
        )
        .await;
    }
    let woken = stack.record("b", StateName::Queued).await;
    assert!(woken.written_at >= end, "its pin had not expired");
    // The others were looked at when they began to wait, and twice a second since: should the
    // machine have stopped, then not for all of them.
    let mut delays = Vec::new();
    for (id, name) in [("a1", "d1"), ("a2", "d2"), ("a3", "d3")] {
        let waits = stack.record(id, StateName::Waiting).await.value;
        assert_eq!(waits.generation, 1);
        let before = Timestamp::now();
        let other = disk(json!([domain("other")]));
        disks.put(name, &other).await.unwrap();
        let woken = stack.record(id, StateName::Queued).await;
        assert_eq!(woken.value.generation, 2);
        delays.push(woken.written_at.since(before));
    }
    let soonest = delays.iter().min().unwrap();
    assert!(*soonest < Duration::from_secs(2), "{delays:?}");
}

#[tokio::test]
async fn a_lock_keeps_what_any_claim_of_a_running_job_has_and_loses_what_is_over() {
    let (stack, _core) = Stack::start().await;
    for id in ["runs", "over"] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        stack.publish("storage.default.low", job).await;
    }
    let mut entry = stack.record("runs", StateName::Queued).await;
    for seq in [1, 1] {
        let claim = Event::Claim {
            owner: dead(),
            seq,
            begin: false,
        };
        entry = stack.jobs.change(&entry, claim).await.unwrap();
    }
    assert_eq!(entry.value.claim, 2);
    let over = stack.record("over", StateName::Queued).await;
    let error = virtbus_wire::JobError::internal("x");
    stack.jobs.change(&over, Event::Fail(error)).await.unwrap();
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let holder = |job: &str, claim| {
        Some(Holder {
            job: job.parse().unwrap(),
            claim,
            since: None,
        })
    };
    let lock = |job: &str, claim| Lock {
        exclusive: holder(job, claim),
        shared: Vec::new(),
        waiters: vec![Waiter {
            job: "over".parse().unwrap(),
            ticket: 5,
            mode: Mode::Exclusive,
            woken_at: None,
        }],
        beyond: None,
    };
    // The present claim hasn't looked yet at what the older one may have done under its lock.
    let names = ["disk.older", "disk.present", "disk.over"];
    for (name, (job, claim)) in names
        .into_iter()
        .zip([("runs", 1), ("runs", 2), ("over", 1)])
    {
        locks.create(name, &lock(job, claim)).await.unwrap();
    }
    until("what is over is gone from each lock", async || {
        let mut found = Vec::new();
        for name in names {
            let lock = locks.get_latest(name).await.unwrap();
            found.push(lock.map(|entry| entry.value));
        }
        match &found[..] {
            [Some(older), Some(present), None]
                if older.waiters.is_empty() && present.waiters.is_empty() =>
            {
                assert_eq!(older.exclusive, holder("runs", 1));
                assert_eq!(present.exclusive, holder("runs", 2));
                Ok(())
            }
            _ => Err(format!("{found:?}")),
        }
    })
    .await;
}
