//! Files that attack, where only this process can put them: below a disk, or in its place in the
//! moment between a task's work and its effect. (All others come with published jobs:
//! `tests/it/attacks`. What holds them where the gate doesn't: `ungated.rs`.)

use super::site::{MIB, Site, failed, program};
use crate::task::Step;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::Path,
    sync::Mutex,
};
use virtbus_wire::Code;

/// What must not be found in the pool.
const SECRET: &[u8] = b"the host's own secret ";

/// Has a qcow2 say that it's on top of this raw file.
pub(super) fn backing(disk: &Path, name: &str) {
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

/// What a file may have become between the work and the effect: what, the code, and how.
type Swap = (&'static str, Code, fn(&Path, &Path));

const SWAPS: [Swap; 4] = [
    (
        "the host's file below",
        Code::ImageBackingFile,
        |disk, host| {
            backing(disk, host.to_str().unwrap());
        },
    ),
    ("another size", Code::ImageFormatMismatch, |disk, _| {
        let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
        file.write_all_at(&(3 * MIB).to_be_bytes(), 24).unwrap();
    }),
    ("one more snapshot", Code::ImageUnsafeFeature, |disk, _| {
        program("qemu-img", &["snapshot", "-c", "x", disk.to_str().unwrap()]);
    }),
    (
        "a link in its place",
        Code::ImageUnsafeFeature,
        |disk, host| {
            fs::remove_file(disk).unwrap();
            symlink(host, disk).unwrap();
        },
    ),
];

/// The tool that writes isn't started, and nothing that the file says gets into the catalogue.
#[tokio::test]
async fn a_file_that_is_swapped_after_the_work_reaches_no_tool_that_writes() {
    let tasks = [
        ("resize", json!({ "size": "9MiB" })),
        ("create_snapshot", json!({ "snapshot": "s2" })),
        ("delete_snapshot", json!({ "snapshot": "s1" })),
        ("revert_snapshot", json!({ "snapshot": "s1" })),
        ("commit", json!({})),
        ("commit", json!({ "delete": true })),
        ("check_disk", json!({ "repair": "leaks" })),
        ("check_disk", json!({ "repair": "all" })),
    ];
    let site = Site::start().await;
    let (host, content) = plant(&site);
    for (number, (task, params)) in tasks.into_iter().enumerate() {
        let (below, id) = (format!("b{number}"), format!("d{number}"));
        site.filled_disk(&below).await;
        let make = json!({ "disk": id, "backing": below });
        site.done(&format!("make-{id}"), "create_disk", make).await;
        if task.ends_with("_snapshot") {
            let kept = json!({ "disk": id, "snapshot": "s1" });
            site.done(&format!("s1-{id}"), "create_snapshot", kept)
                .await;
        }
        let mut params = params.clone();
        params["disk"] = json!(id);
        let disk = site.path("disks").join(format!("{id}.qcow2"));
        let name = format!("{id}.qcow2");
        site.write(&name, "qcow2", "write -P 9 2M 1M");
        let good = fs::read(&disk).unwrap();
        let known = async |id: &str| {
            let record = site.record(id).await;
            (record.state, record.virtual_size, record.snapshots)
        };
        let before = (known(&id).await, known(&below).await);
        for (at, (what, expected, swap)) in SWAPS.iter().enumerate() {
            let told = format!("{what}: {task} {params}");
            let job = site.job(&format!("j{number}-{at}"), task, params.clone());
            let bad = Mutex::new(Vec::new());
            let swap = || {
                swap(&disk, &host);
                *bad.lock().unwrap() = fs::read(&disk).unwrap();
            };
            let refused = failed(site.run_and(&job, Step::Commit, &swap).await);
            assert_eq!(refused.code, *expected, "{told}: {refused:?}");
            assert!(fs::read(&host).unwrap() == content, "{told}");
            assert_eq!((known(&id).await, known(&below).await), before, "{told}");
            let is_same = fs::read(&disk).unwrap() == *bad.lock().unwrap();
            assert!(is_same, "{told}: somebody wrote it");
            fs::remove_file(&disk).unwrap();
            fs::write(&disk, &good).unwrap();
        }
        site.done(&format!("after-{id}"), task, params).await;
    }
    assert_kept(&site, "swapped");
}

/// What lies at its place in the end is what was looked at when it came, or goes back.
#[tokio::test]
async fn a_file_that_is_swapped_while_it_is_adopted_is_no_disk() {
    let site = Site::start().await;
    let (host, content) = plant(&site);
    fs::create_dir_all(site.path("adopt")).unwrap();
    let append: Swap = ("more bytes", Code::ImageFormatMismatch, |file, _| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, bytes.repeat(2)).unwrap();
    });
    let raw = [("raw", append)].into_iter();
    let cases = raw.chain(SWAPS.map(|swap| ("qcow2", swap)));
    for (number, (format, (what, expected, swap))) in cases.enumerate() {
        let file = format!("f{number}");
        let source = site.path("adopt").join(&file);
        let path = source.to_str().unwrap();
        program("qemu-img", &["create", "-q", "-f", format, path, "4M"]);
        let params = json!({ "disk": "d1", "format": format, "file": file });
        let job = site.job(&format!("j{number}"), "adopt_disk", params);
        let swap = || swap(&source, &host);
        let refused = failed(site.run_and(&job, Step::Commit, &swap).await);
        assert_eq!(refused.code, expected, "{what}: {refused:?}");
        assert_eq!(site.files("adopt"), [file], "{what}");
        assert_eq!(site.files("disks"), Vec::<String>::new(), "{what}");
        assert_eq!(site.disk("d1").await, None, "{what}");
        fs::remove_file(&source).unwrap();
    }
    assert!(fs::read(&host).unwrap() == content);
    assert_kept(&site, "adopted");
}
