//! Disks that a program which isn't ours has open, by qemu's own locks on their files.

use super::{
    care,
    site::{Site, failed, program},
    sparsify_cuts::quick_site,
};
use crate::task::Step;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use virtbus_wire::{Code, JobError, catalog::DiskState};
use virtbus_worker::process::no_starts;

/// Another program of qemu's that has an image open, until this is dropped.
struct Foreign(Child);

impl Foreign {
    async fn writes(path: &Path, format: &str) -> Self {
        Self::start(path, &["-f", format]).await
    }

    async fn reads(path: &Path, format: &str) -> Self {
        Self::start(path, &["-r", "-f", format]).await
    }

    async fn start(path: &Path, how: &[&str]) -> Self {
        // Else it would keep the locks of a tool that a test beside this one starts just then.
        let alone = no_starts().await;
        let child = Command::new("qemu-io")
            .args(how)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        drop(alone);
        let mut child = child.unwrap();
        // It answers once it has the image open.
        writeln!(child.stdin.as_ref().unwrap(), "length").unwrap();
        let mut answer = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut answer).unwrap();
        assert!(answer.contains("MiB"), "{answer:?}");
        Self(child)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The raw `d1` below the overlays `d2` and `d3`, the latter with a snapshot; the raw `d4` alone;
/// the raw `d5` below the overlay `d6`; `d7` in the trash; `x` and `y` to be adopted.
async fn world(site: &Site) {
    for id in ["d1", "d4", "d5"] {
        let params = json!({ "disk": id, "size": "4MiB", "format": "raw" });
        site.done(&format!("make-{id}"), "create_disk", params)
            .await;
        site.write(&format!("{id}.raw"), "raw", "write -P 7 1M 1M");
    }
    for (id, backing) in [("d2", "d1"), ("d3", "d1"), ("d6", "d5")] {
        let params = json!({ "disk": id, "backing": backing });
        site.done(&format!("make-{id}"), "create_disk", params)
            .await;
        site.write(&format!("{id}.qcow2"), "qcow2", "write -P 9 2M 64k");
    }
    let snapshot = json!({ "disk": "d3", "snapshot": "s" });
    site.done("snap", "create_snapshot", snapshot).await;
    site.filled_disk("d7").await;
    let gone = json!({ "disk": "d7" });
    site.done("gone", "delete_disk", gone).await;
    fs::create_dir_all(site.path("adopt")).unwrap();
    for (file, format) in [("x", "qcow2"), ("y", "raw")] {
        let path = file_of(site, file).0;
        let args = ["create", "-f", format, path.to_str().unwrap(), "1M"];
        program("qemu-img", &args);
    }
}

/// Tasks, and the disk that somebody else has: to be changed, taken away, or read.
fn tasks() -> Vec<(&'static str, Value, &'static str)> {
    let tree = json!({ "disk": "d1", "pool": "other", "tree": true });
    let wipe = json!({ "disk": "d1", "mode": "wipe", "tree": true });
    vec![
        ("create_disk", json!({ "disk": "n", "backing": "d4" }), "d4"),
        ("create_disk", json!({ "disk": "n", "backing": "d2" }), "d1"),
        (
            "create_snapshot",
            json!({ "disk": "d4", "overlay": "n" }),
            "d4",
        ),
        (
            "create_snapshot",
            json!({ "disk": "d4", "base": "n" }),
            "d4",
        ),
        (
            "create_snapshot",
            json!({ "disk": "d2", "snapshot": "n" }),
            "d2",
        ),
        ("resize", json!({ "disk": "d4", "size": "9MiB" }), "d4"),
        ("resize", json!({ "disk": "d2", "size": "9MiB" }), "d2"),
        (
            "convert",
            json!({ "disk": "d4", "to": "n", "format": "qcow2" }),
            "d4",
        ),
        (
            "convert",
            json!({ "disk": "d2", "to": "n", "format": "raw" }),
            "d1",
        ),
        ("rebase", json!({ "disk": "d2", "backing": "d4" }), "d4"),
        ("rebase", json!({ "disk": "d2", "backing": null }), "d2"),
        ("archive_disk", json!({ "disk": "d4" }), "d4"),
        ("archive_disk", json!({ "disk": "d2" }), "d2"),
        ("move_disk", json!({ "disk": "d4", "pool": "other" }), "d4"),
        ("move_disk", tree, "d1"),
        ("delete_disk", json!({ "disk": "d4" }), "d4"),
        (
            "delete_disk",
            json!({ "disk": "d2", "mode": "unlink" }),
            "d2",
        ),
        ("delete_disk", wipe, "d3"),
        (
            "check_disk",
            json!({ "disk": "d2", "repair": "leaks" }),
            "d2",
        ),
        ("sparsify", json!({ "disk": "d2" }), "d2"),
        (
            "revert_snapshot",
            json!({ "disk": "d3", "snapshot": "s" }),
            "d3",
        ),
        (
            "delete_snapshot",
            json!({ "disk": "d3", "snapshot": "s" }),
            "d3",
        ),
        ("commit", json!({ "disk": "d6" }), "d6"),
        ("commit", json!({ "disk": "d6", "delete": true }), "d5"),
        (
            "adopt_disk",
            json!({ "disk": "n", "format": "qcow2", "file": "x" }),
            "x",
        ),
        (
            "adopt_media",
            json!({ "media": "m", "format": "raw", "file": "y" }),
            "y",
        ),
        ("restore_disk", json!({ "disk": "d7" }), "d7"),
    ]
}

/// Where the file of a disk is, or one that is to be adopted.
fn file_of(site: &Site, id: &str) -> (PathBuf, &'static str) {
    match id {
        "x" => (site.path("adopt/x"), "qcow2"),
        "y" => (site.path("adopt/y"), "raw"),
        "d7" => (site.path("trash/disk.d7.gone.1"), "qcow2"),
        "d1" | "d4" | "d5" => (site.path(&format!("disks/{id}.raw")), "raw"),
        _ => (site.path(&format!("disks/{id}.qcow2")), "qcow2"),
    }
}

fn is_busy(error: &JobError, when: &str) {
    assert_eq!(error.code, Code::DiskBusy, "{when}: {error:?}");
    assert!(error.retryable, "{when}");
}

/// What there is: each file by its inode and length, and what the records say that no job has
/// changed.
#[derive(Debug, PartialEq)]
struct Sight {
    files: BTreeMap<PathBuf, (u64, u64)>,
    records: Vec<Option<Value>>,
}

impl Sight {
    async fn of(site: &Site) -> Self {
        let mut files = BTreeMap::new();
        for folder in ["disks", "media", "adopt", "trash"] {
            for file in site.files(folder) {
                let path = site.path(folder).join(file);
                let facts = fs::metadata(&path).unwrap();
                files.insert(path, (facts.ino(), facts.len()));
            }
        }
        let mut records = Vec::new();
        for id in ["d1", "d2", "d3", "d4", "d5", "d6", "d7", "n"] {
            let record = site.disk(id).await.map(|disk| disk.record);
            records.push(record.map(|record| {
                json!([
                    record.state,
                    record.pool,
                    record.virtual_size,
                    record.backing,
                    record.children,
                    record.snapshots,
                ])
            }));
        }
        assert!(site.medium("m").await.is_none());
        Self { files, records }
    }
}

#[tokio::test]
async fn what_another_program_writes_is_busy_and_stays_as_it_was() {
    let site = quick_site().await;
    world(&site).await;
    let before = Sight::of(&site).await;
    for (number, (task, params, used)) in tasks().into_iter().enumerate() {
        let when = format!("{task} {params} with {used} in use");
        let (path, format) = file_of(&site, used);
        let foreign = Foreign::writes(&path, format).await;
        let job = site.job(&format!("j{number}"), task, params);
        is_busy(&failed(site.run(&job).await), &when);
        drop(foreign);
        assert_eq!(Sight::of(&site).await, before, "{when}");
    }
}

/// Long work may be over hours after it began.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_begins_to_write_during_the_work_is_busy_too() {
    let site = quick_site().await;
    world(&site).await;
    let before = Sight::of(&site).await;
    for (number, (task, params, used)) in tasks().into_iter().enumerate() {
        let when = format!("{task} {params} with {used} in use after the work");
        let (path, format) = file_of(&site, used);
        let foreign = std::sync::Mutex::new(None);
        let start = || {
            let started = Foreign::writes(&path, format);
            let runtime = tokio::runtime::Handle::current();
            let started = tokio::task::block_in_place(|| runtime.block_on(started));
            *foreign.lock().unwrap() = Some(started);
        };
        let job = site.job(&format!("j{number}"), task, params);
        let ended = site.run_and(&job, Step::Work, &start).await;
        is_busy(&failed(ended), &when);
        drop(foreign);
        assert_eq!(Sight::of(&site).await, before, "{when}");
    }
}

