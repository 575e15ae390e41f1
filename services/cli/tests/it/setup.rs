//! `setup`, `doctor`, `queues`: what the server holds.

use crate::program::{Site, run};
use serde_json::{Value, json};
use virtbus_testbed::Server;

#[tokio::test]
async fn a_second_setup_changes_nothing_and_drift_is_shown_and_mended() {
    let server = Server::dev().await;
    let dry = run(&server.url, "setup --dry-run --json")
        .await
        .ended(0)
        .json();
    let outcomes = |report: &Value| -> Vec<String> {
        let items = report["items"].as_array().unwrap();
        let outcomes = items.iter().map(|item| item["outcome"].to_string());
        outcomes.collect()
    };
    assert!(
        outcomes(&dry)
            .iter()
            .all(|outcome| outcome == "\"created\"")
    );
    let js = server.jetstream().await;
    assert!(
        js.get_stream("STORAGE").await.is_err(),
        "a dry run made something"
    );

    run(&server.url, "setup").await.ended(0);
    let again = run(&server.url, "setup --json").await.ended(0).json();
    assert!(outcomes(&again).iter().all(|outcome| outcome == "\"same\""));

    let mut stream = js.get_stream("DLQ").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.description = Some("somebody was here".to_owned());
    js.update_stream(config).await.unwrap();
    let doctor = run(&server.url, "doctor").await.ended(1);
    assert!(
        doctor.out.contains("not as wanted: stream DLQ"),
        "{doctor:?}"
    );
    let dry = run(&server.url, "setup --dry-run").await.ended(0);
    assert!(dry.out.contains("stream DLQ: would be updated"), "{dry:?}");
    let mended = run(&server.url, "setup").await.ended(0);
    assert!(mended.out.contains("stream DLQ: updated"), "{mended:?}");
    let same = run(&server.url, "setup").await.ended(0);
    assert_eq!(same.out.lines().count(), 1, "{same:?}");
}

#[tokio::test]
async fn an_even_number_of_copies_is_refused() {
    let server = Server::dev().await;
    let said = run(&server.url, "setup --replicas 2").await.ended(2);
    assert!(said.err.contains("1, 3 or 5"), "{said:?}");
}

#[tokio::test]
async fn queues_and_workers_are_read_without_any_service() {
    let site = Site::start().await;
    let lease = json!({"worker": "storage-a", "class": "storage", "pools": ["default"],
        "queues": ["core"], "slots": 4, "busy": 1, "at": "2026-11-21T16:30:00.000Z"});
    let workers = virtbus_bus::Bucket::<Value>::new(&site.bus, "workers");
    workers.put("storage-a", &lease).await.unwrap();
    let said = site.run("workers").await.ended(0);
    assert!(
        said.out.contains("storage-a  storage  default  1     4"),
        "{said:?}"
    );
    // A lease ends by itself, and each run takes its time.
    workers.put("storage-a", &lease).await.unwrap();
    let said = site.run("queues --json").await.ended(0).json();
    let core = json!({"queue": "core", "depth": 0, "running": 0, "workers": 1, "paused": false});
    assert_eq!(said, json!({"queues": [core]}));
    let pause = json!({"pause_until": "2200-01-01T00:00:00Z"}).to_string();
    let paused = site.bus.request("$JS.API.CONSUMER.PAUSE.CORE.core", pause);
    paused.await.unwrap();
    let said = site.run("queues").await.ended(0);
    assert!(said.out.contains("  paused\n"), "{said:?}");
    let pause = json!({"paused": true, "by": "alice", "reason": "the disk is full",
        "at": "2026-11-21T16:30:00.000Z"});
    let pauses = virtbus_bus::Bucket::<Value>::new(&site.bus, "queues");
    pauses.put("core", &pause).await.unwrap();
    let said = site.run("queues").await.ended(0);
    let told = "paused by alice since 2026-11-21T16:30:00.000Z: the disk is full";
    assert!(said.out.contains(told), "{said:?}");
    let said = site.run("queues --json").await.ended(0).json();
    assert_eq!(said["queues"][0]["pause"], pause);
    let pool = json!({"pool": "fast", "default": true, "state": "enabled"});
    let pools = virtbus_bus::Bucket::<Value>::new(&site.bus, "pools");
    pools.put("fast", &pool).await.unwrap();
    pools.put("_limits", &json!({})).await.unwrap();
    let said = site.run("pools list --json").await.ended(0).json();
    assert_eq!(said, json!({"pools": [pool]}));
}
