//! Waiting for a job's end, and asking why it hasn't come.

use crate::stack::{Stack, until};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use virtbus_wire::{StateName, Timestamp};

/// Longer than any answer here takes.
const LONG: Duration = Duration::from_secs(30);
/// How long a job may have no record while somebody waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

async fn explain(stack: &Stack, id: &str) -> Value {
    stack
        .ask("virtbus.jobs.explain", &json!({"id": id}))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_wait_ends_with_the_job() {
    let (stack, _core) = Stack::start().await;
    let job = json!({"id": "j", "task": "ping"}).to_string();
    // The job comes after the request, as it may.
    let body = json!({"id": "j", "timeout_s": 60}).to_string();
    let waits = async {
        loop {
            let asked = Instant::now();
            let request = async_nats::Request::new()
                .payload(body.clone().into())
                .timeout(Some(LONG));
            let answer = stack.client().send_request("virtbus.jobs.wait", request);
            let answer: Value = serde_json::from_slice(&answer.await.unwrap().payload).unwrap();
            if answer["error"]["code"] != "job.not_found" {
                return answer;
            }
            // The machine stopped, and the job came later than anybody waits for one.
            assert!(asked.elapsed() >= PATIENCE, "it's given up at once");
        }
    };
    let ends = async {
        stack.publish("storage.default.low", job).await;
        stack.record("j", StateName::Queued).await;
        stack
            .ask::<Value>("virtbus.jobs.cancel", &json!({"id": "j"}))
            .await
            .unwrap()
    };
    let (record, _) = timeout(2 * LONG, async { tokio::join!(waits, ends) })
        .await
        .unwrap();
    assert_eq!(
        (&record["id"], &record["state"]),
        (&json!("j"), &json!("cancelled"))
    );
}

#[tokio::test]
async fn a_wait_that_is_over_too_soon_says_so() {
    let (stack, _core) = Stack::start().await;
    let job = json!({"id": "j", "task": "ping"}).to_string();
    stack.publish("storage.default.low", job).await;
    stack.record("j", StateName::Queued).await;
    for (body, code) in [
        (json!({"id": "j", "timeout_s": 0}), "job.timeout"),
        (json!({"id": "j", "timeout_s": 1}), "job.timeout"),
        (json!({"id": "nobody", "timeout_s": 300}), "job.not_found"),
        (json!({"id": "j", "timeout_s": 301}), "job.invalid_params"),
    ] {
        let refused = stack.ask::<Value>("virtbus.jobs.wait", &body).await;
        let refused: Value = serde_json::from_str(&refused.unwrap_err()).unwrap();
        assert_eq!(refused["error"]["code"], code, "{body}");
    }
}

#[tokio::test]
async fn a_queued_job_knows_how_many_are_before_it() {
    let (stack, _core) = Stack::start().await;
    for (id, queue) in [
        ("low-1", "storage.default.low"),
        ("low-2", "storage.default.low"),
        ("low-3", "storage.default.low"),
        ("high-1", "storage.default.high"),
    ] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        stack.publish(queue, job).await;
        stack.record(id, StateName::Queued).await;
    }
    for (id, ahead) in [("low-1", 1), ("low-3", 3), ("high-1", 0)] {
        let told = explain(&stack, id).await;
        assert_eq!(
            (&told["why"], &told["workers"]),
            (&json!("no_worker"), &json!(0))
        );
        assert_eq!(told["ahead"], ahead, "{id}: {told}");
    }
    // Moved there, it's the last of the urgent ones.
    let ask = json!({"id": "low-2", "priority": "high"});
    let _: Value = stack.ask("virtbus.jobs.priority", &ask).await.unwrap();
    let now = Timestamp::now();
    let worker = json!({"worker": "st-1", "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "storage", "host": "h", "pools": ["default"],
        "queues": ["storage.default.high"], "slots": 1, "busy": 0, "started_at": now, "at": now});
    stack
        .client()
        .publish("$KV.workers.st-1", worker.to_string().into())
        .await
        .unwrap();
    until("a place in line", async || {
        let told = explain(&stack, "low-2").await;
        match told["why"] == "position" && told["ahead"] == 1 && told["workers"] == 1 {
            true => Ok(()),
            false => Err(told),
        }
    })
    .await;
    let waiting = json!({"id": "w", "task": "ping", "after": ["low-1"]}).to_string();
    stack.publish("storage.default.low", waiting).await;
    stack.record("w", StateName::Waiting).await;
    let told = explain(&stack, "w").await;
    assert_eq!(
        (&told["state"], &told["why"]),
        (&json!("waiting"), &json!("dependency"))
    );
    assert_eq!(told["detail"], json!({"job": "low-1", "state": "queued"}));
}
