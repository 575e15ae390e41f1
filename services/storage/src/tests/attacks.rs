//! Files that attack, in the place of a disk: no task lets a tool near them, and what they aim at
//! is neither read nor written.

use super::site::{MIB, Site, failed, program};
use crate::task::Step;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::Path,
};
use virtbus_wire::{Code, catalog::DiskState};

/// What must not be found in the pool.
const SECRET: &[u8] = b"the host's own secret ";

/// Something done to the file of `d1`, a qcow2 of 4 MiB; the second path is the host's file.
type Attack = fn(&Path, &Path);

fn backing(disk: &Path, name: &str) {
    let args = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name];
    program("qemu-img", &[&args[..], &[disk.to_str().unwrap()]].concat());
}

fn patch(disk: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn tool(disk: &Path, args: &[&str]) {
    program("qemu-img", &[args, &[disk.to_str().unwrap()]].concat());
}

/// A sparse VMDK without a disk in it, whose text names the host's file.
fn vmdk(disk: &Path, host: &Path) {
    let mut image = vec![0; 1 << 20];
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\nRW 8192 FLAT \"{}\" 0\n",
        host.display()
    );
    image[..8].copy_from_slice(b"KDMV\x01\0\0\0");
    image[28] = 1;
    image[36] = 20;
    image[512..512 + text.len()].copy_from_slice(text.as_bytes());
    fs::write(disk, image).unwrap();
}

const ATTACKS: &[(&str, Code, Attack)] = &[
    (
        "the host's file below",
        Code::ImageBackingFile,
        |disk, host| {
            backing(disk, host.to_str().unwrap());
        },
    ),
    ("a relative name", Code::ImageBackingFile, |disk, _| {
        backing(disk, "../../host-file");
    }),
    ("a description", Code::ImageBackingFile, |disk, host| {
        let file = host.display();
        let name = format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{file}\"}}}}"
        );
        backing(disk, &name);
    }),
    ("an address", Code::ImageBackingFile, |disk, _| {
        backing(disk, "nbd://127.0.0.1:1/x");
    }),
    ("itself", Code::ImageBackingFile, |disk, _| {
        backing(disk, "d1.qcow2")
    }),
    ("no format", Code::ImageBackingFile, |disk, host| {
        backing(disk, host.to_str().unwrap());
        // The extension that says it becomes one that nobody knows.
        patch(disk, 112, &[0x11; 4]);
    }),
    ("a data file", Code::ImageDataFile, |disk, _| {
        patch(disk, 79, &[4])
    }),
    ("an unknown feature", Code::ImageUnsafeFeature, |disk, _| {
        patch(disk, 74, &[1]);
    }),
    ("many snapshots", Code::ImageUnsafeFeature, |disk, _| {
        patch(disk, 60, &[0, 1, 0, 0]);
    }),
    ("one more snapshot", Code::ImageUnsafeFeature, |disk, _| {
        tool(disk, &["snapshot", "-c", "x"]);
    }),
    ("another size", Code::ImageFormatMismatch, |disk, _| {
        patch(disk, 24, &(3 * MIB).to_be_bytes());
    }),
    ("a mark of damage", Code::ImageCorrupt, |disk, _| {
        patch(disk, 79, &[2])
    }),
    ("a table outside the file", Code::ImageCorrupt, |disk, _| {
        patch(disk, 40, &(1_u64 << 40).to_be_bytes());
    }),
    ("a huge table", Code::ImageCorrupt, |disk, _| {
        patch(disk, 36, &[0x7f, 0xff, 0xff, 0xff]);
    }),
    ("no clusters", Code::ImageCorrupt, |disk, _| {
        patch(disk, 20, &[0; 4])
    }),
    ("a long extension", Code::ImageCorrupt, |disk, _| {
        patch(disk, 112, &[0x11, 0x11, 0x11, 0x11, 0x7f, 0xff, 0xff, 0xff]);
    }),
    ("half a file", Code::ImageCorrupt, |disk, _| {
        fs::File::options()
            .write(true)
            .open(disk)
            .unwrap()
            .set_len(512)
            .unwrap();
    }),
    ("an empty file", Code::ImageFormatMismatch, |disk, _| {
        fs::write(disk, "").unwrap();
    }),
    ("a list of other files", Code::ImageFormatMismatch, vmdk),
    ("a link", Code::ImageUnsafeFeature, |disk, host| {
        fs::remove_file(disk).unwrap();
        symlink(host, disk).unwrap();
    }),
    (
        "a second name of the host's file",
        Code::ImageUnsafeFeature,
        |disk, host| {
            fs::remove_file(disk).unwrap();
            fs::hard_link(host, disk).unwrap();
        },
    ),
    ("a pipe", Code::ImageUnsafeFeature, |disk, _| {
        fs::remove_file(disk).unwrap();
        program("mkfifo", &[disk.to_str().unwrap()]);
    }),
    ("a folder", Code::ImageUnsafeFeature, |disk, _| {
        fs::remove_file(disk).unwrap();
        fs::create_dir(disk).unwrap();
    }),
];

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

