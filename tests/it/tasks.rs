//! What the contract promises of single jobs and tasks.

use crate::shared;
use serde_json::{Value, json};
use virtbus_testbed::until;
use virtbus_tests::disk::{self, MIB};
use virtbus_tests::state_of;

const HIGH: &str = "storage.default.high";
const DEFAULT: &str = "storage.default.default";
const LOW: &str = "storage.default.low";

#[tokio::test]
async fn a_job_without_an_id_is_named_by_its_sequence() {
    let bus = shared().await.bus().await;
    // What any client of NATS sends: a request, answered by the stream.
    let answer = bus
        .client
        .request(HIGH, r#"{"task":"ping"}"#.into())
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["stream"], "STORAGE");
    let record = bus.end_of(&format!("storage-{}", answer["seq"])).await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    assert_eq!(record["dedupe"]["seq"], answer["seq"]);
}

#[tokio::test]
async fn a_job_is_named_by_its_header() {
    let bus = shared().await.bus().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "task-by-header");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    headers.insert("traceparent", trace);
    bus.publish_with(HIGH, headers, br#"{"task":"ping"}"#.to_vec())
        .await;
    let record = bus.end_of("task-by-header").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    assert_eq!(record["trace"]["traceparent"], trace);
}

#[tokio::test]
async fn every_class_answers_a_ping() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let pong = bus.ping("storage.default.default").await;
    let checks = pong["checks"].as_array().unwrap();
    assert!(!checks.is_empty(), "the pool was looked at: {pong}");
    assert!(
        pong["worker"].is_string() && pong["boot"].is_string(),
        "{pong}"
    );
    bus.ping(&format!("hypervisor.{}.default", stack.ready.hypervisor))
        .await;
    bus.ping("hypervisor.default.low").await;
    bus.ping("core").await;
}

#[tokio::test]
async fn a_task_that_fails_says_why_and_is_tried_no_more_than_allowed() {
    let bus = shared().await.bus().await;
    let job = json!({"id": "task-fails", "task": "ping", "params": {"fail": true},
        "retry": {"max_attempts": 1}});
    bus.publish(HIGH, &job).await;
    let record = bus.end_of("task-fails").await;
    assert_eq!(state_of(&record), "failed");
    assert_eq!(
        record["error"]["code"], "job.attempts_exhausted",
        "{record:#}"
    );
    assert_eq!(record["error"]["detail"]["cause"], "tool.failed");
    assert_eq!(
        (&record["attempt"], &record["tries_left"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn what_is_so_already_is_success() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let disk = json!({"disk": "task-same"});
    bus.succeed(
        HIGH,
        "create_disk",
        json!({"disk": "task-same", "size": "8MiB"}),
    )
    .await;
    let size = json!({"disk": "task-same", "size": "8MiB"});
    let result = bus.succeed(DEFAULT, "resize", size).await;
    assert_eq!(result["virtual_size"], 8 * MIB);
    let gone = json!({"disk": "task-same", "mode": "unlink"});
    bus.succeed(LOW, "delete_disk", gone.clone()).await;
    bus.succeed(LOW, "delete_disk", gone).await;
    let files = disk::files(&stack.ready.pool_root);
    assert!(
        !files.iter().any(|name| name.starts_with("disks/task-same")),
        "{files:?}"
    );
    assert_eq!(bus.disk("task-same").await.unwrap()["state"], "deleted");

    // A deleted disk isn't there, and its id is taken for good.
    let record = bus
        .run(
            DEFAULT,
            "resize",
            json!({"disk": "task-same", "size": "9MiB"}),
        )
        .await;
    assert_eq!(
        record["error"]["code"], "disk.not_found",
        "{disk}: {record:#}"
    );
    let record = bus
        .run(
            HIGH,
            "create_disk",
            json!({"disk": "task-same", "size": 512}),
        )
        .await;
    assert_eq!(record["error"]["code"], "disk.exists", "{record:#}");
}

#[tokio::test]
async fn a_disk_shrinks_only_when_told_so() {
    let bus = shared().await.bus().await;
    let params = json!({"disk": "task-shrink", "size": "8MiB"});
    bus.succeed(HIGH, "create_disk", params).await;
    let record = bus
        .run(
            DEFAULT,
            "resize",
            json!({"disk": "task-shrink", "size": "4MiB"}),
        )
        .await;
    assert_eq!(state_of(&record), "failed", "{record:#}");
    let params = json!({"disk": "task-shrink", "size": "4MiB", "shrink": true});
    let result = bus.succeed(DEFAULT, "resize", params).await;
    assert_eq!(result["virtual_size"], 4 * MIB);
}

#[tokio::test]
async fn an_overlay_names_its_backing_by_its_file_alone() {
    let stack = shared().await;
    let bus = stack.bus().await;
    bus.succeed(
        HIGH,
        "create_disk",
        json!({"disk": "task-base", "size": "8MiB"}),
    )
    .await;
    let params = json!({"disk": "task-top", "backing": "task-base"});
    let result = bus.succeed(HIGH, "create_disk", params).await;
    assert_eq!(result["virtual_size"], 8 * MIB);
    let info = disk::info(&disk::path(&stack.ready.pool_root, "task-top", "qcow2"));
    assert_eq!(info["backing-filename"], "task-base.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    let record = bus
        .run(
            DEFAULT,
            "resize",
            json!({"disk": "task-base", "size": "9MiB"}),
        )
        .await;
    assert_eq!(record["error"]["code"], "disk.has_children", "{record:#}");
    let record = bus
        .run(LOW, "delete_disk", json!({"disk": "task-base"}))
        .await;
    assert_eq!(record["error"]["code"], "disk.has_children", "{record:#}");
    bus.succeed(
        LOW,
        "delete_disk",
        json!({"disk": "task-base", "tree": true}),
    )
    .await;
}

#[tokio::test]
async fn a_chain_of_jobs_published_at_once_runs_in_its_order() {
    let bus = shared().await.bus().await;
    let events = bus.events().await;
    let jobs = [
        (
            LOW,
            "task-c3",
            "delete_disk",
            json!({"disk": "task-chain"}),
            Some("task-c2"),
        ),
        (
            DEFAULT,
            "task-c2",
            "resize",
            json!({"disk": "task-chain", "size": "9MiB"}),
            Some("task-c1"),
        ),
        (
            HIGH,
            "task-c1",
            "create_disk",
            json!({"disk": "task-chain", "size": "8MiB"}),
            None,
        ),
    ];
    for (subject, id, task, params, after) in jobs {
        let after: Vec<&str> = after.into_iter().collect();
        let job = json!({"id": id, "task": task, "params": params, "after": after});
        bus.publish(subject, &job).await;
    }
    for id in ["task-c1", "task-c2", "task-c3"] {
        let record = bus.end_of(id).await;
        assert_eq!(state_of(&record), "succeeded", "{record:#}");
    }
    let is_over = |id: &str| events.of(id).iter().any(virtbus_tests::Change::is_final);
    until("all their events", async || {
        let seen = ["task-c1", "task-c2", "task-c3"].map(is_over);
        if seen == [true; 3] { Ok(()) } else { Err(seen) }
    })
    .await;
    let end = |id: &str| {
        events
            .of(id)
            .iter()
            .find(|c| c.is_final())
            .map(|c| c.revision)
    };
    assert!(end("task-c1") < end("task-c2") && end("task-c2") < end("task-c3"));
}
