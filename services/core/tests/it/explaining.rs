//! Asking whom a job waits for: who that is by now, not who it was when it began to wait.

use crate::{
    lines::{disk, domain, park, park_claimed},
    mending::claimed,
    stack::Stack,
};
use serde_json::{Value, json};
use virtbus_bus::{Bucket, locks};
use virtbus_wire::{
    StateName, Timestamp,
    catalog::DomainRecord,
    protocol::lock::{Holder, Lock, Mode},
    state::WaitReason,
};

async fn explain(stack: &Stack, id: &str) -> Value {
    let asked = json!({"id": id});
    stack.ask("virtbus.jobs.explain", &asked).await.unwrap()
}

fn holder(id: &str, since: Option<Timestamp>) -> Holder {
    Holder {
        job: id.parse().unwrap(),
        claim: 1,
        since,
    }
}

#[tokio::test]
async fn who_waits_for_a_lock_is_told_who_has_it_by_now_and_how_many_are_before() {
    let (stack, _core) = Stack::start().await;
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let runs = json!({"id": "runs", "task": "ping"}).to_string();
    let seq = stack.publish("storage.default.low", runs).await;
    claimed(&stack, "runs", seq, true).await;
    let since = Timestamp::now();
    // The third isn't named in the lock's record any more, as happens in a long line.
    let lock = Lock {
        exclusive: Some(holder("runs", Some(since))),
        ..Lock::default()
    };
    let lock = lock.enlist(&holder("a", None), 10, Mode::Exclusive);
    let mut lock = lock.enlist(&holder("b", None), 20, Mode::Exclusive);
    lock.beyond = Some(30);
    locks.create("x.a", &lock).await.unwrap();
    for (id, ticket) in [("a", 10), ("b", 20), ("c", 30)] {
        park(&stack, id, ("x.a", Some("job.long-gone")), ticket).await;
    }
    for (id, ahead) in [("a", 0), ("b", 1), ("c", 2)] {
        let told = explain(&stack, id).await;
        let expected = json!({"resource": "x.a", "holder": "job.runs", "since": since});
        assert_eq!(told["why"], "lock");
        assert_eq!(
            (&told["detail"], &told["ahead"]),
            (&expected, &json!(ahead))
        );
    }
}

#[tokio::test]
async fn behind_one_that_is_about_to_take_the_lock_that_one_is_named() {
    let (stack, _core) = Stack::start().await;
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let first = json!({"id": "first", "task": "ping"}).to_string();
    stack.publish("storage.default.low", first).await;
    stack.record("first", StateName::Queued).await;
    let lock = Lock::default().enlist(&holder("first", None), 1, Mode::Exclusive);
    let lock = lock.enlist(&holder("second", None), 2, Mode::Exclusive);
    locks.create("x.b", &lock).await.unwrap();
    park(&stack, "second", ("x.b", None), 2).await;
    let told = explain(&stack, "second").await;
    let expected = json!({"resource": "x.b", "holder": "job.first", "since": null});
    assert_eq!((&told["detail"], &told["ahead"]), (&expected, &json!(1)));
}

#[tokio::test]
async fn who_waits_for_the_end_of_a_use_is_told_since_when_that_is() {
    let (stack, _core) = Stack::start().await;
    let locks: Bucket<Lock> = Bucket::new(&stack.bus, locks::BUCKET);
    let since = Timestamp::now();
    let runs = json!({"uuid": "0199b1c2-0000-7000-8000-000000000001", "pool": "default",
        "state": "running", "desired": "running", "last_started_at": since, "updated_at": since});
    let runs: DomainRecord = serde_json::from_value(runs).unwrap();
    let domains = Bucket::<DomainRecord>::new(&stack.bus, "domains");
    domains.put("web1", &runs).await.unwrap();
    let disks = Bucket::new(&stack.bus, "disks");
    disks
        .put("d1", &disk(json!([domain("web1")])))
        .await
        .unwrap();
    let on = WaitReason::Lock {
        resource: "disk.d1".to_owned(),
        holder: Some("domain.web1".to_owned()),
        since: None,
    };
    let job = json!({"id": "w", "task": "ping", "if_in_use": "wait"});
    let lines_up = async |entry: &virtbus_bus::Entry<virtbus_wire::Record>| {
        let line = Lock::default().enlist(&holder("w", None), entry.revision, Mode::Exclusive);
        locks.create("disk.d1", &line).await.unwrap();
    };
    park_claimed(&stack, &job, on, lines_up).await;
    let told = explain(&stack, "w").await;
    let expected = json!({"resource": "disk.d1", "holder": "domain.web1", "since": since});
    assert_eq!((&told["detail"], &told["ahead"]), (&expected, &json!(0)));
}
