//! The simulated server answers as the real one does: the same script is run against both.

mod sides;

use serde_json::{Value, json};
use sides::same_on_both;
use virtbus_sim::broker::stream::Ms;

const LOW: &str = "STORAGE.storage_p_low";

/// One thing that a client does.
pub(crate) enum Step {
    /// Sends this; whatever comes for it is looked at.
    Send {
        subject: String,
        headers: Vec<(&'static str, String)>,
        payload: String,
    },
    /// Says this of the delivery that came as the n-th.
    Say(usize, &'static str),
    /// Waits so long.
    Wait(Ms),
}

fn send(subject: impl Into<String>, payload: impl ToString) -> Step {
    Step::Send {
        subject: subject.into(),
        headers: Vec::new(),
        payload: payload.to_string(),
    }
}

fn with(mut step: Step, name: &'static str, value: impl ToString) -> Step {
    if let Step::Send { headers, .. } = &mut step {
        headers.push((name, value.to_string()));
    }
    step
}

fn key(key: &str, payload: &str, expected: u64) -> Step {
    let step = send(format!("$KV.jobs.{key}"), payload);
    with(step, "Nats-Expected-Last-Subject-Sequence", expected)
}

fn pull(asked: Value) -> Step {
    send(format!("$JS.API.CONSUMER.MSG.NEXT.{LOW}"), asked)
}

fn api(call: &str, asked: Value) -> Step {
    send(format!("$JS.API.{call}"), asked)
}

#[tokio::test]
async fn buckets_answer_alike() {
    same_on_both(vec![
        key("a", "one", 0),
        key("a", "again", 0),
        key("a", "two", 1),
        key("b", "three", 0),
        api(
            "STREAM.MSG.GET.KV_jobs",
            json!({"last_by_subj": "$KV.jobs.a"}),
        ),
        api(
            "STREAM.MSG.GET.KV_jobs",
            json!({"last_by_subj": "$KV.jobs.none"}),
        ),
        api("DIRECT.GET.KV_jobs.$KV.jobs.a", json!({})),
        api("DIRECT.GET.KV_jobs.$KV.jobs.none", json!({})),
        api(
            "DIRECT.GET.KV_jobs",
            json!({"seq": 1, "batch": 1, "next_by_subj": "$KV.jobs.>"}),
        ),
        api(
            "DIRECT.GET.KV_jobs",
            json!({"seq": 1, "batch": 9, "next_by_subj": "$KV.jobs.>"}),
        ),
        api(
            "DIRECT.GET.KV_jobs",
            json!({"seq": 9, "batch": 9, "next_by_subj": "$KV.jobs.>"}),
        ),
        api(
            "DIRECT.GET.KV_jobs",
            json!({"multi_last": ["$KV.jobs.a", "$KV.jobs.none"], "batch": 9}),
        ),
        api(
            "DIRECT.GET.KV_jobs",
            json!({"multi_last": ["$KV.jobs.none"], "batch": 9}),
        ),
        with(
            with(key("b", "", 4), "KV-Operation", "DEL"),
            "Nats-TTL",
            "1s",
        ),
        api("DIRECT.GET.KV_jobs.$KV.jobs.b", json!({})),
        key("b", "four", 0),
        key("b", "four", 5),
    ])
    .await;
}

#[tokio::test]
async fn queues_answer_alike() {
    let low = "storage.p.low";
    same_on_both(vec![
        pull(json!({"batch": 1, "no_wait": true})),
        with(send(low, "one"), "Nats-Msg-Id", "m1"),
        with(send(low, "one"), "Nats-Msg-Id", "m1"),
        with(send("storage.p.high", "one"), "Nats-Msg-Id", "m1"),
        send(low, "two"),
        send(low, "three"),
        pull(json!({"batch": 1, "no_wait": true})),
        api(&format!("CONSUMER.INFO.{LOW}"), json!({})),
        Step::Say(0, "+WPI"),
        Step::Say(0, "-NAK {\"delay\": 400000000}"),
        pull(json!({"batch": 5, "no_wait": true})),
        Step::Wait(900),
        pull(json!({"batch": 1, "no_wait": true})),
        Step::Say(3, "+ACK"),
        Step::Say(3, "+ACK"),
        Step::Say(1, "-NAK"),
        pull(json!({"batch": 1, "expires": 300_000_000})),
        pull(json!({"batch": 1, "expires": 300_000_000})),
        Step::Wait(900),
        api("STREAM.MSG.DELETE.STORAGE", json!({"seq": 2})),
        api("STREAM.MSG.DELETE.STORAGE", json!({"seq": 2})),
        api("STREAM.MSG.DELETE.STORAGE", json!({"seq": 99})),
        Step::Say(4, "+ACK"),
        pull(json!({"batch": 1, "no_wait": true})),
        api(&format!("CONSUMER.INFO.{LOW}"), json!({})),
        api(
            "DIRECT.GET.STORAGE",
            json!({"seq": 1, "batch": 9, "next_by_subj": ">"}),
        ),
    ])
    .await;
}

#[tokio::test]
async fn paused_queues_answer_alike() {
    let pause = format!("CONSUMER.PAUSE.{LOW}");
    same_on_both(vec![
        send("storage.p.low", "one"),
        api(&pause, json!({"pause_until": "2200-01-01T00:00:00Z"})),
        pull(json!({"batch": 1, "expires": 300_000_000})),
        Step::Wait(900),
        api(&format!("CONSUMER.INFO.{LOW}"), json!({})),
        // Not before the next request are those that wait looked at, also when no message fits it.
        pull(json!({"batch": 1, "expires": 60_000_000_000_u64})),
        Step::Wait(900),
        api(&pause, json!({})),
        pull(json!({"batch": 1, "no_wait": true, "max_bytes": 1})),
        Step::Wait(300),
        pull(json!({"batch": 1, "no_wait": true, "max_bytes": 1})),
        Step::Say(0, "+ACK"),
        pull(json!({"batch": 1, "no_wait": true, "max_bytes": 1})),
        api("CONSUMER.NAMES.STORAGE", json!({"offset": 0})),
    ])
    .await;
}
