//! Disks, media and domains as they are listed, and pools that go.

use crate::{
    mending::claimed,
    stack::{Stack, until},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use virtbus_wire::{Event, StateName};

async fn put(stack: &Stack, key: &str, record: Value) {
    let written = stack
        .bus
        .jetstream()
        .publish(format!("$KV.{key}"), record.to_string().into());
    written.await.unwrap().await.unwrap();
}

fn disk(pool: &str, state: &str) -> Value {
    json!({"pool": pool, "format": "qcow2", "state": state,
        "updated_at": "2026-01-01T00:00:00.000Z"})
}

async fn refused(stack: &Stack, subject: &str, body: Value) -> Value {
    let refused = stack.ask::<Value>(subject, &body).await.unwrap_err();
    serde_json::from_str(&refused).unwrap()
}

#[tokio::test]
async fn what_is_there_is_got_listed_in_pages_and_looked_up() {
    let (stack, _core) = Stack::start().await;
    for number in 0..5 {
        put(
            &stack,
            &format!("disks.d{number}"),
            disk("default", "ready"),
        )
        .await;
    }
    put(&stack, "disks.gone", disk("default", "deleted")).await;
    put(&stack, "disks.other", disk("far", "archived")).await;
    let iso = json!({"pool": "default", "format": "iso", "state": "ready",
        "updated_at": "2026-01-01T00:00:00.000Z"});
    put(&stack, "media.debian", iso).await;
    let domain = json!({"uuid": "0199b1c2-0000-7000-8000-000000000001", "pool": "default",
        "state": "running", "desired": "running", "updated_at": "2026-01-01T00:00:00.000Z"});
    put(&stack, "domains.web1", domain).await;

    let mut found = Vec::new();
    let mut ask = json!({"pool": "default", "limit": 2, "unused_since": "1d"});
    loop {
        let page: Value = stack.ask("virtbus.disks.list", &ask).await.unwrap();
        let disks = page["disks"].as_array().unwrap().iter();
        found.extend(disks.map(|disk| disk["id"].as_str().unwrap().to_owned()));
        ask["cursor"] = page["cursor"].clone();
        if page["cursor"].is_null() {
            break;
        }
    }
    assert_eq!(found, ["d0", "d1", "d2", "d3", "d4"]);
    let gone = json!({"state": "deleted"});
    let list: Value = stack.ask("virtbus.disks.list", &gone).await.unwrap();
    assert_eq!(list["disks"][0]["id"], "gone");
    for (subject, body, key, value) in [
        (
            "virtbus.disks.get",
            json!({"id": "other"}),
            "state",
            "archived",
        ),
        (
            "virtbus.media.get",
            json!({"id": "debian"}),
            "format",
            "iso",
        ),
        (
            "virtbus.domains.get",
            json!({"id": "web1"}),
            "state",
            "running",
        ),
        (
            "virtbus.pools.lookup",
            json!({"disk": "other"}),
            "pool",
            "far",
        ),
        (
            "virtbus.pools.lookup",
            json!({"media": "debian"}),
            "pool",
            "default",
        ),
    ] {
        let got: Value = stack.ask(subject, &body).await.unwrap();
        assert_eq!(got[key], value, "{subject} {body}");
    }
    for (subject, key) in [
        ("virtbus.media.list", "media"),
        ("virtbus.domains.list", "domains"),
    ] {
        let list: Value = stack.ask(subject, &json!({})).await.unwrap();
        assert_eq!(list[key].as_array().unwrap().len(), 1);
    }
    for (subject, body, code) in [
        ("virtbus.disks.get", json!({"id": "gone"}), "disk.not_found"),
        (
            "virtbus.media.get",
            json!({"id": "nobody"}),
            "media.not_found",
        ),
        (
            "virtbus.domains.get",
            json!({"id": "nobody"}),
            "domain.not_found",
        ),
        (
            "virtbus.pools.lookup",
            json!({"disk": "gone"}),
            "disk.not_found",
        ),
    ] {
        let refused = refused(&stack, subject, body).await;
        assert_eq!(refused["error"]["code"], code);
    }
}

#[tokio::test]
async fn a_pool_goes_once_nothing_is_left_of_it() {
    let (stack, _core) = Stack::start().await;
    let ask = json!({"pool": "default"});
    put(&stack, "disks.d1", disk("default", "trashed")).await;
    let job = json!({"id": "w", "task": "ping", "not_before": "2999-01-01T00:00:00.000Z"});
    stack.publish("storage.default.low", job.to_string()).await;
    stack.record("w", StateName::Waiting).await;
    let error = refused(&stack, "virtbus.pools.deregister", ask.clone()).await;
    let detail = &error["error"]["detail"];
    assert_eq!(error["error"]["code"], "conflict");
    assert_eq!((&detail["disks"], &detail["jobs"]), (&json!(1), &json!(1)));
    let _: Value = stack
        .ask("virtbus.jobs.cancel", &json!({"id": "w"}))
        .await
        .unwrap();
    put(&stack, "disks.d1", disk("default", "deleted")).await;
    let done: Value = stack.ask("virtbus.pools.deregister", &ask).await.unwrap();
    assert_eq!(done, json!({}));
    let again = refused(&stack, "virtbus.pools.deregister", ask.clone()).await;
    assert_eq!(again["error"]["code"], "pool.not_found");
    until("no consumers", async || {
        let stream = stack.bus.jetstream().get_stream("STORAGE").await.unwrap();
        match stream.consumer_info("storage_default_low").await {
            Ok(info) => Err(format!("{info:?}")),
            Err(_) => Ok(()),
        }
    })
    .await;
    stack
        .publish("storage.default.low", r#"{"id":"late","task":"ping"}"#)
        .await;
    stack.record("late", StateName::Failed).await;
    // It may come back.
    stack.register("default").await;
    stack
        .publish("storage.default.low", r#"{"id":"new","task":"ping"}"#)
        .await;
    stack.record("new", StateName::Queued).await;
}

/// The requests by which core reads a bucket's records.
async fn reads(stack: &Stack, bucket: &str) -> async_nats::Subscriber {
    let subject = format!("$JS.API.DIRECT.GET.KV_{bucket}");
    let reads = stack.client().subscribe(subject).await.unwrap();
    stack.client().flush().await.unwrap();
    reads
}

#[tokio::test]
async fn a_pool_stays_whose_job_makes_a_disk_while_what_is_left_is_counted() {
    let (stack, _core) = Stack::start().await;
    let job = json!({"id": "c", "task": "ping"}).to_string();
    let seq = stack.publish("storage.default.low", job).await;
    let runs = claimed(&stack, "c", seq, true).await;
    let mut counts = reads(&stack, "disks").await;
    let makes = async {
        counts.next().await.unwrap();
        // The disk is there before its job ends, as ever.
        put(&stack, "disks.d1", disk("default", "ready")).await;
        let done = Event::Succeed(serde_json::Map::new());
        stack.jobs.change(&runs, done).await.unwrap();
    };
    let ask = json!({"pool": "default"});
    let deregister = stack.ask::<Value>("virtbus.pools.deregister", &ask);
    let (answer, ()) = tokio::join!(deregister, makes);
    assert!(answer.unwrap_err().contains("conflict"));
    let pool: Value = stack.ask("virtbus.pools.get", &ask).await.unwrap();
    assert_eq!(pool["pool"], "default");
}

#[tokio::test]
async fn a_job_without_a_record_keeps_its_pool() {
    let stack = Stack::bare().await;
    // Somebody else leads, and does nothing: no core makes records of messages.
    let other = json!({"worker": "core-z", "boot": "0199b1c2-0000-7000-8000-000000000001"});
    put(&stack, "workers._core", other).await;
    let _core = stack.core("core-a");
    stack.register("default").await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    let error = refused(
        &stack,
        "virtbus.pools.deregister",
        json!({"pool": "default"}),
    )
    .await;
    assert_eq!(error["error"]["detail"]["jobs"], 1, "{error}");
    stack.record("a", StateName::Queued).await;
}
