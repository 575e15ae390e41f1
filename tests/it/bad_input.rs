//! Bad input: each ends as the contract says, none reaches a tool, none stops a service, and the
//! jobs behind it go on.

use crate::shared;
use async_nats::HeaderMap;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_testbed::until;
use virtbus_tests::{Bus, Stack, code_of, field_of, state_of};
use virtbus_wire::Timestamp;

const HIGH: &str = "storage.default.high";
const DEFAULT: &str = "storage.default.default";
/// What a message may have, by the contract.
const MIB: usize = 1 << 20;
/// What a record may take: parameters and result stay below 16 KiB, the rest is small.
const RECORD_BYTES_MAX: usize = 32 << 10;
/// A second on an idle machine; this one is testing.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Of so many one after the other one is told in time: the machine may stop for a while, but who is
/// slow is slow each time.
const TRIES: usize = 3;

/// The job behind a bad one goes on, and no service has ended.
pub(crate) async fn goes_on(stack: &Stack, bus: &Bus) {
    for subject in [HIGH, DEFAULT, "storage.default.low"] {
        bus.ping(subject).await;
    }
    assert_eq!(stack.dead(), [], "no service ended");
}

/// A failed job, with an error for people.
pub(crate) fn fails(stack: &Stack, record: &Value, code: &str) {
    let what = format!("{}: {record:#}", record["id"]);
    assert_eq!(
        (state_of(record), code_of(record)),
        ("failed", code),
        "{what}"
    );
    assert_eq!(record["attempt"], 0, "the work never began: {what}");
    let message = record["error"]["message"].as_str().unwrap();
    assert!(!message.is_empty(), "{what}");
    let host = stack.folder().to_str().unwrap();
    for secret in [host, "/tmp", "/usr", "qemu-img", ".part"] {
        assert!(!message.contains(secret), "{secret:?} in {message:?}");
    }
}

/// What can't be decoded is a failed job named by its sequence.
async fn is_malformed(stack: &Stack, bus: &Bus, headers: HeaderMap, payload: Vec<u8>) -> u64 {
    let seq = bus.publish_with(HIGH, headers, payload).await;
    let record = bus.end_of(&format!("storage-{seq}")).await;
    fails(stack, &record, "job.malformed");
    seq
}

/// The letter about a message of the stream.
async fn dead_letter(bus: &Bus, seq: u64) -> async_nats::jetstream::message::StreamMessage {
    let dlq = bus.jetstream.get_stream("DLQ").await.unwrap();
    until(&format!("the dead letter of {seq}"), async || {
        let last = dlq.cached_info().state.last_sequence;
        let info = dlq.get_info().await.map_err(|error| error.to_string())?;
        for number in info.state.first_sequence..=info.state.last_sequence.max(last) {
            let letter = dlq.get_raw_message(number).await;
            let letter = letter.map_err(|error| error.to_string())?;
            let sequence = letter
                .headers
                .get("Virtbus-Sequence")
                .map(|text| text.as_str());
            if sequence == Some(seq.to_string().as_str()) {
                return Ok(letter);
            }
        }
        Err("no such letter".to_owned())
    })
    .await
}

