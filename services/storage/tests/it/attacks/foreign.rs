//! What lies in the pool and comes from outside: no file that attacks becomes a disk or a medium, and
//! none comes back from the trash as one.

use super::{
    AT_ONCE, HIGH, LOW,
    corpus::{ATTACKS, Aims, Attack, DISK_BYTES, patch, program},
    remove,
    siege::Siege,
    vmdk::VMDKS,
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};
use virtbus_wire::Code;

/// The most that a disk of the pool may have, in bytes.
const SIZE_MAX: u64 = 1 << 40;

/// What is an attack on a disk of the catalogue only: its file is another one now.
const SOUND: [&str; 2] = ["one more snapshot", "another size"];

/// A file of these bytes in places, zeros else.
fn file_of(file: &Path, length: usize, parts: &[(usize, &[u8])]) {
    let mut bytes = vec![0; length];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    fs::write(file, bytes).unwrap();
}

/// A partition table that points at a newer one.
const TABLE: [(usize, &[u8]); 3] = [
    (450, b"\xee\xff\xff\xff\x01\0\0\0\0\x08\0\0"),
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
];
/// What makes a file a disc.
const DISC: [(usize, &[u8]); 4] = [
    (0x8000, b"\x01CD001\x01"),
    (0x8000 + 80, b"\x40"),
    (0x8000 + 128, b"\0\x08"),
    (0x8800, b"\xffCD001\x01"),
];

/// A snapshot of this name inside, which no tool of ours would make.
fn snapshot(disk: &Path, name: &[u8]) {
    program("qemu-img", &["snapshot", "-c", "x", disk.to_str().unwrap()]);
    let bytes = fs::read(disk).unwrap();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let head = usize::try_from(table).unwrap();
    let short = |at: usize| u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
    let extra = u32::from_be_bytes(bytes[head + 36..head + 40].try_into().unwrap());
    let at = table + 40 + u64::from(extra) + u64::from(short(head + 12));
    let length = u16::try_from(name.len()).unwrap();
    patch(disk, table + 14, &length.to_be_bytes());
    patch(disk, at, name);
}

/// As large as a qcow2 can be, with the largest table there can be.
fn largest(disk: &Path, _: &Aims) {
    const TABLE: (u64, u32) = (1 << 20, 32 << 20);
    patch(disk, 24, &(64_u64 << 40).to_be_bytes());
    patch(disk, 36, &(TABLE.1 / 8).to_be_bytes());
    patch(disk, 40, &TABLE.0.to_be_bytes());
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    file.set_len(TABLE.0 + u64::from(TABLE.1)).unwrap();
}

