//! Submitting jobs: all of a request or none.

use crate::stack::{Stack, until};
use serde_json::{Value, json};
use virtbus_wire::{StateName, Timestamp};

/// Somebody who seems to serve pool `default`: its lease stays for the time of a test.
async fn worker(stack: &Stack) {
    let now = Timestamp::now();
    let queues: Vec<String> = ["high", "default", "low"]
        .map(|priority| format!("storage.default.{priority}"))
        .to_vec();
    let beat = json!({"worker": "st-1", "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "storage", "host": "h", "pools": ["default"], "queues": queues,
        "slots": 1, "busy": 0, "started_at": now, "at": now});
    let lease = stack
        .bus
        .jetstream()
        .publish("$KV.workers.st-1", beat.to_string().into());
    lease.await.unwrap().await.unwrap();
}

async fn submit(stack: &Stack, body: Value) -> Result<Value, Value> {
    worker(stack).await;
    let answer = stack.ask::<Value>("virtbus.jobs.submit", &body).await;
    answer.map_err(|refused| serde_json::from_str(&refused).unwrap())
}

#[tokio::test]
async fn a_submitted_job_is_recorded_before_it_is_published() {
    let (stack, _core) = Stack::start().await;
    let body = json!({"id": "c", "task": "create_disk", "user": "alice",
        "params": {"disk": "d1", "size": "1GiB"}, "labels": {"class": "maths-1"}});
    let answer = submit(&stack, body.clone()).await.unwrap();
    assert_eq!(answer["id"], "c");
    assert_eq!(answer["queue"], "storage.default.high");
    let lying = stack.lying("STORAGE").await;
    let message = ("storage.default.high".to_owned(), Some("1".to_owned()));
    assert_eq!(lying.len(), 1);
    assert_eq!((lying[0].0.clone(), lying[0].1.clone()), message);
    assert_eq!(answer["seq"], lying[0].2);
    let record = stack.record("c", StateName::Queued).await.value;
    assert_eq!(record.objects, ["disk.d1"]);
    assert_eq!(
        (record.generation, record.user.unwrap().as_str()),
        (1, "alice")
    );
    assert_eq!(record.params["size"], 1_u64 << 30);
    // The same id again is another's.
    let again = submit(&stack, body).await.unwrap_err();
    assert_eq!(again["error"]["code"], "conflict");
    assert_eq!(stack.lying("STORAGE").await, lying);
}

#[tokio::test]
async fn several_jobs_follow_each_other_to_where_the_first_one_goes() {
    let (stack, _core) = Stack::start().await;
    let body = json!({"jobs": [
        {"task": "create_disk", "params": {"disk": "d1", "size": "1GiB"}},
        {"id": "r", "task": "resize", "params": {"disk": "d1", "size": "2GiB"}, "after": [-1]},
        {"task": "ping", "after": [{"job": -2, "on": ["failed"]}], "priority": "low"},
    ]});
    let answer = submit(&stack, body).await.unwrap();
    let queues: Vec<&str> = answer
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["queue"].as_str().unwrap())
        .collect();
    let expected = ["high", "default", "low"].map(|name| format!("storage.default.{name}"));
    assert_eq!(queues, expected);
    let first = answer[0]["id"].as_str().unwrap();
    let record = stack.record("r", StateName::Queued).await.value;
    assert_eq!(record.after[0].job.as_str(), first);
}

