//! The main job, end to end: published to a subject, done by real qemu-img, seen live.

use crate::shared;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::path::PathBuf;
use virtbus_testbed::{until, watch::soon};
use virtbus_tests::disk::{self, MIB};
use virtbus_tests::stack::Shared;
use virtbus_tests::{Bus, Events, Socket, state_of};

const HIGH: &str = "storage.default.high";
const DEFAULT: &str = "storage.default.default";
const LOW: &str = "storage.default.low";
const JOBS: [&str; 4] = ["main-create", "main-resize", "main-convert", "main-delete"];

/// Whoever publishes, watches events, and looks at the pool.
struct Publisher {
    stack: Shared,
    bus: Bus,
    events: Events,
}

#[tokio::test]
async fn a_disk_is_made_resized_converted_and_deleted_and_all_of_it_is_seen() {
    let stack = shared().await;
    let (mut socket, _) = Socket::open(&stack.ready.http, &stack.ready.token).await;
    let filter = json!({"labels": {"test": "main"}});
    let sub = json!({"t": "sub", "id": 1, "filter": filter, "progress_hz": 10});
    socket.send(&sub).await;
    let bus = stack.bus().await;
    let events = bus.events().await;
    let publisher = Publisher { stack, bus, events };
    let publishes = async {
        publisher.creates().await;
        publisher.resizes().await;
        publisher.converts().await;
        publisher.deletes().await;
    };
    // Meanwhile the browser reads: one that is silent for long is taken for gone.
    tokio::join!(publishes, saw_all(&mut socket));
}

impl Publisher {
    fn files(&self) -> (PathBuf, PathBuf) {
        let root = &self.stack.ready.pool_root;
        (
            disk::path(root, "main1", "raw"),
            disk::path(root, "main2", "qcow2"),
        )
    }

    /// Nobody answers a plain publish; the job comes to its end all the same.
    async fn creates(&self) {
        let params = json!({"disk": "main1", "size": "160MiB", "format": "raw"});
        let job = job("main-create", "create_disk", params);
        self.bus.publish_plainly(HIGH, &job).await;
        let created = self.ends_well("main-create").await;
        assert_eq!(created["virtual_size"], 160 * MIB);
        assert_eq!(created["format"], "raw");
        let (file, _) = self.files();
        assert_eq!(disk::info(&file)["virtual-size"], 160 * MIB);
        disk::fill(&file, 160);
    }

    async fn resizes(&self) {
        let params = json!({"disk": "main1", "size": 192 * MIB});
        let job = job("main-resize", "resize", params);
        self.bus.publish(DEFAULT, &job).await;
        let resized = self.ends_well("main-resize").await;
        assert_eq!(resized["virtual_size"], 192 * MIB);
        assert_eq!(disk::info(&self.files().0)["virtual-size"], 192 * MIB);
    }

    async fn converts(&self) {
        let subject = "events.progress.main-convert";
        let mut told = self.bus.client.subscribe(subject).await.unwrap();
        let params = json!({"disk": "main1", "to": "main2", "format": "qcow2", "compress": "zlib"});
        let job = job("main-convert", "convert", params);
        self.bus.publish(LOW, &job).await;
        let converted = self.ends_well("main-convert").await;
        assert_eq!(converted["virtual_size"], 192 * MIB);
        let (from, to) = self.files();
        let info = disk::info(&to);
        assert_eq!(info["virtual-size"], 192 * MIB);
        assert_eq!(info["format"], "qcow2");
        assert!(disk::same(&from, &to), "the copy holds what the disk holds");
        let mut percents = Vec::new();
        while percents.last() < Some(&100.0) {
            let step = soon("progress", told.next()).await.unwrap();
            percents.push(percent(&step.payload));
        }
        assert!(percents.len() > 2, "it was seen growing: {percents:?}");
        assert!(percents.is_sorted(), "never backwards: {percents:?}");
        let known = self.bus.disk("main2").await.unwrap();
        assert_eq!(known["state"], "ready", "{known:#}");
        assert_eq!(known["format"], "qcow2", "{known:#}");
        assert_eq!(known["pool"], "default", "{known:#}");
        assert_eq!(known["virtual_size"], 192 * MIB, "{known:#}");
    }

    async fn deletes(&self) {
        let job = job("main-delete", "delete_disk", json!({"disk": "main1"}));
        self.bus.publish(LOW, &job).await;
        self.ends_well("main-delete").await;
        let (from, to) = self.files();
        assert!(!from.exists() && to.exists(), "its place alone is empty");
        let trashed = self.bus.disk("main1").await.unwrap();
        assert_eq!(trashed["state"], "trashed", "{trashed:#}");
        assert_eq!(trashed["owner_job"], "main-delete", "{trashed:#}");
    }

    /// The job succeeds, and its events tell the whole of its life.
    async fn ends_well(&self, id: &str) -> Value {
        let (bus, events) = (&self.bus, &self.events);
        let record = bus.end_of(id).await;
        assert_eq!(state_of(&record), "succeeded", "{record:#}");
        until("the last event", async || {
            let seen = events.of(id);
            if seen.last().is_some_and(|last| last.is_final()) {
                Ok(())
            } else {
                Err(seen.len())
            }
        })
        .await;
        let seen = events.of(id);
        assert!(seen.is_sorted_by_key(|change| change.revision));
        let states = events.states(id);
        let (last, others) = states.split_last().unwrap();
        assert_eq!(last, "succeeded");
        let usual = others
            .iter()
            .all(|state| state == "queued" || state == "running");
        assert!(
            usual && others.last().is_some_and(|state| state == "running"),
            "{states:?}"
        );
        assert_eq!(
            seen.last().unwrap().record,
            record,
            "the event is the record"
        );
        assert_eq!(
            (&record["attempt"], &record["cancelable"]),
            (&json!(1), &json!(false))
        );
        let moments = record["timeline"].as_array().unwrap();
        assert_eq!(moments.last().unwrap()["state"], "succeeded");
        record["result"].clone()
    }
}

/// The browser saw the same jobs, and nothing that doesn't fit its filter.
async fn saw_all(socket: &mut Socket) {
    for id in JOBS {
        let row = socket.until_job(1, id, "succeeded").await;
        assert!(row.get("params").is_none(), "a row is no record: {row:#}");
        assert!(row.get("result").is_none(), "a row is no record: {row:#}");
    }
    let frames = socket
        .frames
        .iter()
        .filter(|frame| frame["t"] == "progress");
    let mut items = frames.flat_map(|frame| frame["items"].as_array().unwrap());
    let grew = items.any(|item| item["id"] == "main-convert");
    assert!(grew, "it was seen growing");
    let foreign = socket
        .rows
        .keys()
        .find(|(_, id)| !JOBS.contains(&id.as_str()));
    assert_eq!(foreign, None);
}

fn job(id: &str, task: &str, params: Value) -> Value {
    json!({"id": id, "task": task, "params": params, "labels": {"test": "main"}})
}

fn percent(payload: &[u8]) -> f64 {
    let told: Value = serde_json::from_slice(payload).unwrap();
    told["percent"].as_f64().unwrap_or_default()
}