/// What only comes from outside: what, its format as it's told, the code, and how it's made of a
/// sound qcow2.
const FOREIGN: &[(&str, &str, Code, Attack)] = &[
    (
        "a raw disk that keeps its data elsewhere",
        "raw",
        Code::ImageDataFile,
        |disk, aims| {
            super::corpus::mapped_elsewhere(disk, aims);
            let file = OpenOptions::new().write(true).open(disk).unwrap();
            file.set_len(1 << 20).unwrap();
        },
    ),
    (
        "a qcow2 larger than any disk here",
        "qcow2",
        Code::ImageTooLarge,
        largest,
    ),
    (
        "a raw file larger than any disk here",
        "raw",
        Code::ImageTooLarge,
        |disk, _| {
            let file = OpenOptions::new().write(true).open(disk).unwrap();
            file.set_len(0).unwrap();
            file.set_len(8 << 40).unwrap();
        },
    ),
    (
        "what wasn't closed",
        "qcow2",
        Code::ImageCorrupt,
        |disk, _| patch(disk, 79, &[1]),
    ),
    (
        "a snapshot's name of two lines",
        "qcow2",
        Code::ImageUnsafeFeature,
        |disk, _| {
            snapshot(disk, b"a\nb");
        },
    ),
    (
        "a snapshot's name that moves a terminal",
        "qcow2",
        Code::ImageUnsafeFeature,
        |disk, _| {
            snapshot(disk, b"\x1b[2J");
        },
    ),
    (
        "a snapshot's name that is an option",
        "qcow2",
        Code::ImageUnsafeFeature,
        |disk, _| {
            snapshot(disk, b"-d");
        },
    ),
    (
        "a snapshot's name that is no text",
        "qcow2",
        Code::ImageUnsafeFeature,
        |disk, _| {
            snapshot(disk, b"a\xff");
        },
    ),
    (
        "a snapshot's name of a KiB",
        "qcow2",
        Code::ImageUnsafeFeature,
        |disk, _| {
            snapshot(disk, &[b'x'; 1024]);
        },
    ),
    ("qed", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(disk, 1 << 16, &[(0, b"QED\0")])
    }),
    ("parallels", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(disk, 1 << 16, &[(0, b"WithouFreSpacExt")]);
    }),
    ("bochs", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(disk, 1 << 16, &[(0, b"Bochs Virtual HD Image\0")]);
    }),
    ("cloop", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(
            disk,
            1 << 16,
            &[(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop")],
        );
    }),
    ("dmg", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(disk, 1 << 16, &[((1 << 16) - 512, b"koly\0\0\0\x04")]);
    }),
    ("a key", "raw", Code::ImageFormatMismatch, |disk, _| {
        file_of(disk, 1 << 16, &[(0, b"LUKS\xba\xbe\0\x01")]);
    }),
    (
        "partitions and a list of other files",
        "raw",
        Code::ImageUnknownFormat,
        |disk, _| {
            let text = b"# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"/etc/passwd\" 0\n";
            file_of(disk, 1 << 16, &[&TABLE[..], &[(0, text)]].concat());
        },
    ),
    (
        "a disc and a qcow2",
        "iso",
        Code::ImageUnknownFormat,
        |disk, _| {
            file_of(
                disk,
                1 << 17,
                &[&DISC[..], &[(0, b"QFI\xfb\0\0\0\x03")]].concat(),
            );
        },
    ),
];

/// What there is of a file, unless somebody was at it.
fn stand(file: &Path) -> (u64, u64, i64, i64, u32) {
    let found = fs::symlink_metadata(file).unwrap();
    (
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
        found.mode(),
    )
}

