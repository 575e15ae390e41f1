//! Jobs that no worker has taken.

use crate::stack::{Stack, code, until};
use async_nats::HeaderMap;
use serde_json::json;
use std::time::Duration;
use virtbus_bus::Entry;
use virtbus_wire::{JobState, Record, StateName, Timestamp, state::WaitReason};

/// What the contract promises.
const A_SECOND: Duration = Duration::from_secs(1);
/// So many jobs must be in time before as many are late: the machine may stop for a while, but a
/// core that is slow is slow most of the time.
const MOST: usize = 3;

/// Publishes jobs, most of which have their record within a second by the server's clock; the last
/// one is such.
async fn recorded_within_a_second(
    stack: &Stack,
    subject: &str,
    state: StateName,
) -> (u64, Entry<Record>) {
    let (mut in_time, mut late) = (0, Vec::new());
    while late.len() < MOST {
        let seq = stack.publish(subject, r#"{"task":"ping"}"#).await;
        let stream = subject.split('.').next().unwrap();
        let entry = stack.record(&format!("{stream}-{seq}"), state).await;
        let came = entry.value.dedupe.as_ref().unwrap().time;
        let delay = entry.written_at.since(came);
        if delay >= A_SECOND {
            late.push(delay);
            continue;
        }
        in_time += 1;
        if in_time == MOST {
            return (seq, entry);
        }
    }
    panic!("{subject}: {late:?}");
}

#[tokio::test]
async fn a_job_without_a_worker_gets_its_record_within_a_second() {
    let (stack, _core) = Stack::start().await;
    // The first one tells that the registrar is at work.
    stack
        .publish("storage.default.low", r#"{"id":"first","task":"ping"}"#)
        .await;
    stack.record("first", StateName::Queued).await;
    let queue = "storage.default.low";
    let (seq, entry) = recorded_within_a_second(&stack, queue, StateName::Queued).await;
    let record = entry.value;
    assert_eq!((record.generation, record.claim), (1, 0));
    assert_eq!(record.dedupe.unwrap().seq, seq);
    let lying = stack.lying("STORAGE").await;
    assert!(lying.iter().any(|(.., at)| *at == seq), "its message stays");
}

#[tokio::test]
async fn a_job_for_a_pool_nobody_registered_fails_within_a_second_and_is_gone() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.nowhere.low", r#"{"id":"first","task":"ping"}"#)
        .await;
    stack.record("first", StateName::Failed).await;
    for subject in [
        "storage.nowhere.high",
        "storage.default_nowhere.low",
        "hypervisor.nowhere.low",
        "storage.default.urgent",
        "storage.default_a.low",
        "storage.b_a.low",
    ] {
        let (_, entry) = recorded_within_a_second(&stack, subject, StateName::Failed).await;
        assert_eq!(code(&entry.value), "queue.unknown", "{subject}");
        assert_eq!(entry.value.queue.to_string(), subject);
    }
    stack.empty("STORAGE").await;
    stack.empty("HYPERVISOR").await;
}

#[tokio::test]
async fn the_same_id_twice_at_once_is_one_job() {
    let (stack, _core) = Stack::start().await;
    let payload = || r#"{"id":"twin","task":"ping"}"#;
    tokio::join!(
        stack.publish("storage.default.low", payload()),
        stack.publish("storage.default.high", payload()),
    );
    let first = stack.record("twin", StateName::Queued).await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "twin");
    stack
        .publish_with(
            "storage.nowhere.low",
            headers,
            br#"{"task":"ping"}"#.to_vec(),
        )
        .await;
    stack
        .publish("storage.default.low", r#"{"id":"after","task":"ping"}"#)
        .await;
    stack.record("after", StateName::Queued).await;
    let now = stack.record("twin", StateName::Queued).await;
    assert_eq!(now.revision, first.revision, "the copies changed nothing");
    // Where no worker will ever see it, the copy goes too, in the end.
    until("the copy is gone", async || {
        let lying = stack.lying("STORAGE").await;
        let is_there = lying
            .iter()
            .any(|(subject, ..)| subject == "storage.nowhere.low");
        if is_there { Err(lying) } else { Ok(()) }
    })
    .await;
    let now = stack.record("twin", StateName::Queued).await;
    assert_eq!(now.revision, first.revision, "the copies changed nothing");
}

#[tokio::test]
async fn jobs_published_while_no_core_ran_are_registered_when_one_comes() {
    let stack = Stack::bare().await;
    for number in 0..3_000 {
        let payload = json!({"id": format!("j{number}"), "task": "ping"}).to_string();
        stack
            .client()
            .publish("storage.default.low", payload.into())
            .await
            .unwrap();
    }
    stack
        .publish("storage.default.low", r#"{"id":"last","task":"ping"}"#)
        .await;
    let pool = br#"{"pool":"default"}"#.to_vec();
    stack
        .client()
        .publish("$KV.pools.default", pool.into())
        .await
        .unwrap();
    let _core = stack.core("core-a");
    stack.record("j0", StateName::Queued).await;
    stack.record("j2999", StateName::Queued).await;
    stack.record("last", StateName::Queued).await;
}

#[tokio::test]
async fn a_job_that_must_wait_waits_without_a_message_and_is_published_in_time() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"first","task":"ping"}"#)
        .await;
    stack.record("first", StateName::Queued).await;
    // Several, each long enough that it's seen to wait, and further from the next than the machine
    // may stop for: a core that is slow is late each time.
    let times = [8, 13, 18].map(|seconds| Timestamp::now().after(Duration::from_secs(seconds)));
    let id_of = |time: Timestamp| format!("at-{}", time.as_millis());
    for time in times {
        let id = id_of(time);
        let payload = json!({"id": id, "task": "ping", "not_before": time}).to_string();
        stack.publish("storage.default.low", payload).await;
        let entry = stack.record(&id, StateName::Waiting).await;
        let JobState::Waiting(waiting) = &entry.value.state else {
            panic!("{:?}", entry.value.state);
        };
        let (until, error) = (time, None);
        assert_eq!(waiting.on, WaitReason::Time { until, error });
    }
    let mut delays = Vec::new();
    for time in times {
        let entry = stack.record(&id_of(time), StateName::Queued).await;
        assert_eq!(entry.value.generation, 2);
        assert!(time <= entry.written_at, "not before its time");
        delays.push(entry.written_at.since(time));
    }
    let soonest = delays.iter().min().unwrap();
    assert!(*soonest < Duration::from_millis(500), "{delays:?}");
    let lying = until("their messages", async || {
        let lying = stack.lying("STORAGE").await;
        if lying.len() == 1 + times.len() {
            Ok(lying)
        } else {
            Err(lying)
        }
    })
    .await;
    let again = |(_, generation, _): &(_, Option<String>, _)| generation.as_deref() == Some("2");
    assert!(lying[1..].iter().all(again), "{lying:?}");
}

#[tokio::test]
async fn a_job_comes_after_another_and_is_dropped_when_that_can_not_be() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    let after =
        |id: &str, on: &str| json!({"id": id, "task": "ping", "after": [{"job": "a", "on": [on]}]});
    for (id, on) in [("b", "succeeded"), ("c", "cancelled")] {
        stack
            .publish("storage.default.low", after(id, on).to_string())
            .await;
        stack.record(id, StateName::Waiting).await;
    }
    let answer: serde_json::Value = stack
        .ask("virtbus.jobs.cancel", &json!({"id": "a"}))
        .await
        .unwrap();
    assert_eq!(answer, json!({"outcome": "cancelled"}));
    let dropped = stack.record("b", StateName::Cancelled).await.value;
    assert_eq!(code(&dropped), "job.dependency_unmet");
    assert_eq!(
        stack.record("c", StateName::Queued).await.value.generation,
        2
    );
}
