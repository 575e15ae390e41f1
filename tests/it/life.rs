//! The life of a disk: every storage task once, seen from outside by its record, its progress, the
//! catalogue and the pools.

use futures_util::StreamExt;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use virtbus_testbed::until;
use virtbus_tests::disk::{self, MIB};
use virtbus_tests::{Bus, Events, Service, Stack, state_of};

const DEFAULT: &str = "storage.default.default";
const LOW: &str = "storage.default.low";
const PAIR: &str = "storage.default_other.low";
/// Of noise, so that copies take long enough to be seen.
const FILLED_MIB: u64 = 96;

/// A system with two pools, and whoever watches it.
struct Life {
    stack: Stack,
    bus: Bus,
    events: Events,
    other: PathBuf,
}

/// What a job told of its progress, and what it gave.
struct Seen {
    told: Vec<Value>,
    result: Value,
}

impl Life {
    async fn begin() -> Self {
        let stack = Stack::start().await;
        let bus = stack.bus().await;
        let pool = json!({"pool": "other"});
        bus.ask("virtbus.pools.register", &pool).await.unwrap();
        let other = stack.folder().join("other");
        let root = other.to_str().unwrap();
        stack.stop(Service::Storage).await;
        let settings = [
            ("VIRTBUS__POOLS__OTHER__ROOT", root),
            ("VIRTBUS__POOLS__OTHER__CREATE", "true"),
        ];
        stack.start_again_with(Service::Storage, &settings);
        let events = bus.events().await;
        Self {
            stack,
            bus,
            events,
            other,
        }
    }

    fn file(&self, disk: &str) -> PathBuf {
        disk::path(&self.stack.ready.pool_root, disk, "qcow2")
    }

    /// A job that succeeds, all of which is as promised.
    async fn job(&self, subject: &str, task: &str, params: Value) -> Seen {
        let count = self.events.ends();
        let id = format!("life-{count}-{task}");
        let progress = format!("events.progress.{id}");
        let mut progress = self.bus.client.subscribe(progress).await.unwrap();
        self.bus.client.flush().await.unwrap();
        let job = json!({"id": id, "task": task, "params": params});
        self.bus.publish(subject, &job).await;
        let record = self.bus.end_of_machine(&id).await;
        assert_eq!(state_of(&record), "succeeded", "{record:#}");
        assert_eq!(
            (&record["attempt"], &record["cancelable"]),
            (&json!(1), &json!(false))
        );
        until("the last event", async || {
            let seen = self.events.of(&id);
            let is_over = seen.last().is_some_and(|last| last.is_final());
            if is_over { Ok(()) } else { Err(seen.len()) }
        })
        .await;
        let seen = self.events.of(&id);
        let finals = seen.iter().filter(|change| change.is_final()).count();
        assert_eq!(finals, 1, "{task} ended once");
        self.bus.client.flush().await.unwrap();
        progress.unsubscribe().await.unwrap();
        let mut told = Vec::new();
        while let Some(message) = progress.next().await {
            told.push(serde_json::from_slice(&message.payload).unwrap());
        }
        rises(task, &told);
        let percents: Vec<f64> = percents(seen.iter().map(|change| &change.record["progress"]));
        assert!(percents.is_sorted(), "{task}: {percents:?}");
        let result = record["result"].clone();
        Seen { told, result }
    }

    /// What the catalogue says, and what it doesn't say wrongly.
    async fn is(&self, disk: &str, state: &str, backing: Option<&str>) -> Value {
        let known = self.bus.disk(disk).await.unwrap();
        assert_eq!(known["state"], state, "{known:#}");
        assert_eq!(known["backing"], json!(backing), "{known:#}");
        if state == "ready" && known["pool"] == "default" {
            let info = disk::info(&self.file(disk));
            assert_eq!(known["virtual_size"], info["virtual-size"], "{known:#}");
            let below = backing.map(|below| format!("{below}.qcow2"));
            let named = info["backing-filename"].as_str();
            assert_eq!(named, below.as_deref(), "{info:#}");
            let inside = info["snapshots"].as_array().map_or(0, Vec::len);
            assert_eq!(known["snapshots"].as_array().map(Vec::len), Some(inside));
        }
        known
    }
}

/// Progress goes up, names its phase, and counts bytes.
fn rises(task: &str, told: &[Value]) {
    let percents = percents(told.iter());
    assert!(percents.is_sorted(), "{task}: {percents:?}");
    for step in told {
        assert!(step["phase"].is_string(), "{task}: {step}");
        assert!(
            step["done_bytes"].as_u64() <= step["total_bytes"].as_u64(),
            "{task}: {step}"
        );
    }
}

fn percents<'a>(progress: impl Iterator<Item = &'a Value>) -> Vec<f64> {
    progress
        .filter_map(|step| step["percent"].as_f64())
        .collect()
}

impl Seen {
    /// It was seen growing, in this phase.
    fn grew(&self, phase: &str) -> &Self {
        let told = &self.told;
        assert!(
            told.iter().any(|step| step["phase"] == phase),
            "{phase}: {told:?}"
        );
        self
    }

    /// How fast it went and how long it would take was told.
    fn was_timed(&self) {
        let is_timed = |step: &&Value| step["bytes_per_s"].is_u64() && step["eta_s"].is_u64();
        let timed = self.told.iter().find(is_timed);
        assert!(timed.is_some(), "{:?}", self.told);
    }
}

#[tokio::test]
async fn every_storage_task_does_its_part_in_the_life_of_a_disk() {
    let life = Life::begin().await;
    life.is_made_and_copied().await;
    life.has_snapshots().await;
    life.has_others_on_top().await;
    life.is_checked_and_made_sparse().await;
    life.goes_and_comes_back().await;
    life.comes_from_outside().await;
    let root = &life.stack.ready.pool_root;
    assert_eq!(disk::leftovers(root), Vec::<String>::new());
    assert_eq!(disk::leftovers(&life.other), Vec::<String>::new());
}

