//! What crashes leave is mended.

use crate::stack::{Stack, code, until};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::StreamExt as _;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;
use virtbus_bus::Entry;
use virtbus_wire::{Event, Record, StateName, Timestamp, state::Owner};

pub(crate) fn dead() -> Owner {
    Owner {
        worker: "st-dead".parse().unwrap(),
        boot: virtbus_wire::BootId::from_u128(7),
    }
}

/// The record of a job once it's queued, and claimed by a worker that is dead.
pub(crate) async fn claimed(stack: &Stack, id: &str, seq: u64, begin: bool) -> Entry<Record> {
    let entry = stack.record(id, StateName::Queued).await;
    let claim = Event::Claim {
        owner: dead(),
        seq,
        begin,
    };
    stack.jobs.change(&entry, claim).await.unwrap()
}

#[tokio::test]
async fn jobs_whose_message_vanished_are_published_again() {
    let (stack, _core) = Stack::start().await;
    let mut messages = Vec::new();
    for id in ["waits", "runs"] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        messages.push(stack.publish("storage.default.low", job).await);
    }
    stack.record("waits", StateName::Queued).await;
    claimed(&stack, "runs", messages[1], true).await;
    for seq in messages {
        stack.bus.delete_message("STORAGE", seq).await.unwrap();
        stack.bus.delete_message("STORAGE", seq).await.unwrap();
    }
    let lying = until("both messages", async || {
        let lying = stack.lying("STORAGE").await;
        if lying.len() == 2 {
            Ok(lying)
        } else {
            Err(lying)
        }
    })
    .await;
    for (subject, generation, _) in lying {
        assert_eq!(
            (subject.as_str(), generation.as_deref()),
            ("storage.default.low", Some("2"))
        );
    }
    let waits = stack.record("waits", StateName::Queued).await.value;
    let runs = stack.record("runs", StateName::Running).await.value;
    assert_eq!((waits.generation, runs.generation), (2, 2));
    assert_eq!(runs.state.hold().unwrap().owner, dead());
}

#[tokio::test]
async fn a_message_of_a_job_that_is_over_is_deleted() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    stack.record("a", StateName::Queued).await;
    let cancel = json!({"id": "a"});
    stack
        .ask::<serde_json::Value>("virtbus.jobs.cancel", &cancel)
        .await
        .unwrap();
    stack.empty("STORAGE").await;
    stack.record("a", StateName::Cancelled).await;
}

#[tokio::test]
async fn a_message_at_max_deliver_is_published_again_and_not_for_ever() {
    let (stack, _core) = Stack::start().await;
    let taken = wear_out(&stack).await;
    let failed = stack.record("poison", StateName::Failed).await.value;
    taken.abort();
    assert_eq!((failed.rounds, failed.generation), (5, 6));
    assert_eq!(code(&failed), "internal");
    stack.empty("STORAGE").await;
    let letters = stack.bus.browse("DLQ", ">", 1).await.unwrap().items;
    assert_eq!(letters[0].header("Virtbus-Reason"), Some("internal"));
}

#[tokio::test]
async fn a_message_at_max_deliver_is_found_although_the_server_s_word_of_it_was_lost() {
    let (stack, _core) = Stack::start().await;
    let notices = stack
        .bus
        .jetstream()
        .get_stream("ADVISORIES")
        .await
        .unwrap();
    let mut config = notices.get_info().await.unwrap().config;
    config.subjects = vec!["nowhere".to_owned()];
    stack.bus.jetstream().update_stream(config).await.unwrap();
    let taken = wear_out(&stack).await;
    until("its second publication", async || {
        let queued = stack.record("poison", StateName::Queued).await.value;
        match queued.generation {
            1 => Err(format!("{queued:?}")),
            _ => Ok(()),
        }
    })
    .await;
    taken.abort();
}

