//! The control requests.

use crate::stack::{Stack, until};
use async_nats::jetstream::consumer;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use virtbus_bus::jobs::KEEP;
use virtbus_core::{control, service::Stores};
use virtbus_wire::StateName;

#[tokio::test]
async fn requests_are_said_to_be_answered_once_the_server_knows_by_whom() {
    let stack = Stack::bare().await;
    let stores = Stores::new(&stack.bus, KEEP);
    let stop = CancellationToken::new();
    let (says, mut said) = watch::channel(false);
    stack.server.freeze();
    let end = stop.clone();
    let answers = tokio::spawn(async move {
        control::run(&stores, "1.0.0", &end, |state| {
            says.send_replace(state.is_ok());
        })
        .await;
    });
    let early = timeout(Duration::from_secs(1), said.wait_for(|answers| *answers));
    assert!(early.await.is_err(), "the server has read nothing yet");
    stack.server.thaw();
    said.wait_for(|answers| *answers).await.unwrap();
    let pools: Value = stack.ask("virtbus.pools.list", &json!({})).await.unwrap();
    assert_eq!(pools, json!({"pools": []}));
    stop.cancel();
    answers.await.unwrap();
}

#[tokio::test]
async fn a_pools_consumers_are_there_when_its_registration_answers() {
    let (stack, _core) = Stack::start().await;
    for number in 0..5 {
        let pool = format!("p{number}");
        let answer: Value = stack
            .ask(
                "virtbus.pools.register",
                &json!({"pool": pool, "weight": 7}),
            )
            .await
            .unwrap();
        assert_eq!(
            (&answer["pool"], &answer["weight"]),
            (&json!(pool), &json!(7))
        );
        for (stream, name) in [
            ("STORAGE", format!("storage_{pool}_high")),
            ("STORAGE", format!("storage_{pool}_low")),
            ("HYPERVISOR", format!("hypervisor_{pool}_default")),
        ] {
            let stream = stack.bus.jetstream().get_stream(stream).await.unwrap();
            stream
                .get_consumer::<consumer::pull::Config>(&name)
                .await
                .unwrap();
        }
    }
    let list: Value = stack.ask("virtbus.pools.list", &json!({})).await.unwrap();
    assert_eq!(list["pools"].as_array().unwrap().len(), 6);
    let changed = json!({"pool": "p1", "state": "draining"});
    stack
        .ask::<Value>("virtbus.pools.register", &changed)
        .await
        .unwrap();
    let got: Value = stack
        .ask("virtbus.pools.get", &json!({"pool": "p1"}))
        .await
        .unwrap();
    assert_eq!(
        (&got["state"], &got["weight"]),
        (&json!("draining"), &json!(100))
    );
}

#[tokio::test]
async fn refusals_carry_code_and_message_in_headers_and_body() {
    let (stack, _core) = Stack::start().await;
    for (subject, body, status, code) in [
        (
            "virtbus.pools.get",
            r#"{"pool":"nowhere"}"#,
            "404",
            "pool.not_found",
        ),
        (
            "virtbus.pools.get",
            r#"{"pool":"A/B"}"#,
            "400",
            "job.invalid_params",
        ),
        (
            "virtbus.pools.register",
            "not json",
            "400",
            "job.invalid_params",
        ),
        (
            "virtbus.jobs.get",
            r#"{"id":"nobody"}"#,
            "404",
            "job.not_found",
        ),
        (
            "virtbus.jobs.list",
            r#"{"limit":501}"#,
            "400",
            "job.invalid_params",
        ),
    ] {
        let answer = stack.raw(subject, body.as_bytes().to_vec()).await.unwrap();
        let headers = answer.headers.unwrap();
        assert_eq!(
            headers.get("Nats-Service-Error-Code").unwrap().as_str(),
            status,
            "{body}"
        );
        assert!(
            !headers
                .get("Nats-Service-Error")
                .unwrap()
                .as_str()
                .is_empty()
        );
        let refusal: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(refusal["error"]["code"], code, "{body}");
    }
}

