//! The definitions, applied to a real server.

use async_nats::jetstream::{Context, stream};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use virtbus_bus::topology::{
    Effect, Item, Mode, Outcome, Report, Wanted, apply, consumer, ensure_consumers, streams,
};
use virtbus_testbed::server::{Server, nats_folder};
use virtbus_wire::Queue;

fn queues(subjects: &[&str]) -> Vec<Queue> {
    subjects.iter().map(|text| text.parse().unwrap()).collect()
}

fn wanted(subjects: &[&str]) -> Wanted {
    Wanted {
        replicas: None,
        queues: queues(subjects),
    }
}

/// A server with everything on it and the consumers of some queues.
pub(crate) async fn set_up(subjects: &[&str]) -> (Server, Context) {
    let server = Server::dev().await;
    let js = server.jetstream().await;
    let report = apply(&js, &wanted(subjects), Mode::Apply).await.unwrap();
    assert_eq!(report.refused().count(), 0, "{report}");
    (server, js)
}

async fn api(js: &Context, subject: &str, payload: &Value) -> Value {
    // Some requests must have no payload at all.
    let payload = if payload.is_null() {
        Bytes::new()
    } else {
        payload.to_string().into()
    };
    let subject = format!("$JS.API.{subject}");
    let answer = js.client().request(subject, payload).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// What the server leaves out when it answers, at every depth.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => matches!(text.as_str(), "" | "none"),
        Value::Object(members) => members.values().all(is_default),
        Value::Array(items) => items.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The keys of `file` whose value the server doesn't have.
fn lost(file: &Map<String, Value>, server: &Value) -> Vec<String> {
    file.iter()
        .filter(|(key, value)| match (value, &server[key.as_str()]) {
            (value, Value::Null) => !is_default(value),
            (Value::Object(members), found) => !lost(members, found).is_empty(),
            (value, found) => *value != found,
        })
        .map(|(key, _)| key.clone())
        .collect()
}

fn changed(report: &Report) -> Vec<(String, Outcome)> {
    report
        .drifted()
        .map(|Item { asset, outcome, .. }| (asset.to_string(), outcome.clone()))
        .collect()
}

#[tokio::test]
async fn every_file_is_taken_and_read_back_whole() {
    let subjects = ["storage.a_b.low", "hypervisor.hv-1.high", "core"];
    let (_server, js) = set_up(&subjects).await;
    for definition in streams().unwrap() {
        let name = definition.stream();
        let info = api(&js, &format!("STREAM.INFO.{name}"), &Value::Null).await;
        assert_eq!(lost(&definition.config, &info["config"]), [""; 0], "{name}");
    }
    for queue in queues(&subjects) {
        let definition = consumer(&queue).unwrap();
        let subject = format!("CONSUMER.INFO.{}.{}", definition.stream, definition.name);
        let info = api(&js, &subject, &Value::Null).await;
        assert_eq!(
            lost(&definition.config, &info["config"]),
            [""; 0],
            "{queue}"
        );
    }
}

#[tokio::test]
async fn every_file_in_the_folder_is_one_that_is_applied() {
    let mut files = 0;
    for folder in ["streams", "kv"] {
        for entry in std::fs::read_dir(nats_folder().join(folder)).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let config: Map<String, Value> = serde_json::from_str(&text).unwrap();
            let known = streams().unwrap();
            assert!(known.iter().any(|known| known.config == config), "{text}");
            files += 1;
        }
    }
    assert_eq!(files, streams().unwrap().len());
}

#[tokio::test]
async fn applying_twice_changes_nothing() {
    let (_server, js) = set_up(&["storage.p.low"]).await;
    let report = apply(&js, &wanted(&["storage.p.low"]), Mode::Apply)
        .await
        .unwrap();
    assert_eq!(changed(&report), []);
    assert!(report.items.iter().all(|item| item.changes.is_empty()));
}

#[tokio::test]
async fn a_dry_run_tells_and_does_not_act() {
    let server = Server::dev().await;
    let js = server.jetstream().await;
    let dry = apply(&js, &wanted(&["storage.p.low"]), Mode::DryRun)
        .await
        .unwrap();
    assert_eq!(dry.drifted().count(), dry.items.len());
    assert!(dry.to_string().contains("stream STORAGE: would be created"));
    assert_eq!(js.stream_names().count().await, 0);

    let done = apply(&js, &wanted(&["storage.p.low"]), Mode::Apply)
        .await
        .unwrap();
    assert_eq!(changed(&done), changed(&dry));
}