/// Publishes a job that is taken as often as it's given out, and never acknowledged: as by workers
/// that die of it.
async fn wear_out(stack: &Stack) -> JoinHandle<()> {
    let stream = stack.bus.jetstream().get_stream("STORAGE").await.unwrap();
    stream.delete_consumer("storage_default_low").await.unwrap();
    let config = pull::Config {
        durable_name: Some("storage_default_low".to_owned()),
        filter_subject: "storage.default.low".to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(100),
        max_deliver: 1,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    stack
        .publish("storage.default.low", r#"{"id":"poison","task":"ping"}"#)
        .await;
    tokio::spawn(async move {
        let mut messages = consumer.messages().await.unwrap();
        while messages.next().await.is_some() {}
    })
}

#[tokio::test]
async fn jobs_that_wait_for_each_other_end() {
    let (stack, _core) = Stack::start().await;
    for (id, after) in [("a", "c"), ("b", "a"), ("c", "b")] {
        let job = json!({"id": id, "task": "ping", "after": [after]}).to_string();
        stack.publish("storage.default.low", job).await;
        // With the last one the circle is there, and may be found before its wait is seen.
        if id != "c" {
            stack.record(id, StateName::Waiting).await;
        }
    }
    let youngest = stack.record("c", StateName::Failed).await.value;
    assert_eq!(code(&youngest), "job.invalid_params");
    for id in ["a", "b"] {
        let dropped = stack.record(id, StateName::Cancelled).await.value;
        assert_eq!(code(&dropped), "job.dependency_unmet", "{id}");
    }
}

fn id_of(end: Timestamp) -> String {
    format!("until-{}", end.as_millis())
}

#[tokio::test]
async fn a_job_that_was_not_begun_in_time_expires() {
    let (stack, _core) = Stack::start().await;
    // Several, each long enough that it's seen before its end, and further from the next than the
    // machine may stop for: a core that is slow is late each time.
    let ends = [8, 13, 18].map(|seconds| Timestamp::now().after(Duration::from_secs(seconds)));
    for end in ends {
        let job = json!({"id": id_of(end), "task": "ping", "expires_at": end}).to_string();
        stack.publish("storage.default.low", job).await;
        stack.record(&id_of(end), StateName::Queued).await;
    }
    let mut delays = Vec::new();
    for end in ends {
        let expired = stack.record(&id_of(end), StateName::Failed).await;
        assert_eq!(code(&expired.value), "job.expired");
        assert!(end <= expired.written_at, "not before its end");
        delays.push(expired.written_at.since(end));
    }
    let soonest = delays.iter().min().unwrap();
    assert!(*soonest < Duration::from_secs(1), "{delays:?}");
    stack.empty("STORAGE").await;
}

#[tokio::test]
async fn a_cancel_is_published_again_to_be_carried_out_when_its_worker_died() {
    let (stack, _core) = Stack::start().await;
    let seq = stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    claimed(&stack, "a", seq, true).await;
    let ask = json!({"id": "a"});
    let answer = stack.ask::<serde_json::Value>("virtbus.jobs.cancel", &ask);
    assert_eq!(answer.await.unwrap(), json!({"outcome": "cancelling"}));
    stack.bus.delete_message("STORAGE", seq).await.unwrap();
    let lying = until("a new message", async || {
        let lying = stack.lying("STORAGE").await;
        if lying.len() == 1 {
            Ok(lying)
        } else {
            Err(lying)
        }
    })
    .await;
    assert_eq!(lying[0].1.as_deref(), Some("2"));
    // Only a worker ends what a worker began.
    let record = stack.record("a", StateName::Cancelling).await.value;
    assert_eq!((record.generation, record.claim), (2, 1));
}

#[tokio::test]
async fn a_message_that_is_left_of_a_job_that_is_over_goes() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    let entry = stack.record("a", StateName::Queued).await;
    let error = virtbus_wire::JobError::internal("x");
    stack.jobs.change(&entry, Event::Fail(error)).await.unwrap();
    // And one of a generation that nobody remembers.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Virtbus-Job", "long-forgotten");
    headers.insert("Virtbus-Generation", "3");
    let job = br#"{"id":"long-forgotten","task":"ping"}"#.to_vec();
    stack
        .publish_with("storage.default.low", headers, job)
        .await;
    stack.empty("STORAGE").await;
    stack.record("a", StateName::Failed).await;
    let forgotten = "long-forgotten".parse().unwrap();
    assert_eq!(stack.jobs.get_latest(&forgotten).await.unwrap(), None);
}