#[tokio::test]
async fn what_is_no_json_becomes_a_failed_job_and_a_dead_letter() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let payloads: [&[u8]; 7] = [
        b"",
        b"not json",
        b"{\"task\":\"ping\"",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"{\"task\":\"ping\"}{\"task\":\"ping\"}",
    ];
    for payload in payloads {
        let seq = is_malformed(&stack, &bus, HeaderMap::new(), payload.to_vec()).await;
        let letter = dead_letter(&bus, seq).await;
        assert_eq!(letter.subject.as_str(), "dlq.storage.default.high");
        assert_eq!(letter.payload.as_ref(), payload);
        let header = |name| {
            letter
                .headers
                .get(name)
                .map(|value| value.as_str().to_owned())
        };
        assert_eq!(header("Virtbus-Stream").as_deref(), Some("STORAGE"));
        let reason = header("Virtbus-Reason").expect("a reason");
        assert!(reason.contains("job.malformed"), "{reason}");
    }
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn ids_that_are_none_are_malformed() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let long = "x".repeat(300);
    let bad = [
        "",
        "a/b",
        "..",
        "../../etc/passwd",
        "-rf",
        "a\nb",
        "a b",
        "a.b",
        "*",
        ">",
        &long,
    ];
    let own = ["storage-1", "hypervisor-7", "core-3", "mine-finish"];
    for id in bad.into_iter().chain(own) {
        let job = json!({"id": id, "task": "ping"}).to_string().into_bytes();
        is_malformed(&stack, &bus, HeaderMap::new(), job).await;
    }
    let job = json!({"id": 7, "task": "ping"}).to_string().into_bytes();
    is_malformed(&stack, &bus, HeaderMap::new(), job).await;
    for id in ["a/b", "..", "-rf", "storage-1", &long] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        is_malformed(&stack, &bus, headers, br#"{"task":"ping"}"#.to_vec()).await;
    }
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn a_task_that_nobody_knows_is_told_so() {
    let stack = shared().await;
    let bus = stack.bus().await;
    for task in [
        "make_coffee",
        "CREATE_DISK",
        "create_disk ",
        "../ping",
        "start_domain",
    ] {
        let record = bus.run(DEFAULT, task, json!({})).await;
        fails(&stack, &record, "job.unknown_task");
    }
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn a_queue_that_is_none_is_told_so() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let subjects = [
        "storage.nobody.high",
        "storage.default.urgent",
        "storage.nobody_default.low",
        "storage.default_default.low",
        "storage.Default.low",
        "hypervisor.nobody.low",
        "hypervisor.nobody.default",
    ];
    for subject in subjects {
        let mut delays: Vec<Duration> = Vec::new();
        while delays.iter().all(|took| *took >= TOLD_WITHIN) {
            assert!(delays.len() < TRIES, "{subject}: {delays:?}");
            let record = bus.run(subject, "ping", json!({})).await;
            fails(&stack, &record, "queue.unknown");
            assert_eq!(record["queue"], subject);
            let time = |field: &str| -> Timestamp {
                serde_json::from_value(record[field].clone()).unwrap()
            };
            delays.push(time("finished_at").since(time("submitted_at")));
        }
    }
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn the_same_id_published_by_many_at_once_is_one_job() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let events = bus.events().await;
    let queues = [HIGH, DEFAULT, "storage.default.low"];
    let copy = async |number: usize| {
        // Different disks: whichever copy counts, one disk alone is made.
        let params = json!({"disk": format!("bad-twin-{number}"), "size": "1MiB"});
        let job = json!({"id": "bad-twin", "task": "create_disk", "params": params});
        let bus = stack.bus().await;
        bus.publish(queues[number % queues.len()], &job).await
    };
    let copies = join_all((0..12).map(copy)).await;
    assert_eq!(copies.len(), 12);
    let record = bus.end_of("bad-twin").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    // All copies are behind us once their queues have done what was published after them.
    goes_on(&stack, &bus).await;
    let seen = events.of("bad-twin");
    let claims: Vec<&Value> = seen.iter().map(|change| &change.record["claim"]).collect();
    assert!(
        claims.iter().all(|claim| **claim == 0 || **claim == 1),
        "{claims:?}"
    );
    assert_eq!(seen.iter().filter(|change| change.is_final()).count(), 1);
    let mut disks = 0;
    for number in 0..12 {
        disks += usize::from(bus.disk(&format!("bad-twin-{number}")).await.is_some());
    }
    assert_eq!(disks, 1, "one job, one disk");
    // Later ones have no effect either.
    let job = json!({"id": "bad-twin", "task": "ping"});
    bus.publish(HIGH, &job).await;
    goes_on(&stack, &bus).await;
    assert_eq!(bus.record("bad-twin").await.unwrap()["task"], "create_disk");
}

#[tokio::test]
async fn a_message_of_a_mebibyte_stops_nobody() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let head = br#"{"id":"bad-large","task":"create_disk","params":{"disk":""#.as_slice();
    let tail = br#"","size":512}}"#.as_slice();
    let filling = vec![b'x'; MIB - head.len() - tail.len()];
    bus.publish_bytes(HIGH, [head, &filling, tail].concat())
        .await;
    let record = bus.end_of("bad-large").await;
    fails(&stack, &record, "job.invalid_params");
    assert_eq!(field_of(&record), "params", "{record:#}");
    assert!(record.to_string().len() < RECORD_BYTES_MAX);

    let seq = is_malformed(&stack, &bus, HeaderMap::new(), vec![b'['; MIB]).await;
    let letter = dead_letter(&bus, seq).await;
    assert_eq!(letter.payload.len(), MIB, "the whole of it is kept");
    let record = bus.record(&format!("storage-{seq}")).await.unwrap();
    assert!(record.to_string().len() < RECORD_BYTES_MAX);
    goes_on(&stack, &bus).await;
}

#[tokio::test]
async fn locks_and_bounds_of_the_envelope_are_checked() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let locks: Vec<String> = (0..17).map(|number| format!("x.{number}")).collect();
    let wrong = [
        ("bad-e1", json!({"locks": {"exclusive": ["disk.d1"]}})),
        ("bad-e2", json!({"locks": {"exclusive": locks}})),
        ("bad-e3", json!({"retry": {"max_attempts": 0}})),
        ("bad-e4", json!({"params": {"x": "y".repeat(13 << 10)}})),
    ];
    for (id, mut job) in wrong {
        job["id"] = json!(id);
        job["task"] = json!("ping");
        bus.publish(HIGH, &job).await;
        let record = bus.end_of(id).await;
        fails(&stack, &record, "job.invalid_params");
    }
    goes_on(&stack, &bus).await;
}