#[tokio::test]
async fn one_job_that_cannot_be_accepted_leaves_nothing_of_the_others() {
    let (stack, _core) = Stack::start().await;
    let first = json!({"id": "a", "task": "ping"});
    for (second, code, field) in [
        (
            json!({"task": "resize", "params": {"disk": "d1"}}),
            "job.invalid_params",
            "size",
        ),
        (json!({"task": "mkfs"}), "job.unknown_task", ""),
        (
            json!({"task": "ping", "pool": "nowhere"}),
            "queue.unknown",
            "",
        ),
        (
            json!({"task": "sparsify", "params": {"disk": "nobody"}}),
            "disk.not_found",
            "",
        ),
        (
            json!({"id": "storage-1", "task": "ping"}),
            "job.malformed",
            "id",
        ),
        (
            json!({"task": "ping", "expires_at": "2020-01-01T00:00:00.000Z"}),
            "job.expired",
            "",
        ),
    ] {
        let body = json!({"jobs": [first, second]});
        let refused = submit(&stack, body).await.unwrap_err();
        assert_eq!(refused["error"]["code"], code, "{second}: {refused}");
        if !field.is_empty() {
            assert_eq!(refused["error"]["detail"]["field"], field, "{refused}");
        }
        let nobody = stack
            .ask::<Value>("virtbus.jobs.get", &json!({"id": "a"}))
            .await;
        assert!(nobody.unwrap_err().contains("job.not_found"), "{second}");
    }
    // One that fails once the others are there takes them with it.
    submit(&stack, json!({"id": "there", "task": "ping"}))
        .await
        .unwrap();
    let body = json!({"jobs": [first, {"id": "there", "task": "ping"}]});
    let refused = submit(&stack, body).await.unwrap_err();
    assert_eq!(refused["error"]["code"], "conflict");
    assert_eq!(state(&stack, "a").await, None);
    stack.record("there", StateName::Queued).await;
    assert_eq!(stack.lying("STORAGE").await.len(), 1);
    submit(&stack, json!({"jobs": [first]})).await.unwrap();
}

/// The state of a job, if there is one.
async fn state(stack: &Stack, id: &str) -> Option<StateName> {
    let found = stack.jobs.get_latest(&id.parse().unwrap()).await.unwrap();
    found.map(|entry| entry.value.state.name())
}

/// Bounds how many messages may lie on each queue.
async fn bound(stack: &Stack, messages: i64) {
    let mut stream = stack.bus.jetstream().get_stream("STORAGE").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages_per_subject = messages;
    stack.bus.jetstream().update_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_a_submission_and_keeps_nothing_of_it() {
    let (stack, _core) = Stack::start().await;
    bound(&stack, 1).await;
    let there = json!({"id": "there", "task": "ping"}).to_string();
    let seq = stack.publish("storage.default.default", there).await;
    for body in [
        json!({"id": "a", "task": "ping"}),
        json!({"jobs": [{"id": "a", "task": "ping"}, {"id": "b", "task": "ping"}]}),
    ] {
        let refused = submit(&stack, body.clone()).await.unwrap_err();
        assert_eq!(refused["error"]["code"], "queue.full");
        assert_eq!(refused["error"]["retryable"], true);
        assert_eq!(state(&stack, "a").await, None);
        assert_eq!(state(&stack, "b").await, None);
    }
    // So it can be tried again.
    stack.bus.delete_message("STORAGE", seq).await.unwrap();
    let again = submit(&stack, json!({"id": "a", "task": "ping"})).await;
    assert_eq!(again.unwrap()["id"], "a");
    stack.record("a", StateName::Queued).await;
}

#[tokio::test]
async fn what_a_queue_has_no_room_for_once_the_first_job_lies_there_is_published_later() {
    let (stack, _core) = Stack::start().await;
    bound(&stack, 1).await;
    let body = json!({"jobs": [{"id": "a", "task": "ping"}, {"id": "b", "task": "ping"}]});
    let answer = submit(&stack, body).await.unwrap();
    let lying = stack.lying("STORAGE").await;
    assert_eq!(lying.len(), 1);
    assert_eq!(
        (&answer[0]["seq"], &answer[1]["id"], &answer[1]["seq"]),
        (&json!(lying[0].2), &json!("b"), &json!(null))
    );
    assert_eq!(state(&stack, "b").await, Some(StateName::Queued));
    bound(&stack, 10).await;
    until("the other message", async || {
        match stack.lying("STORAGE").await {
            lying if lying.len() == 2 => Ok(()),
            lying => Err(lying),
        }
    })
    .await;
    assert_eq!(state(&stack, "a").await, Some(StateName::Queued));
    assert_eq!(state(&stack, "b").await, Some(StateName::Queued));
}

#[tokio::test]
async fn without_a_worker_nothing_is_accepted() {
    let (stack, _core) = Stack::start().await;
    let body = json!({"task": "ping"});
    let refused = stack.ask::<Value>("virtbus.jobs.submit", &body).await;
    assert!(refused.unwrap_err().contains("queue.no_worker"));
}
