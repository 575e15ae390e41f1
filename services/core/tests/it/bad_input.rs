//! What should not have been published ends as the contract says, and stops nothing.

use crate::stack::{Stack, code, until};
use async_nats::jetstream::stream::DiscardPolicy;
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_wire::StateName;

const QUEUE: &str = "storage.default.default";

/// Publishes and gives the id that the job must have got: its own, or its number.
async fn publish(stack: &Stack, payload: &[u8], own: Option<&str>) -> String {
    let seq = stack.publish(QUEUE, payload).await;
    own.map_or_else(|| format!("storage-{seq}"), str::to_owned)
}

#[tokio::test]
async fn what_cannot_be_decoded_is_a_failed_job_and_a_dead_letter() {
    let (stack, _core) = Stack::start().await;
    let long = json!({"task": "ping", "id": "x".repeat(300)}).to_string();
    let payloads: [&[u8]; 11] = [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[1]",
        br#"{"params":{}}"#,
        br#"{"task":"ping","id":"a/b"}"#,
        br#"{"task":"ping","id":".."}"#,
        br#"{"task":"ping","id":"-rf"}"#,
        br#"{"task":"ping","id":"a\nb"}"#,
        br#"{"task":"ping","id":"storage-1"}"#,
        long.as_bytes(),
    ];
    let mut ids = Vec::new();
    for payload in payloads {
        ids.push((publish(&stack, payload, None).await, payload));
    }
    for (id, payload) in &ids {
        let record = stack.record(id, StateName::Failed).await.value;
        let text = String::from_utf8_lossy(payload);
        assert_eq!(code(&record), "job.malformed", "{text}");
    }
    stack.empty("STORAGE").await;
    let letters = until("the dead letters", async || {
        let page = stack
            .bus
            .browse("DLQ", ">", 1)
            .await
            .map_err(|error| error.to_string())?;
        let count = page.items.len();
        if count == ids.len() {
            Ok(page.items)
        } else {
            Err(count.to_string())
        }
    })
    .await;
    for (letter, (id, payload)) in letters.iter().zip(&ids) {
        assert_eq!(letter.subject, format!("dlq.{QUEUE}"));
        assert_eq!(letter.header("Virtbus-Reason"), Some("job.malformed"));
        assert_eq!(letter.header("Virtbus-Stream"), Some("STORAGE"));
        let seq = letter.header("Virtbus-Sequence").unwrap();
        assert!(
            ids.iter().any(|(id, _)| *id == format!("storage-{seq}")),
            "{id}"
        );
        let payload_known = ids.iter().any(|(_, payload)| letter.payload == *payload);
        assert!(payload_known, "{payload:?}");
    }
}