#[tokio::test]
async fn what_another_program_reads_is_read_beside_it_and_not_taken_away() {
    let site = quick_site().await;
    world(&site).await;
    let before = Sight::of(&site).await;
    let foreign = Foreign::reads(&site.path("disks/d2.qcow2"), "qcow2").await;
    let tree = json!({ "disk": "d2", "pool": "other", "tree": true });
    for (task, params) in [
        ("resize", json!({ "disk": "d2", "size": "9MiB" })),
        ("archive_disk", json!({ "disk": "d2" })),
        ("delete_disk", json!({ "disk": "d2" })),
        ("sparsify", json!({ "disk": "d2" })),
        ("rebase", json!({ "disk": "d2", "backing": null })),
        ("move_disk", tree),
    ] {
        let error = site.refused(&format!("j-{task}"), task, params).await;
        is_busy(&error, task);
        assert_eq!(Sight::of(&site).await, before, "{task}");
    }
    let params = json!({ "disk": "d2", "to": "n", "format": "raw" });
    site.done("j1", "convert", params).await;
    let params = json!({ "disk": "m", "backing": "d2" });
    site.done("j2", "create_disk", params).await;
    drop(foreign);
}

#[tokio::test]
async fn a_medium_that_another_program_has_open_stays() {
    let site = Site::start().await;
    site.filled_medium("m1").await;
    let foreign = Foreign::writes(&site.path("media/m1.iso"), "raw").await;
    for mode in ["trash", "wipe"] {
        let params = json!({ "media": "m1", "mode": mode });
        let error = site.refused(mode, "delete_media", params).await;
        is_busy(&error, mode);
        assert_eq!(error.detail["media"], "m1");
        assert_eq!(site.files("media"), ["m1.iso"]);
        let state = site.medium("m1").await.unwrap().record.state;
        assert_eq!(state, DiskState::Ready);
    }
    drop(foreign);
    site.done("j", "delete_media", json!({ "media": "m1" }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_tool_is_kept_out_leaves_the_backing_whole() {
    let site = quick_site().await;
    world(&site).await;
    let path = site.path("disks/d6.qcow2");
    let foreign = std::sync::Mutex::new(None);
    let start = || {
        let started = Foreign::reads(&path, "qcow2");
        let runtime = tokio::runtime::Handle::current();
        let started = tokio::task::block_in_place(|| runtime.block_on(started));
        *foreign.lock().unwrap() = Some(started);
    };
    let job = site.job("j2", "commit", json!({ "disk": "d6" }));
    let ended = site.run_and(&job, Step::Commit, &start).await;
    is_busy(&failed(ended), "commit");
    for disk in ["d5", "d6"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Ready), "{disk}");
    }
    foreign.lock().unwrap().take();
    let again = site.claimed(
        json!({ "id": "j2", "task": "commit", "params": { "disk": "d6" } }),
        2,
    );
    site.run(&again).await.unwrap();
    let read = "read -P 9 2M 64k";
    site.write("d5.raw", "raw", read);
}

#[tokio::test]
async fn what_another_program_still_has_open_stays_in_the_trash() {
    let site = Site::start().await;
    for id in ["d1", "d2"] {
        site.filled_disk(id).await;
        let delete = json!({ "disk": id });
        site.done(&format!("j-{id}"), "delete_disk", delete).await;
        care::long_ago(&site, id).await;
    }
    let trashed = |id: &str| site.path(&format!("trash/disk.{id}.j-{id}.1"));
    let writer = Foreign::writes(&trashed("d1"), "qcow2").await;
    let reader = Foreign::reads(&trashed("d2"), "qcow2").await;
    care::now(&site).await;
    for id in ["d1", "d2"] {
        assert_eq!(site.state(id).await, Some(DiskState::Trashed), "{id}");
        assert!(trashed(id).exists(), "{id}");
    }
    drop(writer);
    care::becomes(&site, "d1", DiskState::Deleted).await;
    assert!(!trashed("d1").exists());
    assert_eq!(site.state("d2").await, Some(DiskState::Trashed));
    drop(reader);
    care::becomes(&site, "d2", DiskState::Deleted).await;
    assert_eq!(site.files("trash"), Vec::<String>::new());
}
