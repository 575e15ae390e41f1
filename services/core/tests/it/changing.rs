//! Cancel, priority and retry.

use crate::stack::{Stack, code};
use serde_json::{Value, json};
use virtbus_wire::StateName;

const LOW: &str = "storage.default.low";
const HIGH: &str = "storage.default.high";

async fn queued(stack: &Stack, id: &str) {
    let job = json!({"id": id, "task": "ping"}).to_string();
    stack.publish(LOW, job).await;
    stack.record(id, StateName::Queued).await;
}

/// Subject and generation of what lies in STORAGE.
async fn lying(stack: &Stack) -> Vec<(String, Option<String>)> {
    let lying = stack.lying("STORAGE").await.into_iter();
    lying
        .map(|(subject, generation, _)| (subject, generation))
        .collect()
}

fn published(subject: &str, generation: &str) -> Vec<(String, Option<String>)> {
    vec![(subject.to_owned(), Some(generation.to_owned()))]
}

#[tokio::test]
async fn a_queued_job_is_cancelled_and_its_message_is_gone_with_the_answer() {
    let (stack, _core) = Stack::start().await;
    queued(&stack, "j").await;
    let ask = json!({"id": "j", "only_waiting": true, "by": "alice"});
    let answer: Value = stack.ask("virtbus.jobs.cancel", &ask).await.unwrap();
    assert_eq!(answer, json!({"outcome": "cancelled"}));
    assert_eq!(lying(&stack).await, []);
    let record = stack.record("j", StateName::Cancelled).await.value;
    assert_eq!(record.cancel.unwrap().by.as_deref(), Some("alice"));
    let again: Value = stack.ask("virtbus.jobs.cancel", &ask).await.unwrap();
    assert_eq!(again, json!({"outcome": "already_finished"}));
    let nobody: Value = stack
        .ask("virtbus.jobs.cancel", &json!({"id": "nobody"}))
        .await
        .unwrap();
    assert_eq!(nobody, json!({"outcome": "unknown"}));
}

#[tokio::test]
async fn a_changed_priority_leaves_one_message_and_it_is_the_new_one() {
    let (stack, _core) = Stack::start().await;
    queued(&stack, "j").await;
    for (priority, subject, generation) in [
        ("high", HIGH, "2"),
        ("low", LOW, "3"),
        // The same again changes nothing.
        ("low", LOW, "3"),
    ] {
        let ask = json!({"id": "j", "priority": priority});
        let answer: Value = stack.ask("virtbus.jobs.priority", &ask).await.unwrap();
        assert_eq!(answer["outcome"], "changed");
        assert_eq!(answer["job"]["queue"], subject);
        assert_eq!(answer["job"]["generation"].to_string(), generation);
        assert_eq!(lying(&stack).await, published(subject, generation));
    }
    let cancelled: Value = stack
        .ask("virtbus.jobs.cancel", &json!({"id": "j"}))
        .await
        .unwrap();
    assert_eq!(cancelled, json!({"outcome": "cancelled"}));
    assert_eq!(lying(&stack).await, []);
    let late: Value = stack
        .ask(
            "virtbus.jobs.priority",
            &json!({"id": "j", "priority": "high"}),
        )
        .await
        .unwrap();
    assert_eq!(late, json!({"outcome": "already_finished"}));
}

#[tokio::test]
async fn a_job_of_core_has_no_priority_to_change() {
    let (stack, _core) = Stack::start().await;
    stack.publish("core", r#"{"id":"c","task":"ping"}"#).await;
    stack.record("c", StateName::Queued).await;
    let ask = json!({"id": "c", "priority": "high"}).to_string();
    let answer = stack
        .raw("virtbus.jobs.priority", ask.into_bytes())
        .await
        .unwrap();
    let status = answer.headers.unwrap();
    let status = status.get("Nats-Service-Error-Code").unwrap().as_str();
    assert_eq!(status, "409");
    let body: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(body["error"]["code"], "conflict");
}

#[tokio::test]
async fn a_final_job_is_queued_again_under_its_id() {
    let (stack, _core) = Stack::start().await;
    queued(&stack, "j").await;
    let ask = json!({"id": "j"});
    let answer: Value = stack.ask("virtbus.jobs.retry", &ask).await.unwrap();
    assert_eq!(answer, json!({"outcome": "not_final"}));
    let _: Value = stack.ask("virtbus.jobs.cancel", &ask).await.unwrap();
    let answer: Value = stack.ask("virtbus.jobs.retry", &ask).await.unwrap();
    assert_eq!(answer, json!({"outcome": "queued"}));
    assert_eq!(lying(&stack).await, published(LOW, "2"));
    let record = stack.record("j", StateName::Queued).await.value;
    assert_eq!((record.cancel, record.tries_left), (None, 3));
    let nobody: Value = stack
        .ask("virtbus.jobs.retry", &json!({"id": "nobody"}))
        .await
        .unwrap();
    assert_eq!(nobody, json!({"outcome": "unknown"}));
}

#[tokio::test]
async fn a_job_that_nobody_could_take_is_not_retried() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.nowhere.low", r#"{"id":"n","task":"ping"}"#)
        .await;
    let record = stack.record("n", StateName::Failed).await.value;
    assert_eq!(code(&record), "queue.unknown");
    let refused = stack
        .ask::<Value>("virtbus.jobs.retry", &json!({"id": "n"}))
        .await
        .unwrap_err();
    assert!(refused.contains("queue.unknown"), "{refused}");
}

#[tokio::test]
async fn a_waiting_job_gets_its_priority_in_the_record_alone() {
    let (stack, _core) = Stack::start().await;
    let job = json!({"id": "w", "task": "ping", "not_before": "2999-01-01T00:00:00.000Z"});
    stack.publish(LOW, job.to_string()).await;
    stack.record("w", StateName::Waiting).await;
    stack.empty("STORAGE").await;
    let ask = json!({"id": "w", "priority": "high"});
    let answer: Value = stack.ask("virtbus.jobs.priority", &ask).await.unwrap();
    assert_eq!(answer["job"]["priority"], "high");
    assert_eq!(answer["job"]["state"], "waiting");
    assert_eq!(lying(&stack).await, []);
}

#[tokio::test]
async fn a_job_that_was_published_just_now_is_known_to_whoever_asks_for_it() {
    let (stack, _core) = Stack::start().await;
    // Each request comes before anybody had a reason to make the record.
    for (verb, more, expected) in [
        ("cancel", json!({}), json!({"outcome": "cancelled"})),
        ("retry", json!({}), json!({"outcome": "not_final"})),
        (
            "priority",
            json!({"priority": "low"}),
            json!({"outcome": "changed"}),
        ),
        ("explain", json!({}), json!({"state": "queued"})),
        ("get", json!({}), json!({"id": "get", "state": "queued"})),
    ] {
        let job = json!({"id": verb, "task": "ping"}).to_string();
        stack.publish(LOW, job).await;
        let mut ask = json!({"id": verb});
        ask.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let subject = format!("virtbus.jobs.{verb}");
        let answer: Value = stack.ask(&subject, &ask).await.unwrap();
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&answer[name], value, "{verb}: {answer}");
        }
    }
}