#[tokio::test]
async fn what_cannot_run_fails_under_its_own_id_and_the_jobs_behind_it_go_on() {
    let (stack, _core) = Stack::start().await;
    let disk = |size: Value| json!({"task": "create_disk", "params": {"disk": "d1", "size": size}});
    let param = |params: Value| json!({"task": "resize", "params": params});
    let cases = [
        (json!({"task": "format_c"}), "job.unknown_task"),
        (
            json!({"task": "finish_upload", "params": {}}),
            "job.unknown_task",
        ),
        (disk(json!(0)), "job.invalid_params"),
        (disk(json!(-1)), "job.invalid_params"),
        (disk(json!("-1")), "job.invalid_params"),
        (disk(json!("1G ")), "job.invalid_params"),
        (disk(json!([])), "job.invalid_params"),
        (
            param(json!({"disk": "d1", "size": 1 << 20, "color": "red"})),
            "job.invalid_params",
        ),
        (
            param(json!({"disk": "../etc", "size": 1 << 20})),
            "job.invalid_params",
        ),
        (
            param(json!({"disk": "a/b", "size": 1 << 20})),
            "job.invalid_params",
        ),
        (
            param(json!({"disk": "-o", "size": 1 << 20})),
            "job.invalid_params",
        ),
        (
            param(json!({"disk": "a\nb", "size": 1 << 20})),
            "job.invalid_params",
        ),
        (
            param(json!({"disk": "x".repeat(300), "size": 1 << 20})),
            "job.invalid_params",
        ),
        (param(json!({"disk": "d1"})), "job.invalid_params"),
        (param(json!([])), "job.invalid_params"),
        (
            json!({"task": "ping", "locks": {"exclusive": ["disk.d1"]}}),
            "job.invalid_params",
        ),
        (
            json!({"task": "ping", "expires_at": "2001-01-01T00:00:00Z"}),
            "job.expired",
        ),
    ];
    let mut expected = Vec::new();
    for (number, (mut job, code)) in cases.into_iter().enumerate() {
        let id = format!("bad-{number}");
        job["id"] = json!(id);
        publish(&stack, job.to_string().as_bytes(), Some(&id)).await;
        expected.push((id, code));
    }
    publish(&stack, br#"{"id":"good","task":"ping"}"#, Some("good")).await;
    for (id, expected) in expected {
        let record = stack.record(&id, StateName::Failed).await.value;
        assert_eq!(code(&record), expected, "{id}: {record:?}");
    }
    stack.record("good", StateName::Queued).await;
    until("only the good one lies there", async || {
        match stack.lying("STORAGE").await {
            lying if lying.len() == 1 => Ok(()),
            lying => Err(lying),
        }
    })
    .await;
}

#[tokio::test]
async fn a_megabyte_fails_and_leaves_a_small_record() {
    let (stack, _core) = Stack::start().await;
    let fill = "x".repeat((1 << 20) - 200);
    let job = json!({"id": "huge", "task": "ping", "user": "alice", "params": {"x": fill}});
    publish(&stack, job.to_string().as_bytes(), Some("huge")).await;
    let record = stack.record("huge", StateName::Failed).await.value;
    assert_eq!(code(&record), "job.invalid_params");
    assert_eq!(record.user.as_ref().unwrap().as_str(), "alice");
    assert!(serde_json::to_vec(&record).unwrap().len() < 16 << 10);
    let junk = publish(&stack, &vec![b'x'; 1 << 20], None).await;
    let record = stack.record(&junk, StateName::Failed).await.value;
    assert_eq!(code(&record), "job.malformed");
    stack.empty("STORAGE").await;
}

#[tokio::test]
async fn dead_letters_are_bounded_by_age_and_size_and_the_oldest_make_room() {
    const JOBS: usize = 64;
    let (stack, _core) = Stack::start().await;
    let mut letters = stack.bus.jetstream().get_stream("DLQ").await.unwrap();
    let mut config = letters.info().await.unwrap().config.clone();
    assert_eq!(config.max_age, Duration::from_secs(30 * 24 * 60 * 60));
    assert_eq!(config.max_bytes, 1 << 30);
    assert_eq!(config.discard, DiscardPolicy::Old);
    // With room for some of what comes.
    config.max_bytes = 16 << 10;
    stack.bus.jetstream().update_stream(config).await.unwrap();
    let payload = "not json ".repeat(100);
    for _ in 0..JOBS {
        stack.publish(QUEUE, payload.as_bytes()).await;
    }
    // Every job has ended, and with it its letter was written.
    stack.empty("STORAGE").await;
    let page = stack.bus.browse("DLQ", ">", 1).await.unwrap();
    let seqs: Vec<u64> = page.items.iter().map(|letter| letter.seq).collect();
    assert!((1..JOBS).contains(&seqs.len()), "{seqs:?}");
    let jobs = u64::try_from(JOBS).unwrap();
    assert_eq!(seqs.last(), Some(&jobs), "the newest are kept");
    let state = &letters.info().await.unwrap().state;
    assert!(state.bytes <= 16 << 10, "{state:?}");
}