impl Life {
    async fn is_made_and_copied(&self) {
        let params = json!({"disk": "raw", "size": "128MiB", "format": "raw"});
        self.job(DEFAULT, "create_disk", params).await;
        let raw = disk::path(&self.stack.ready.pool_root, "raw", "raw");
        disk::fill(&raw, FILLED_MIB);
        let params = json!({"disk": "raw", "to": "d1", "format": "qcow2", "compress": "zlib"});
        let copied = self.job(LOW, "convert", params).await;
        copied.grew("convert").was_timed();
        assert!(disk::same(&raw, &self.file("d1")));
        let params = json!({"disk": "d1", "size": "160MiB"});
        let resized = self.job(DEFAULT, "resize", params).await;
        assert_eq!(resized.result["virtual_size"], 160 * MIB);
        self.is("d1", "ready", None).await;
    }

    async fn has_snapshots(&self) {
        let params = json!({"disk": "d1", "snapshot": "s1"});
        self.job(DEFAULT, "create_snapshot", params.clone()).await;
        let known = self.is("d1", "ready", None).await;
        assert_eq!(known["snapshots"], json!(["s1"]));
        self.job(DEFAULT, "revert_snapshot", params.clone()).await;
        self.job(LOW, "delete_snapshot", params).await;
        self.is("d1", "ready", None).await;
    }

    async fn has_others_on_top(&self) {
        let params = json!({"disk": "d1", "overlay": "d2"});
        self.job(DEFAULT, "create_snapshot", params).await;
        self.is("d2", "ready", Some("d1")).await;
        self.job(LOW, "commit", json!({"disk": "d2"})).await;
        self.is("d2", "ready", Some("d1")).await;
        // What d2 is goes on as the disk below it.
        let params = json!({"disk": "d2", "base": "d3"});
        self.job(DEFAULT, "create_snapshot", params).await;
        self.is("d3", "ready", Some("d1")).await;
        self.is("d2", "ready", Some("d3")).await;
        let params = json!({"disk": "d2", "backing": "d1"});
        self.job(LOW, "rebase", params).await;
        self.is("d2", "ready", Some("d1")).await;
        let params = json!({"disk": "d2", "backing": null});
        self.job(LOW, "rebase", params).await.grew("flatten");
        self.is("d2", "ready", None).await;
        assert!(disk::same(&self.file("d1"), &self.file("d2")));
    }

    async fn is_checked_and_made_sparse(&self) {
        let checked = self.job(LOW, "check_disk", json!({"disk": "d2"})).await;
        assert_eq!(checked.result["corruptions"], 0);
        let checked = json!({"disk": "d2", "repair": "all"});
        self.job(LOW, "check_disk", checked).await;
        let sparse = self.job(LOW, "sparsify", json!({"disk": "d2"})).await;
        sparse.grew("sparsify");
        self.is("d2", "ready", None).await;
    }

    async fn goes_and_comes_back(&self) {
        let before = fs::read(self.file("d3")).unwrap();
        let disk = json!({"disk": "d3"});
        self.job(LOW, "archive_disk", disk.clone()).await;
        self.is("d3", "archived", Some("d1")).await;
        assert!(!self.file("d3").exists());
        self.job(DEFAULT, "unarchive_disk", disk.clone()).await;
        self.is("d3", "ready", Some("d1")).await;
        assert_eq!(fs::read(self.file("d3")).unwrap(), before);
        self.job(LOW, "delete_disk", disk.clone()).await;
        self.is("d3", "trashed", Some("d1")).await;
        self.job(DEFAULT, "restore_disk", disk).await;
        self.is("d3", "ready", Some("d1")).await;
        for (pool, is_here) in [("other", false), ("default", true)] {
            let params = json!({"disk": "d1", "pool": pool, "tree": true});
            let moved = self.job(PAIR, "move_disk", params).await;
            moved.grew("copy").grew("verify");
            assert_eq!(self.is("d1", "ready", None).await["pool"], pool);
            assert_eq!(self.is("d3", "ready", Some("d1")).await["pool"], pool);
            assert_eq!(self.file("d1").exists(), is_here);
            assert_eq!(disk::path(&self.other, "d1", "qcow2").exists(), !is_here);
        }
        let tree = json!({"disk": "d1", "mode": "unlink", "tree": true});
        self.job(LOW, "delete_disk", tree).await;
        assert!(!self.file("d1").exists() && !self.file("d3").exists());
        let wiped = json!({"disk": "raw", "mode": "wipe"});
        self.job(LOW, "delete_disk", wiped).await;
    }

    async fn comes_from_outside(&self) {
        let adopt = self.stack.ready.pool_root.join("adopt");
        fs::create_dir_all(&adopt).unwrap();
        fs::copy(self.file("d2"), adopt.join("image")).unwrap();
        let params = json!({"disk": "d4", "format": "qcow2", "file": "image"});
        self.job(LOW, "adopt_disk", params).await;
        self.is("d4", "ready", None).await;
        assert!(disk::same(&self.file("d2"), &self.file("d4")));
        fs::write(adopt.join("cd"), vec![7; 4096]).unwrap();
        let params = json!({"media": "m1", "format": "raw", "file": "cd"});
        let adopted = self.job(LOW, "adopt_media", params).await;
        assert_eq!(adopted.result["virtual_size"], 4096);
        let params = json!({"media": "m1", "mode": "unlink"});
        self.job(LOW, "delete_media", params).await;
    }
}
