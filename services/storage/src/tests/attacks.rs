//! Files that attack, where only this process can put them: below a disk, or in its place in the
//! moment between a task's work and its effect. (All others come with published jobs:
//! `tests/it/attacks`. What holds them where the gate doesn't: `ungated.rs`.)

use super::site::{MIB, Site, failed, program};
use crate::task::Step;
use serde_json::{Value, json};
use std::{fs, path::Path};
use virtbus_wire::Code;

/// What must not be found in the pool.
const SECRET: &[u8] = b"the host's own secret ";

fn backing(disk: &Path, name: &str) {
    let args = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name];
    program("qemu-img", &[&args[..], &[disk.to_str().unwrap()]].concat());
}

/// Every task that has a tool open `d1`.
fn tasks() -> [(&'static str, Value); 6] {
    [
        ("resize", json!({ "disk": "d1", "size": "9MiB" })),
        (
            "convert",
            json!({ "disk": "d1", "to": "new", "format": "raw" }),
        ),
        ("create_disk", json!({ "disk": "new", "backing": "d1" })),
        ("create_snapshot", json!({ "disk": "d1", "snapshot": "s1" })),
        ("create_snapshot", json!({ "disk": "d1", "overlay": "new" })),
        ("create_snapshot", json!({ "disk": "d1", "base": "new" })),
    ]
}

fn plant(site: &Site) -> (std::path::PathBuf, Vec<u8>) {
    let host = site.dir.path().join("host-file");
    let content = SECRET.repeat(MIB as usize / SECRET.len());
    fs::write(&host, &content).unwrap();
    (host, content)
}

/// That the secret is in no file of the pool.
fn assert_kept(site: &Site, what: &str) {
    for folder in ["disks", "media"] {
        for entry in fs::read_dir(site.path(folder)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_plain = fs::symlink_metadata(&path).unwrap().is_file();
            let bytes = if is_plain {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let is_in = bytes.windows(SECRET.len()).any(|window| window == SECRET);
            assert!(!is_in, "{what}: the secret is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn a_disk_below_that_attacks_is_refused_as_one_on_top() {
    let site = Site::start().await;
    let (host, content) = plant(&site);
    site.filled_disk("d0").await;
    site.done("o", "create_disk", json!({ "disk": "d1", "backing": "d0" }))
        .await;
    backing(&site.path("disks/d0.qcow2"), host.to_str().unwrap());
    for (number, (task, params)) in tasks().into_iter().enumerate() {
        let refused = site.refused(&format!("j{number}"), task, params).await;
        assert_eq!(refused.code, Code::ImageBackingFile, "{task}: {refused:?}");
    }
    assert_eq!(fs::read(&host).unwrap(), content);
    assert_kept(&site, "below");
}

#[tokio::test]
async fn a_file_that_is_swapped_after_the_work_reaches_no_tool_that_writes() {
    let tasks = [
        ("resize", json!({ "disk": "d1", "size": "9MiB" })),
        ("create_snapshot", json!({ "disk": "d1", "snapshot": "s1" })),
        ("commit", json!({ "disk": "d1" })),
        ("commit", json!({ "disk": "d1", "delete": true })),
        ("check_disk", json!({ "disk": "d1", "repair": "all" })),
    ];
    for (task, params) in tasks {
        let site = Site::start().await;
        let (host, content) = plant(&site);
        site.filled_disk("d0").await;
        site.done("o", "create_disk", json!({ "disk": "d1", "backing": "d0" }))
            .await;
        let disk = site.path("disks/d1.qcow2");
        site.write("d1.qcow2", "qcow2", "write -P 9 2M 1M");
        let good = fs::read(&disk).unwrap();
        backing(&disk, host.to_str().unwrap());
        let bad = fs::read(&disk).unwrap();
        fs::write(&disk, good).unwrap();
        let job = site.job("j1", task, params.clone());
        let swap = || fs::write(&disk, &bad).unwrap();
        let refused = failed(site.run_and(&job, Step::Commit, &swap).await);
        assert_eq!(refused.code, Code::ImageBackingFile, "{task} {params}");
        assert!(fs::read(&host).unwrap() == content, "{task} {params}");
        assert!(fs::read(&disk).unwrap() == bad, "{task} {params}");
        assert_kept(&site, task);
    }
}