#[tokio::test]
async fn the_service_shows_itself_to_the_nats_tools() {
    let (stack, _core) = Stack::start().await;
    let answer = stack.raw("$SRV.INFO.virtbus", Vec::new()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(info["name"], "virtbus");
    let endpoints = info["endpoints"].as_array().unwrap();
    let subjects: Vec<&str> = endpoints
        .iter()
        .filter_map(|e| e["subject"].as_str())
        .collect();
    assert!(subjects.contains(&"virtbus.pools.register"), "{subjects:?}");
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let (stack, _core) = Stack::start().await;
    for number in 0..7 {
        let id = format!("j{number}");
        let user = if number % 2 == 0 { "alice" } else { "bob" };
        let job = json!({"id": id, "task": "ping", "user": user}).to_string();
        stack.publish("storage.default.low", job).await;
        stack.record(&id, StateName::Queued).await;
    }
    let mut found = Vec::new();
    let mut ask = json!({"user": "alice", "limit": 3});
    loop {
        let page: Value = stack.ask("virtbus.jobs.list", &ask).await.unwrap();
        let jobs = page["jobs"].as_array().unwrap().iter();
        found.extend(jobs.map(|job| job["id"].as_str().unwrap().to_owned()));
        ask["cursor"] = page["cursor"].clone();
        if page["cursor"].is_null() {
            break;
        }
    }
    assert_eq!(found, ["j6", "j4", "j2", "j0"]);
    let none: Value = stack
        .ask(
            "virtbus.jobs.list",
            &json!({"state": ["failed"], "since": "1h"}),
        )
        .await
        .unwrap();
    assert_eq!(none, json!({"jobs": [], "cursor": null}));
}

#[tokio::test]
async fn queues_show_what_waits_and_that_nobody_serves_them() {
    let (stack, _core) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    stack.record("a", StateName::Queued).await;
    let row = until("the queue", async || {
        let list: Value = stack.ask("virtbus.queues.list", &Value::Null).await?;
        let rows = list["queues"].as_array().cloned().unwrap_or_default();
        let row = rows
            .into_iter()
            .find(|row| row["queue"] == "storage.default.low");
        row.filter(|row| row["depth"] == 1).ok_or(list.to_string())
    })
    .await;
    assert_eq!((&row["workers"], &row["running"]), (&json!(0), &json!(0)));
    assert!(row["oldest_age_s"].is_u64(), "{row}");
}

#[tokio::test]
async fn a_pair_and_a_host_get_their_consumers_when_they_show_up() {
    let (stack, _core) = Stack::start().await;
    stack.register("other").await;
    let now = virtbus_wire::Timestamp::now();
    let worker = json!({"worker": "st-1", "boot": uuid(), "class": "storage", "host": "h",
        "pools": ["other", "default"], "queues": [], "slots": 1, "busy": 0,
        "started_at": now, "at": now});
    let host = json!({"pool": "default", "worker": "hv-w", "host": "h", "updated_at": now});
    let lease = worker.to_string();
    stack.publish("$KV.workers.st-1", lease).await;
    stack
        .publish("$KV.hypervisors.hv-1", host.to_string())
        .await;
    for (stream, name) in [
        ("STORAGE", "storage_default_other_low"),
        ("HYPERVISOR", "hypervisor_hv-1_high"),
    ] {
        let stream = stack.bus.jetstream().get_stream(stream).await.unwrap();
        until(name, async || {
            stream.get_consumer::<consumer::pull::Config>(name).await
        })
        .await;
    }
    let workers: Value = stack.ask("virtbus.workers.list", &json!({})).await.unwrap();
    assert_eq!(workers["workers"][0]["worker"], "st-1");
    // Its lease isn't renewed: it's lost, and stays visible.
    stack.last_beat("st-1", &worker).await;
    until("the lost worker", async || {
        let list: Value = stack.ask("virtbus.workers.list", &json!({})).await?;
        match list["workers"][0]["lost"] == true {
            true => Ok(()),
            false => Err(list.to_string()),
        }
    })
    .await;
    let hosts: Value = stack
        .ask("virtbus.hypervisors.list", &json!({}))
        .await
        .unwrap();
    assert_eq!(hosts["hypervisors"][0]["hypervisor"], "hv-1");
}

fn uuid() -> &'static str {
    "0199b1c2-0000-7000-8000-000000000001"
}