#[tokio::test]
async fn drift_is_reported_and_repaired() {
    let (_server, js) = set_up(&["storage.p.low"]).await;
    let mut config = js
        .get_stream("STORAGE")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.republish = None;
    config.discard_new_per_subject = false;
    config.max_bytes = 1 << 20;
    js.update_stream(config).await.unwrap();
    let mut definition = consumer(&"storage.p.low".parse().unwrap()).unwrap().config;
    definition.insert("ack_wait".into(), json!(5_000_000_000_i64));
    let subject = "CONSUMER.CREATE.STORAGE.storage_p_low.storage.p.low";
    let payload = json!({"stream_name": "STORAGE", "config": definition});
    api(&js, subject, &payload).await;

    let wanted = wanted(&["storage.p.low"]);
    let dry = apply(&js, &wanted, Mode::DryRun).await.unwrap();
    let report = apply(&js, &wanted, Mode::Apply).await.unwrap();
    assert_eq!(
        changed(&report),
        [
            ("stream STORAGE".to_owned(), Outcome::Updated),
            (
                "consumer STORAGE storage_p_low".to_owned(),
                Outcome::Updated
            )
        ]
    );
    assert_eq!(changed(&dry), changed(&report));
    let fields: Vec<&str> = report
        .drifted()
        .flat_map(|item| item.changes.iter().map(|change| change.field.as_str()))
        .collect();
    assert_eq!(
        fields,
        [
            "discard_new_per_subject",
            "max_bytes",
            "republish",
            "ack_wait"
        ]
    );
    assert!(
        serde_json::to_string(&report)
            .unwrap()
            .contains("\"outcome\":\"updated\"")
    );

    let report = apply(&js, &wanted, Mode::Apply).await.unwrap();
    assert_eq!(changed(&report), []);
}

#[tokio::test]
async fn larger_limits_and_placement_of_a_site_stay() {
    let (_server, js) = set_up(&[]).await;
    let mut config = js
        .get_stream("DLQ")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    let room = config.max_bytes * 2;
    config.max_bytes = room;
    config.metadata.insert("site".into(), "berlin".into());
    config.deny_purge = false;
    config.discard = stream::DiscardPolicy::New;
    js.update_stream(config).await.unwrap();

    let report = apply(&js, &wanted(&[]), Mode::Apply).await.unwrap();
    let item = report.drifted().next().unwrap();
    let effects: Vec<(&str, Effect)> = item
        .changes
        .iter()
        .map(|change| (change.field.as_str(), change.effect))
        .collect();
    assert_eq!(
        effects,
        [("discard", Effect::Set), ("max_bytes", Effect::Kept)]
    );
    let config = js
        .get_stream("DLQ")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert_eq!(config.max_bytes, room);
    assert_eq!(config.discard, stream::DiscardPolicy::Old);
    assert_eq!(config.metadata["site"], "berlin");
}

#[tokio::test]
async fn what_the_server_cannot_change_is_refused_by_name() {
    let server = Server::dev().await;
    let js = server.jetstream().await;
    let plain = |name: &str, subjects: &[&str]| stream::Config {
        name: name.into(),
        subjects: subjects.iter().map(|text| (*text).into()).collect(),
        ..stream::Config::default()
    };
    js.create_stream(plain("STORAGE", &["storage.*.*"]))
        .await
        .unwrap();
    js.create_stream(plain("OTHER", &["dlq.>"])).await.unwrap();

    let report = apply(&js, &wanted(&[]), Mode::Apply).await.unwrap();
    let refused: Vec<String> = report
        .refused()
        .map(|item| format!("{}: {:?}", item.asset, item.outcome))
        .collect();
    let [storage, dlq] = &refused[..] else {
        panic!("{refused:?}");
    };
    assert!(storage.starts_with("stream STORAGE"), "{storage}");
    assert!(
        storage.contains("\"retention can't be changed"),
        "{storage}"
    );
    assert!(
        dlq.starts_with("stream DLQ") && dlq.contains("overlap"),
        "{dlq}"
    );
    let config = js
        .get_stream("STORAGE")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert_eq!(config.republish, None, "changed by halves");
}

