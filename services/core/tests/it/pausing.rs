//! Pause, resume and purge of a queue.

use crate::{
    stack::{Stack, until},
    worker,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_wire::{Class, StateName};
use virtbus_worker::WorkConfig;

const LOW: &str = "storage.default.low";

/// What the server says of the queue's consumer.
async fn consumer(stack: &Stack) -> Result<Value, String> {
    let subject = "$JS.API.CONSUMER.INFO.STORAGE.storage_default_low";
    let answer = stack.raw(subject, Vec::new()).await?;
    serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())
}

async fn consumer_is_paused(stack: &Stack, paused: bool) {
    until(&format!("a consumer with paused {paused}"), async || {
        let info = consumer(stack).await?;
        match info["paused"].as_bool().unwrap_or(false) == paused {
            true => Ok(()),
            false => Err(info.to_string()),
        }
    })
    .await;
}

async fn row(stack: &Stack) -> Value {
    let list: Value = stack.ask("virtbus.queues.list", &json!({})).await.unwrap();
    let rows = list["queues"].as_array().unwrap().iter();
    let mut row = rows.filter(|row| row["queue"] == LOW);
    row.next().unwrap().clone()
}

#[tokio::test]
async fn a_paused_queue_says_who_and_why_and_stays_paused_when_its_consumer_is_made_anew() {
    let (stack, mut core) = Stack::start().await;
    let ask = json!({"queue": LOW, "reason": "disks full", "by": "alice"});
    let answer: Value = stack.ask("virtbus.queues.pause", &ask).await.unwrap();
    assert_eq!(answer, json!({"queue": LOW, "paused": true}));
    consumer_is_paused(&stack, true).await;
    let shown = row(&stack).await;
    assert_eq!(shown["paused"], true);
    assert_eq!(
        (&shown["pause"]["by"], &shown["pause"]["reason"]),
        (&json!("alice"), &json!("disks full"))
    );
    stack.publish(LOW, r#"{"id":"j","task":"ping"}"#).await;
    stack.record("j", StateName::Queued).await;
    let told: Value = stack
        .ask("virtbus.jobs.explain", &json!({"id": "j"}))
        .await
        .unwrap();
    assert_eq!(
        (&told["why"], &told["detail"]["by"]),
        (&json!("paused"), &json!("alice"))
    );
    // Somebody removes the consumer while no core is there.
    core.kill();
    let stream = stack.bus.jetstream().get_stream("STORAGE").await.unwrap();
    stream.delete_consumer("storage_default_low").await.unwrap();
    let _core = stack.core("core-b");
    consumer_is_paused(&stack, true).await;
    let resume = json!({"queue": LOW});
    let answer = until("an answer", async || {
        stack.ask::<Value>("virtbus.queues.resume", &resume).await
    })
    .await;
    assert_eq!(answer, json!({"queue": LOW, "paused": false}));
    consumer_is_paused(&stack, false).await;
    assert_eq!(row(&stack).await["paused"], false);
}

#[tokio::test]
async fn nothing_of_a_paused_queue_is_given_and_afterwards_all_of_it_in_order() {
    let (stack, _core) = Stack::start().await;
    let one_slot = WorkConfig {
        slots: 1,
        reserved_high: 0,
        long_max: 1,
        ..WorkConfig::default()
    };
    let worker = worker::start_with(&stack, Class::Storage, one_slot);
    // It has asked the queue for jobs already.
    stack.publish(LOW, r#"{"id":"before","task":"ping"}"#).await;
    stack.record("before", StateName::Succeeded).await;
    let ask = json!({"queue": LOW, "reason": "disks full"});
    let _: Value = stack.ask("virtbus.queues.pause", &ask).await.unwrap();
    // Beside the first job, what was given and handed back.
    let given = consumer(&stack).await.unwrap()["delivered"]["consumer_seq"].clone();
    let jobs: Vec<String> = (0..10).map(|number| format!("j{number}")).collect();
    for id in &jobs {
        let job = json!({"id": id, "task": "ping"}).to_string();
        stack.publish(LOW, job).await;
    }
    for id in &jobs {
        stack.record(id, StateName::Queued).await;
    }
    // It goes on with what isn't paused, and after each job it looks at all of its queues.
    for id in ["other-0", "other-1", "other-2"] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        stack.publish("storage.default.default", job).await;
        stack.record(id, StateName::Succeeded).await;
    }
    for id in &jobs {
        let job = stack.record(id, StateName::Queued).await.value;
        assert_eq!((job.claim, job.generation), (0, 1), "{id}");
    }
    let info = consumer(&stack).await.unwrap();
    assert_eq!(info["delivered"]["consumer_seq"], given, "{info}");
    assert_eq!(info["num_pending"], 10, "{info}");
    let resume = json!({"queue": LOW});
    let _: Value = stack.ask("virtbus.queues.resume", &resume).await.unwrap();
    let mut ends = Vec::new();
    for id in &jobs {
        let done = stack.record(id, StateName::Succeeded).await;
        assert_eq!((done.value.claim, done.value.generation), (1, 1), "{id}");
        ends.push(done.revision);
    }
    assert!(ends.is_sorted(), "{ends:?}");
    worker.end().await;
}

/// What a worker asked for before its queue was paused, the server doesn't look at again by itself.
#[tokio::test]
async fn a_resumed_queue_gives_its_jobs_at_once_to_those_who_asked_before() {
    let (stack, _core) = Stack::start().await;
    let client = stack.bus.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let ask = json!({"queue": LOW, "reason": "disks full"});
    let _: Value = stack.ask("virtbus.queues.pause", &ask).await.unwrap();
    let life = Duration::from_secs(5);
    let pull = json!({"batch": 1, "expires": life.as_nanos()}).to_string();
    let subject = "$JS.API.CONSUMER.MSG.NEXT.STORAGE.storage_default_low";
    let asked = client.publish_with_reply(subject, inbox, pull.into());
    asked.await.unwrap();
    stack.publish(LOW, r#"{"id":"j","task":"ping"}"#).await;
    // The server has looked at the request, and let it wait.
    stack.record("j", StateName::Queued).await;
    let resume = json!({"queue": LOW});
    let _: Value = stack.ask("virtbus.queues.resume", &resume).await.unwrap();
    let first = answers.next().await.unwrap();
    assert_eq!(first.subject.as_str(), LOW, "{first:?}");
}

#[tokio::test]
async fn a_purge_cancels_job_by_job_and_leaves_other_queues_alone() {
    let (stack, _core) = Stack::start().await;
    for number in 0..50 {
        let job = json!({"id": format!("j{number}"), "task": "ping"}).to_string();
        stack.publish(LOW, job).await;
    }
    stack
        .publish("storage.default.high", r#"{"id":"urgent","task":"ping"}"#)
        .await;
    let waiting = json!({"id": "w", "task": "ping", "after": ["urgent"]}).to_string();
    stack.publish(LOW, waiting).await;
    // Records are made many at a time: the last one's may come before another's.
    for number in 0..50 {
        let id = format!("j{number}");
        stack.record(&id, StateName::Queued).await;
    }
    stack.record("w", StateName::Waiting).await;
    stack.record("urgent", StateName::Queued).await;
    let ask = json!({"queue": LOW, "reason": "wrong lesson", "by": "alice"});
    let answer: Value = stack.ask("virtbus.queues.purge", &ask).await.unwrap();
    assert_eq!(answer, json!({"queue": LOW, "cancelled": 50}));
    // The message of the one that waits goes after its record is there.
    until("the urgent one's message alone", async || {
        match stack.lying("STORAGE").await {
            lying if lying.len() == 1 => Ok(()),
            lying => Err(lying),
        }
    })
    .await;
    let record = stack.record("j49", StateName::Cancelled).await.value;
    let cancel = record.cancel.unwrap();
    assert_eq!(cancel.by.as_deref(), Some("alice"));
    assert_eq!(cancel.reason.as_deref(), Some("wrong lesson"));
    stack.record("w", StateName::Waiting).await;
    stack.record("urgent", StateName::Queued).await;
}

#[tokio::test]
async fn a_queue_of_nobody_is_neither_paused_nor_purged() {
    let (stack, _core) = Stack::start().await;
    for subject in [
        "virtbus.queues.pause",
        "virtbus.queues.resume",
        "virtbus.queues.purge",
    ] {
        let ask = json!({"queue": "storage.nowhere.low", "reason": "x"});
        let refused = stack.ask::<Value>(subject, &ask).await.unwrap_err();
        assert!(refused.contains("queue.unknown"), "{refused}");
    }
}
