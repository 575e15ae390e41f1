//! Jobs that come after others, through a real worker: long chains, wide fans, and what can't be.

use crate::{
    stack::{Stack, code},
    worker,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use virtbus_testbed::{until, within};
use virtbus_wire::{
    Class, JobState, StateName, Timestamp, protocol::reconcile::DEPENDENCY_PATIENCE,
};

const LOW: &str = "storage.default.low";
const MANY: usize = 1_000;
/// How long a thousand jobs that depend on each other may take on a busy machine, in an
/// unoptimized build. One job takes some ten milliseconds then.
const LONG: Duration = Duration::from_secs(180);

async fn publish(stack: &Stack, job: Value) {
    stack.publish(LOW, job.to_string()).await;
}

/// Makes a job's wait as long as it takes to give up what nobody has seen.
async fn has_waited(stack: &Stack, id: &str) {
    until("a longer wait", async || {
        let entry = stack.record(id, StateName::Waiting).await;
        let mut record = entry.value;
        if let JobState::Waiting(waiting) = &mut record.state {
            let patience = i64::try_from(DEPENDENCY_PATIENCE.as_millis()).unwrap();
            waiting.since = Timestamp::from_millis(record.submitted_at.as_millis() - patience);
        }
        stack.jobs.write(&record, entry.revision).await
    })
    .await;
}

/// Many jobs at once, without waiting for each.
async fn publish_all(stack: &Stack, jobs: impl Iterator<Item = Value>) {
    for job in jobs {
        let payload = job.to_string().into();
        stack.client().publish(LOW, payload).await.unwrap();
    }
    stack.client().flush().await.unwrap();
}

async fn ends(stack: &Stack, id: &str, state: StateName) -> virtbus_wire::Record {
    let id: virtbus_wire::JobId = id.parse().unwrap();
    within(LONG, &format!("{id} {state}"), async || {
        let found = stack.jobs.get_latest(&id).await;
        match found.map_err(|error| error.to_string())? {
            Some(entry) if entry.value.state.name() == state => Ok(entry.value),
            Some(entry) => Err(format!("{:?}", entry.value.state)),
            None => Err("none".to_owned()),
        }
    })
    .await
}

/// How many records there are in a state.
async fn count(stack: &Stack, state: StateName) -> usize {
    let (mut count, mut from) = (0, Some(1));
    while let Some(revision) = from {
        let page = stack.jobs.bucket().page(revision).await.unwrap();
        let rows = page.items.into_iter().filter_map(|row| row.entry.unwrap());
        count += rows
            .filter(|entry| entry.value.state.name() == state)
            .count();
        from = page.next;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_a_thousand_runs_to_its_end_in_order() {
    let (stack, _core) = Stack::start().await;
    let jobs = (0..MANY).rev().map(|number| {
        let after = number.checked_sub(1).map(|before| format!("c{before}"));
        json!({"id": format!("c{number}"), "task": "ping", "after": Vec::from_iter(after)})
    });
    // The last one first: each comes before what it waits for.
    publish_all(&stack, jobs).await;
    let began = Instant::now();
    let worker = worker::start(&stack, Class::Storage);
    let last = ends(&stack, &format!("c{}", MANY - 1), StateName::Succeeded).await;
    println!("a chain of {MANY}: {:?}", began.elapsed());
    let middle = ends(&stack, "c500", StateName::Succeeded).await;
    let ended = |record| serde_json::to_value(record).unwrap()["finished_at"].to_string();
    assert!(ended(middle) <= ended(last));
    assert_eq!(count(&stack, StateName::Succeeded).await, MANY);
    stack.empty("STORAGE").await;
    worker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_after_one_and_one_after_a_thousand() {
    let (stack, _core) = Stack::start().await;
    let fan = (0..MANY)
        .map(|number| json!({"id": format!("f{number}"), "task": "ping", "after": ["first"]}));
    publish_all(&stack, fan).await;
    let all: Vec<String> = (0..MANY).map(|number| format!("f{number}")).collect();
    publish(&stack, json!({"id": "last", "task": "ping", "after": all})).await;
    stack.record("last", StateName::Waiting).await;
    let worker = worker::start(&stack, Class::Storage);
    let began = Instant::now();
    publish(&stack, json!({"id": "first", "task": "ping"})).await;
    ends(&stack, "last", StateName::Succeeded).await;
    println!("a fan of {MANY} and back: {:?}", began.elapsed());
    assert_eq!(count(&stack, StateName::Succeeded).await, MANY + 2);
    stack.empty("STORAGE").await;
    worker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_drops_what_comes_after_it_through_the_whole_chain_and_runs_the_clean_up() {
    let (stack, _core) = Stack::start().await;
    let worker = worker::start(&stack, Class::Storage);
    for (id, after) in [
        ("b", json!(["a"])),
        ("c", json!(["b"])),
        ("d", json!(["c"])),
    ] {
        publish(&stack, json!({"id": id, "task": "ping", "after": after})).await;
    }
    let on = json!([{"job": "c", "on": ["failed", "cancelled"]}]);
    publish(&stack, json!({"id": "clean", "task": "ping", "after": on})).await;
    let on = json!([{"job": "a", "on": ["succeeded", "failed"]}]);
    publish(&stack, json!({"id": "either", "task": "ping", "after": on})).await;
    stack.record("clean", StateName::Waiting).await;
    let fails = json!({"id": "a", "task": "ping", "params": {"fail": true}});
    publish(&stack, fails).await;
    ends(&stack, "a", StateName::Failed).await;
    for (id, before, state) in [
        ("b", "a", "failed"),
        ("c", "b", "cancelled"),
        ("d", "c", "cancelled"),
    ] {
        let dropped = ends(&stack, id, StateName::Cancelled).await;
        assert_eq!(code(&dropped), "job.dependency_unmet", "{id}");
        let detail = &serde_json::to_value(&dropped).unwrap()["error"]["detail"];
        assert_eq!(detail, &json!({"job": before, "state": state}), "{id}");
        assert_eq!(dropped.attempt, 0, "{id} never ran");
    }
    for id in ["clean", "either"] {
        assert_eq!(ends(&stack, id, StateName::Succeeded).await.attempt, 1);
    }
    worker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_come_after_one_of_another_stream_and_after_one_that_is_over() {
    let (stack, _core) = Stack::start().await;
    let storage = worker::start(&stack, Class::Storage);
    let hypervisor = worker::start(&stack, Class::Hypervisor);
    let start = json!({"id": "start", "task": "ping", "after": ["create"]}).to_string();
    stack.publish("hypervisor.default.low", start).await;
    stack.record("start", StateName::Waiting).await;
    publish(&stack, json!({"id": "create", "task": "ping"})).await;
    let started = ends(&stack, "start", StateName::Succeeded).await;
    assert_eq!(started.queue.to_string(), "hypervisor.default.low");
    // What it comes after ended long before.
    publish(
        &stack,
        json!({"id": "late", "task": "ping", "after": ["start", "create"]}),
    )
    .await;
    ends(&stack, "late", StateName::Succeeded).await;
    storage.end().await;
    hypervisor.end().await;
}

#[tokio::test]
async fn a_job_after_one_that_never_comes_fails_also_behind_one_that_waits() {
    let (stack, _core) = Stack::start().await;
    publish(&stack, json!({"id": "idle", "task": "ping"})).await;
    publish(
        &stack,
        json!({"id": "a", "task": "ping", "after": ["never"]}),
    )
    .await;
    publish(
        &stack,
        json!({"id": "b", "task": "ping", "after": ["never", "idle"]}),
    )
    .await;
    publish(&stack, json!({"id": "c", "task": "ping", "after": ["a"]})).await;
    for id in ["a", "b"] {
        has_waited(&stack, id).await;
        let failed = stack.record(id, StateName::Failed).await.value;
        assert_eq!(code(&failed), "job.dependency_missing", "{id}");
    }
    let dropped = stack.record("c", StateName::Cancelled).await.value;
    assert_eq!(code(&dropped), "job.dependency_unmet");
    stack.record("idle", StateName::Queued).await;
}