fn remove(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::remove_dir(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn no_task_lets_a_tool_near_a_file_that_attacks() {
    let site = Site::start().await;
    let (host, content) = plant(&site);
    site.filled_disk("d1").await;
    let disk = site.path("disks/d1.qcow2");
    let good = fs::read(&disk).unwrap();
    for (index, (what, code, attack)) in ATTACKS.iter().enumerate() {
        attack(&disk, &host);
        let is_host = *what == "a second name of the host's file";
        for (number, (task, params)) in tasks().into_iter().enumerate() {
            let refused = site
                .refused(&format!("j{index}-{number}"), task, params)
                .await;
            assert_eq!(refused.code, *code, "{what}, {task}: {refused:?}");
            assert_eq!(
                site.record("d1").await.state,
                DiskState::Ready,
                "{what}, {task}"
            );
        }
        assert_eq!(site.files("disks"), ["d1.qcow2"], "{what}");
        assert!(
            fs::read(&host).unwrap() == content,
            "{what}: the host's file has changed"
        );
        if !is_host {
            assert_kept(&site, what);
        }
        remove(&disk);
        fs::write(&disk, &good).unwrap();
    }
    // The next job on the disk, whole again, has nothing left of all that in its way.
    site.done("last", "resize", json!({ "disk": "d1", "size": "9MiB" }))
        .await;
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
async fn a_header_that_a_guest_wrote_into_a_raw_disk_is_only_bytes() {
    let site = Site::start().await;
    let (host, content) = plant(&site);
    let raw = json!({ "disk": "r1", "size": "4MiB", "format": "raw" });
    site.done("r", "create_disk", raw).await;
    site.filled_disk("d1").await;
    let qcow2 = site.path("disks/d1.qcow2");
    backing(&qcow2, host.to_str().unwrap());
    let mut header = fs::read(&qcow2).unwrap();
    header.truncate(4 << 20);
    patch(&site.path("disks/r1.raw"), 0, &header);
    site.done("j1", "resize", json!({ "disk": "r1", "size": "9MiB" }))
        .await;
    let copy = json!({ "disk": "r1", "to": "c1", "format": "qcow2" });
    site.done("j2", "convert", copy).await;
    assert_eq!(
        fs::metadata(site.path("disks/r1.raw")).unwrap().len(),
        9 * MIB
    );
    assert_eq!(fs::read(&host).unwrap(), content);
    assert_kept(&site, "raw");
}

#[tokio::test]
async fn a_file_that_is_swapped_after_the_work_reaches_no_tool_that_writes() {
    let tasks = [
        ("resize", json!({ "disk": "d1", "size": "9MiB" })),
        ("create_snapshot", json!({ "disk": "d1", "snapshot": "s1" })),
        ("commit", json!({ "disk": "d1" })),
        ("commit", json!({ "disk": "d1", "delete": true })),
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
