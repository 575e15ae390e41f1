//! A few real runs: the tool starts a machine each time, which takes half a minute and more. Where
//! the task itself is cut at each of its steps, another program does in the machine's place what it
//! does to the disk (`sparsify_cuts.rs`).

use super::{
    killed::At,
    site::{Site, Told, code, program},
};
use crate::task::Step;
use serde_json::json;
use virtbus_testbed::until;
use virtbus_wire::{Code, catalog::DiskState};
use virtbus_worker::process;

/// `d1` of 64 MiB, with a file system that once held something large.
async fn used_disk(site: &Site) {
    let params = json!({ "disk": "d1", "size": "64MiB" });
    site.done("make", "create_disk", params).await;
    let (raw, content) = (site.path("raw"), site.path("content"));
    std::fs::write(&raw, vec![0; 64 << 20]).unwrap();
    std::fs::write(&content, vec![7; 8 << 20]).unwrap();
    let (raw, content) = (raw.to_str().unwrap(), content.to_str().unwrap());
    program("/usr/sbin/mkfs.ext4", &["-q", "-F", raw]);
    for request in [
        format!("write {content} kept"),
        format!("write {content} large"),
    ] {
        program("/usr/sbin/debugfs", &["-w", "-R", &request, raw]);
    }
    program("/usr/sbin/debugfs", &["-w", "-R", "kill_file large", raw]);
    program("/usr/sbin/debugfs", &["-w", "-R", "unlink large", raw]);
    let disk = site.path("disks/d1.qcow2");
    let args = ["convert", "-n", "-f", "raw", "-O", "qcow2", raw];
    program("qemu-img", &[&args[..], &[disk.to_str().unwrap()]].concat());
}

#[tokio::test]
async fn a_disk_gives_back_what_its_file_system_does_not_use() {
    let site = Site::start().await;
    used_disk(&site).await;
    let params = json!({ "disk": "d1" });
    let envelope = json!({ "id": "j", "task": "sparsify", "params": params });
    // Dies with the file replaced and nothing said: the next claim says what this one did.
    let told = Told::default();
    let note = |progress: virtbus_wire::state::Progress| told.note(&progress);
    let first = site.claimed(envelope.clone(), 1);
    site.die_telling(&first, Step::Effect, &note).await;
    let stages = told.stages();
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert_eq!(
        (stages[0].0.as_str(), stages[1].0.as_str()),
        ("copy", "sparsify")
    );
    assert!(stages[0].1 < 50.0, "{stages:?}");
    // The start of the tool's machine, what it did, and its end.
    let percents = told.percents();
    let later = percents
        .iter()
        .filter(|percent| **percent > stages[0].1 + 30.0);
    assert!(later.count() > 2, "{percents:?}");
    let done = site.run(&site.claimed(envelope, 2)).await.unwrap();
    let (before, after) = (done["before"].as_u64(), done["after"].as_u64());
    assert!(after.unwrap() + (6 << 20) < before.unwrap(), "{done:?}");
    let record = site.record("d1").await;
    assert_eq!(
        (record.state, record.actual_size),
        (DiskState::Ready, after)
    );
    let raw = site.path("raw");
    let disk = site.path("disks/d1.qcow2");
    let (raw, disk) = (raw.to_str().unwrap(), disk.to_str().unwrap());
    program(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", disk, raw],
    );
    let dumped = site.path("dumped");
    let request = format!("dump kept {}", dumped.to_str().unwrap());
    program("/usr/sbin/debugfs", &["-R", &request, raw]);
    assert!(std::fs::read(dumped).unwrap() == vec![7; 8 << 20]);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
}

#[tokio::test]
async fn killed_and_cancelled_it_leaves_the_disk_as_it_was() {
    for (number, at) in [At::Within(1), At::After(3)].into_iter().enumerate() {
        let site = Site::start().await;
        let disk = format!("d{number}");
        site.filled_disk(&disk).await;
        let shown = site.content(&format!("{disk}.qcow2"), "qcow2");
        let envelope = json!({ "id": "j", "task": "sparsify", "params": { "disk": disk } });
        assert!(site.is_killed(envelope.clone(), at).await, "{at:?}");
        let found = site.give_up(&site.claimed(envelope, 2)).await.unwrap();
        assert_eq!(found, None, "{at:?}");
        let file = format!("{disk}.qcow2");
        assert_eq!(site.content(&file, "qcow2"), shown, "{at:?}");
        assert_eq!(site.files("disks"), [file], "{at:?}");
        assert_eq!(site.state(&disk).await, Some(DiskState::Ready), "{at:?}");
    }
}

#[tokio::test]
async fn a_tool_that_is_stopped_leaves_the_disk_and_no_process() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let before = site.content("d1.qcow2", "qcow2");
    let stop = process::Stop::new();
    let job = site.job("j1", "sparsify", json!({ "disk": "d1" }));
    // Once the tool has begun.
    let cancel = |progress: virtbus_wire::state::Progress| {
        if progress.phase.as_deref() == Some("sparsify") {
            stop.stop();
        }
    };
    let stopped = site.run_within(&job, &stop, &cancel).await;
    assert!(stopped.is_err(), "{stopped:?}");
    assert_eq!(site.content("d1.qcow2", "qcow2"), before);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    let root = site.dir.path().to_str().unwrap().to_owned();
    until("the end of the tool's processes", async || {
        let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.unwrap().path().join("cmdline");
            std::fs::read_to_string(path).ok()
        });
        let is_left = |line: &String| line.contains(&root) && !line.contains("nats-server");
        let left: Vec<String> = lines.filter(is_left).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_is_refused_before_anything_changes() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let overlay = json!({ "disk": "d1", "overlay": "d2" });
    site.done("j1", "create_snapshot", overlay).await;
    let params = json!({ "disk": "d2", "to": "v1", "format": "vmdk" });
    site.done("j2", "convert", params).await;
    let files = site.files("disks");
    for (disk, expected) in [
        ("d1", Code::DiskHasChildren),
        ("v1", Code::JobInvalidParams),
        ("d9", Code::DiskNotFound),
    ] {
        let refused = site
            .refused("j3", "sparsify", json!({ "disk": disk }))
            .await;
        assert_eq!(code(&refused), expected, "{disk}");
    }
    assert_eq!(site.files("disks"), files);
}
