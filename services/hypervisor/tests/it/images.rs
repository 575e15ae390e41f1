//! Files that attack: what a guest, or whoever has the pool, wrote into a disk's file.

use crate::guests::{Guests, payload, qemu_img, template};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::{FileExt as _, symlink},
    path::Path,
};

const POOL: &str = "hypervisor.default.default";
const SECRET: &str = "secret.raw";

/// A file of the host that no guest may see.
fn secret(guests: &Guests) -> String {
    let path = guests.libvirt.pool().join(SECRET);
    fs::write(&path, vec![0x53; 1 << 20]).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Makes the disk `web1`, on top of `base`, attack; which code says so.
type Attack = (&'static str, fn(&Guests, &str), &'static str);

fn name_below(file: &Path, format: &str, below: &str) {
    let file = file.to_str().unwrap();
    qemu_img(&[
        "rebase", "-u", "-f", "qcow2", "-F", format, "-b", below, file,
    ]);
}

fn put(file: &Path, arguments: &[&str]) {
    fs::remove_file(file).unwrap();
    let mut all = vec!["create", "-q"];
    all.extend(arguments);
    all.extend([file.to_str().unwrap(), "1M"]);
    qemu_img(&all);
}

const ATTACKS: &[Attack] = &[
    (
        "a file of the host below it",
        |guests, secret| name_below(&guests.file("web1.qcow2"), "raw", secret),
        "image.backing_file",
    ),
    (
        "a file of the host below what is below it",
        |guests, secret| name_below(&guests.file("base.qcow2"), "raw", secret),
        "image.backing_file",
    ),
    (
        "a name that is a tree of options",
        |guests, secret| {
            let below = format!("json:{{\"driver\":\"file\",\"filename\":\"{secret}\"}}");
            name_below(&guests.file("web1.qcow2"), "qcow2", &below);
        },
        "image.backing_file",
    ),
    (
        "another format below it than the catalogue has",
        |guests, _| name_below(&guests.file("web1.qcow2"), "raw", "base.qcow2"),
        "image.backing_file",
    ),
    (
        "its data in a file of the host",
        |guests, secret| {
            let option = format!("data_file={secret},data_file_raw=on");
            put(&guests.file("web1.qcow2"), &["-f", "qcow2", "-o", &option]);
            fs::write(secret, vec![0x53; 1 << 20]).unwrap();
        },
        "image.data_file",
    ),
    (
        "another size",
        |guests, _| {
            let file = guests.file("base.qcow2");
            qemu_img(&["resize", "-q", "-f", "qcow2", file.to_str().unwrap(), "2M"]);
        },
        "image.format_mismatch",
    ),
    (
        "another format",
        |guests, _| put(&guests.file("web1.qcow2"), &["-f", "vmdk"]),
        "image.format_mismatch",
    ),
    (
        "half a header",
        |guests, _| fs::write(guests.file("web1.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap(),
        "image.corrupt",
    ),
    (
        "a link to a file of the host",
        |guests, secret| {
            fs::remove_file(guests.file("web1.qcow2")).unwrap();
            symlink(secret, guests.file("web1.qcow2")).unwrap();
        },
        "disk.wrong_state",
    ),
    (
        "a second name of a file of the host",
        |guests, secret| {
            fs::remove_file(guests.file("web1.qcow2")).unwrap();
            fs::hard_link(secret, guests.file("web1.qcow2")).unwrap();
        },
        "disk.wrong_state",
    ),
    (
        "no file",
        |guests, _| fs::remove_file(guests.file("web1.qcow2")).unwrap(),
        "disk.wrong_state",
    ),
];

#[tokio::test]
async fn nothing_is_started_or_tried_out_from_a_file_that_attacks() {
    let guests = Guests::start().await;
    let secret = secret(&guests);
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let whole = ["base.qcow2", "web1.qcow2"].map(|name| fs::read(guests.file(name)).unwrap());
    let restore = || {
        for (name, bytes) in ["base.qcow2", "web1.qcow2"].iter().zip(&whole) {
            // A link must not be written through.
            drop(fs::remove_file(guests.file(name)));
            fs::write(guests.file(name), bytes).unwrap();
        }
    };
    for (what, attack, code) in ATTACKS {
        attack(&guests, &secret);
        for task in ["start_domain", "check_domain"] {
            let params = json!({"domain": "web1", "template": template(&["web1"])});
            let error = guests.site.refused(POOL, payload(task, &params)).await;
            assert_eq!(error.code.as_str(), *code, "{task}, {what}: {error}");
            assert!(!error.message.contains('/'), "{what}: {error}");
        }
        let known = guests.libvirt.virsh(&["list", "--all", "--name"]).stdout;
        assert!(known.trim_ascii().is_empty(), "{what}");
        assert!(guests.libvirt.guests().is_empty(), "{what}");
        assert!(guests.site.domain("web1").await.is_none(), "{what}");
        for disk in ["base", "web1"] {
            assert!(guests.site.users(disk).await.is_empty(), "{what}");
        }
        assert!(fs::read(&secret).unwrap().iter().all(|byte| *byte == 0x53));
        restore();
    }
    guests.site.done(POOL, guests.start_of("web1")).await;
}

#[tokio::test]
async fn a_domain_that_is_off_is_not_put_back_to_a_snapshot_in_a_file_that_attacks() {
    let guests = Guests::start().await;
    let secret = secret(&guests);
    guests.run("web1").await;
    let of = json!({"domain": "web1", "snapshot": "s1"});
    guests.done("create_snapshot", of.clone()).await;
    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    name_below(&guests.file("web1.qcow2"), "raw", &secret);
    let queue = "hypervisor.hv-test.default";
    let other = json!({"domain": "web1", "snapshot": "s2"});
    for (task, params) in [
        ("revert_snapshot", &of),
        ("delete_snapshot", &of),
        ("create_snapshot", &other),
    ] {
        let error = guests.site.refused(queue, payload(task, params)).await;
        assert_eq!(error.code.as_str(), "image.backing_file", "{task}");
        assert!(guests.libvirt.guests().is_empty());
        assert!(guests.site.users("web1").await.is_empty());
    }
}

#[tokio::test]
async fn a_domain_that_runs_is_not_put_back_to_a_snapshot_in_a_file_that_attacks() {
    let guests = Guests::start().await;
    let secret = secret(&guests);
    guests.run("web1").await;
    let of = json!({"domain": "web1", "snapshot": "s1"});
    guests.done("create_snapshot", of.clone()).await;
    // What whoever has the pool writes below the feet of a QEMU that runs.
    let (disk, planted) = (
        guests.file("web1.qcow2"),
        guests.libvirt.pool().join("planted"),
    );
    fs::copy(&disk, &planted).unwrap();
    name_below(&planted, "raw", &secret);
    let header = fs::read(planted).unwrap();
    let disk = fs::File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&header[..4096], 0).unwrap();
    let pids = guests.libvirt.guests();
    let queue = "hypervisor.hv-test.default";
    let error = guests
        .site
        .refused(queue, payload("revert_snapshot", &of))
        .await;
    assert_eq!(error.code.as_str(), "image.backing_file");
    assert_eq!(guests.libvirt.guests(), pids);
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
}

#[tokio::test]
async fn a_header_that_a_guest_wrote_into_a_raw_disk_is_only_bytes_to_the_next_one() {
    let guests = Guests::start().await;
    let secret = secret(&guests);
    guests.raw_disk("web1").await;
    // What the guest writes: a disk on top of a file of the host, in front of its own bytes.
    let planted = guests.libvirt.pool().join("planted");
    let text = planted.to_str().unwrap();
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", text,
    ]);
    let header = fs::read(&planted).unwrap();
    let disk = fs::File::options()
        .write(true)
        .open(guests.file("web1.raw"));
    disk.unwrap().write_all_at(&header[..4096], 0).unwrap();
    guests.site.done(POOL, guests.start_of("web1")).await;
    let xml = guests.libvirt.virsh(&["dumpxml", "web1"]).stdout;
    let xml = String::from_utf8(xml).unwrap();
    assert!(
        xml.contains("type='raw'") && !xml.contains("type='qcow2'"),
        "{xml}"
    );
    assert!(!xml.contains(SECRET), "{xml}");
    let pid = guests.libvirt.guests()[0];
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let files = files.filter_map(|file| fs::read_link(file.path()).ok());
    let names: Vec<String> = files.map(|file| file.display().to_string()).collect();
    assert!(
        names.iter().any(|name| name.ends_with("/web1.raw")),
        "{names:?}"
    );
    assert!(!names.iter().any(|name| name.contains(SECRET)), "{names:?}");
}