/// Each way in, for a file of one of these formats.
fn doors(id: &str, formats: &[&str]) -> Vec<(String, (&'static str, Value))> {
    let door = |format: &&str| match *format {
        "iso" => (
            "adopt_media",
            json!({ "media": id, "format": format, "file": id }),
        ),
        _ => (
            "adopt_disk",
            json!({ "disk": id, "format": format, "file": id }),
        ),
    };
    let named = |format: &&str| (format!("{id}-{format}"), door(format));
    formats.iter().map(named).collect()
}

/// One file, at each door: it's told as what it is, or as not what it's said to be. What's told
/// otherwise.
async fn is_kept_out(
    siege: &Siege,
    id: &str,
    (what, formats, code): (&str, &[&str], Code),
) -> Vec<String> {
    let mut wrong = Vec::new();
    let file = siege.file(&format!("../adopt/{id}"));
    let before = stand(&file);
    for (job, task) in doors(id, formats) {
        let told = format!("{what}: {} {}", task.0, task.1);
        let found = siege.refused(&job, LOW, task).await;
        let is_first = job == format!("{id}-{}", formats[0]);
        let fits = found == code || !is_first && found == Code::ImageFormatMismatch;
        if !fits {
            wrong.push(format!("{told}: {found:?}, not {code:?}"));
        }
        assert_eq!(stand(&file), before, "{told}");
    }
    for records in [&siege.site.disks, &siege.media] {
        let record = records.get(id).await.unwrap();
        assert!(record.is_none(), "{what}: {record:?}");
    }
    remove(&file);
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_from_outside_that_attacks_becomes_a_disk() {
    let siege = Siege::begin().await;
    let limited = json!({ "pool": "default", "size_max": SIZE_MAX });
    siege.pools.put("default", &limited).await.unwrap();
    let adopt = siege.file("../adopt");
    fs::create_dir_all(&adopt).unwrap();
    let sound = |format: &str| {
        let path = siege.aims.workshop.join(format);
        let size = DISK_BYTES.to_string();
        program(
            "qemu-img",
            &["create", "-q", "-f", format, path.to_str().unwrap(), &size],
        );
        path
    };
    let (qcow2, vmdk) = (sound("qcow2"), sound("vmdk"));
    let of_disks = ATTACKS.iter().filter(|(what, ..)| !SOUND.contains(what));
    let of_disks = of_disks.map(|(what, code, attack)| {
        let code = match *what {
            "a list of other files" | "a disk that is a list of other files" => Code::ImageDataFile,
            "an empty file" => Code::ImageCorrupt,
            _ => *code,
        };
        (*what, &["qcow2", "raw", "iso"][..], code, *attack, &qcow2)
    });
    let of_vmdks = VMDKS.iter();
    let of_vmdks =
        of_vmdks.map(|(what, code, attack)| (*what, &["vmdk", "raw"][..], *code, *attack, &vmdk));
    let foreign = FOREIGN.iter().map(|(what, format, code, attack)| {
        (*what, std::slice::from_ref(format), *code, *attack, &qcow2)
    });
    let all = of_disks.chain(of_vmdks).chain(foreign).enumerate();
    let all = all.map(async |(number, (what, formats, code, attack, made_of))| {
        let id = format!("f{number}");
        let file = adopt.join(&id);
        fs::copy(made_of, &file).unwrap();
        attack(&file, &siege.aims);
        is_kept_out(&siege, &id, (what, formats, code)).await
    });
    let wrong = stream::iter(all).buffer_unordered(AT_ONCE);
    let wrong = wrong.collect::<Vec<_>>().await.concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
    some_do_come_in(&siege, &adopt).await;
    nothing_comes_back(&siege).await;
    siege.holds();
}

/// A disc with a partition table is one all the same; where a pool has no limit, a disk may be as
/// large as any. A medium goes without what was put in its place.
async fn some_do_come_in(siege: &Siege, adopt: &Path) {
    file_of(
        &adopt.join("disc"),
        1 << 17,
        &[&DISC[..], &TABLE[..]].concat(),
    );
    let disc = json!({ "media": "disc", "format": "iso", "file": "disc" });
    siege.done("disc", LOW, ("adopt_media", disc)).await;
    let medium = siege.file("../media/disc.iso");
    fs::remove_file(&medium).unwrap();
    symlink(&siege.aims.host, &medium).unwrap();
    let wipe = json!({ "media": "disc", "mode": "wipe" });
    siege.ends("wipe", LOW, ("delete_media", wipe)).await;
    let far = siege.far.path().join("other/adopt");
    fs::create_dir_all(&far).unwrap();
    let file = far.join("largest");
    fs::copy(siege.aims.workshop.join("qcow2"), &file).unwrap();
    largest(&file, &siege.aims);
    let disk = json!({ "disk": "largest", "format": "qcow2", "file": "largest" });
    siege
        .done("largest", "storage.other.low", ("adopt_disk", disk))
        .await;
    let look = json!({ "disk": "largest" });
    siege
        .done("look", "storage.other.low", ("check_disk", look))
        .await;
}

/// What was put into the trash in a disk's place doesn't come back as that.
async fn nothing_comes_back(siege: &Siege) {
    let make = json!({ "disk": "gone", "size": DISK_BYTES });
    siege.done("gone", HIGH, ("create_disk", make)).await;
    let delete = json!({ "disk": "gone" });
    siege
        .done("delete", LOW, ("delete_disk", delete.clone()))
        .await;
    let trash = siege.file("../trash");
    let mut names = fs::read_dir(&trash)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let file = names
        .find(|path| path.to_str().unwrap().contains("gone"))
        .unwrap();
    let good = fs::read(&file).unwrap();
    let attacks = ATTACKS.iter().filter(|(what, ..)| !SOUND.contains(what));
    let mut wrong = Vec::new();
    for (number, (what, code, attack)) in attacks.enumerate() {
        if *what == "a chain that nobody made" {
            continue;
        }
        attack(&file, &siege.aims);
        let before = stand(&file);
        let restore = ("restore_disk", delete.clone());
        let refused = siege
            .refused(&format!("restore-{number}"), LOW, restore)
            .await;
        if refused != *code {
            wrong.push(format!("{what}: {refused:?}, not {code:?}"));
        }
        assert_eq!(stand(&file), before, "{what}");
        remove(&file);
        fs::write(&file, &good).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    siege.done("restore", LOW, ("restore_disk", delete)).await;
}
