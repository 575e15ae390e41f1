//! Jobs that no worker has taken.

use crate::stack::{Stack, code, until};
use async_nats::HeaderMap;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use virtbus_wire::{JobState, StateName, Timestamp, state::WaitReason};

/// What the contract promises.
const A_SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_job_without_a_worker_gets_its_record_within_a_second() {
    let (stack, _core) = Stack::start().await;
    // The first one tells that the registrar is at work.
    stack
        .publish("storage.default.low", r#"{"id":"first","task":"ping"}"#)
        .await;
    stack.record("first", StateName::Queued).await;
    let began = Instant::now();
    let seq = stack
        .publish("storage.default.low", r#"{"task":"ping"}"#)
        .await;
    let entry = stack
        .record(&format!("storage-{seq}"), StateName::Queued)
        .await;
    assert!(began.elapsed() < A_SECOND, "{:?}", began.elapsed());
    let record = entry.value;
    assert_eq!((record.generation, record.claim), (1, 0));
    assert_eq!(record.dedupe.unwrap().seq, seq);
    assert_eq!(stack.lying("STORAGE").await.len(), 2, "its message stays");
}

#[tokio::test]
async fn a_job_for_a_pool_nobody_registered_fails_within_a_second_and_is_gone() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.nowhere.low", r#"{"id":"first","task":"ping"}"#)
        .await;
    stack.record("first", StateName::Failed).await;
    for (number, subject) in [
        "storage.nowhere.high",
        "storage.default_nowhere.low",
        "hypervisor.nowhere.low",
        "storage.default.urgent",
        "storage.default_a.low",
        "storage.b_a.low",
    ]
    .into_iter()
    .enumerate()
    {
        let began = Instant::now();
        let id = format!("j{number}");
        let payload = json!({"id": id, "task": "ping"}).to_string();
        stack.publish(subject, payload).await;
        let entry = stack.record(&id, StateName::Failed).await;
        assert!(
            began.elapsed() < A_SECOND,
            "{subject}: {:?}",
            began.elapsed()
        );
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
    let until_then = Timestamp::now().after(Duration::from_millis(2_500));
    let payload = json!({"id": "later", "task": "ping", "not_before": until_then}).to_string();
    stack.publish("storage.default.low", payload).await;
    let entry = stack.record("later", StateName::Waiting).await;
    let JobState::Waiting(waiting) = &entry.value.state else {
        panic!("{:?}", entry.value.state);
    };
    let on = WaitReason::Time {
        until: until_then,
        error: None,
    };
    assert_eq!(waiting.on, on);
    let entry = stack.record("later", StateName::Queued).await;
    assert_eq!(entry.value.generation, 2);
    let late = entry.written_at.since(until_then);
    assert!(
        until_then <= entry.written_at && late < Duration::from_millis(500),
        "{late:?}"
    );
    let lying = until("its message", async || {
        let lying = stack.lying("STORAGE").await;
        if lying.len() == 2 {
            Ok(lying)
        } else {
            Err(lying)
        }
    })
    .await;
    assert_eq!(lying[1].1.as_deref(), Some("2"));
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