/// The list of unchangeable fields, held against the server.
#[tokio::test]
async fn the_server_refuses_what_we_call_unchangeable() {
    let (_server, js) = set_up(&["storage.p.low"]).await;
    let config = |name: &str| {
        let definition = streams()
            .unwrap()
            .into_iter()
            .find(|it| it.stream() == name);
        definition.unwrap().config
    };
    for (name, field, value) in [
        ("STORAGE", "retention", json!("limits")),
        ("STORAGE", "storage", json!("memory")),
        ("STORAGE", "deny_purge", json!(false)),
        ("KV_jobs", "deny_delete", json!(false)),
        ("KV_disks", "allow_msg_ttl", json!(false)),
        ("DLQ", "allow_msg_counter", json!(true)),
        ("DLQ", "mirror", json!({"name": "CORE"})),
    ] {
        let mut config = config(name);
        config.insert(field.into(), value);
        let subject = format!("STREAM.UPDATE.{name}");
        let answer = api(&js, &subject, &Value::Object(config)).await;
        assert!(answer["error"].is_object(), "{name} {field}: {answer}");
    }
    for (field, value) in [
        ("deliver_policy", json!("new")),
        ("ack_policy", json!("none")),
        ("replay_policy", json!("original")),
        ("max_waiting", json!(9)),
        ("mem_storage", json!(true)),
    ] {
        let mut config = consumer(&"storage.p.low".parse().unwrap()).unwrap().config;
        config.insert(field.into(), value);
        let payload = json!({"stream_name": "STORAGE", "config": config, "action": "update"});
        let subject = "CONSUMER.CREATE.STORAGE.storage_p_low.storage.p.low";
        let answer = api(&js, subject, &payload).await;
        assert!(answer["error"].is_object(), "{field}: {answer}");
    }
}

#[tokio::test]
async fn a_paused_queue_stays_paused_when_its_consumer_is_repaired() {
    let (_server, js) = set_up(&["storage.p.low"]).await;
    let mut config = consumer(&"storage.p.low".parse().unwrap()).unwrap().config;
    config.insert("max_deliver".into(), json!(3));
    let payload = json!({"stream_name": "STORAGE", "config": config, "action": "update"});
    let subject = "CONSUMER.CREATE.STORAGE.storage_p_low.storage.p.low";
    api(&js, subject, &payload).await;
    let pause = json!({"pause_until": "2126-01-01T00:00:00Z"});
    let paused = api(&js, "CONSUMER.PAUSE.STORAGE.storage_p_low", &pause).await;
    assert_eq!(paused["paused"], true, "{paused}");

    let report = apply(&js, &wanted(&["storage.p.low"]), Mode::Apply)
        .await
        .unwrap();
    assert_eq!(changed(&report).len(), 1, "{report}");
    let info = api(&js, "CONSUMER.INFO.STORAGE.storage_p_low", &Value::Null).await;
    assert_eq!(info["paused"], true, "{info}");
    assert_eq!(info["config"]["max_deliver"], 100);
}

#[tokio::test]
async fn missing_consumers_are_made_and_present_ones_left() {
    let (_server, js) = set_up(&["storage.p.low"]).await;
    let some = queues(&[
        "storage.p.low",
        "storage.p.high",
        "hypervisor.p.low",
        "core",
    ]);
    let made = ensure_consumers(&js, &some).await.unwrap();
    assert_eq!(made, queues(&["storage.p.high", "hypervisor.p.low"]));
    assert_eq!(ensure_consumers(&js, &some).await.unwrap(), []);
}

#[tokio::test]
async fn more_than_a_thousand_queues_have_consumers() {
    let (_server, js) = set_up(&[]).await;
    let many: Vec<Queue> = (0..1_001)
        .map(|n| format!("storage.p{n}.low").parse().unwrap())
        .collect();
    assert_eq!(ensure_consumers(&js, &many).await.unwrap().len(), 1_001);
    assert_eq!(ensure_consumers(&js, &many).await.unwrap(), []);
    let all = Wanted {
        replicas: None,
        queues: many,
    };
    let report = apply(&js, &all, Mode::DryRun).await.unwrap();
    assert_eq!(changed(&report), []);
}
