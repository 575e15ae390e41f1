//! Files that attack, made of good ones by the bytes that matter.

use super::vmdk::{vmdk_sparse, vmdk_text};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::{FileExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use virtbus_wire::Code;

/// The virtual size of the disks that are attacked, in bytes.
pub(super) const DISK_BYTES: u64 = 4 << 20;
/// How deep the chain is that nobody made by jobs.
const DEEP: u32 = 200;

/// What the files aim at.
#[derive(Debug, Clone)]
pub(super) struct Aims {
    /// A file of the host, outside of the pool.
    pub(super) host: PathBuf,
    /// A port that somebody listens at.
    pub(super) port: u16,
    /// A folder for what an attack is made of.
    pub(super) workshop: PathBuf,
}

/// What is done to the file of a qcow2.
pub(super) type Attack = fn(&Path, &Aims);

pub(super) fn program(name: &str, args: &[&str]) {
    let mut command = Command::new(name);
    command.args(args).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{name} {args:?}: {output:?}");
}

pub(super) fn patch(disk: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

pub(super) fn cut(disk: &Path, length: u64) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    file.set_len(length).unwrap();
}

/// The name of a backing, behind all extensions.
pub(super) fn backing(disk: &Path, name: &str) {
    const AT: u64 = 2048;
    patch(disk, AT, name.as_bytes());
    patch(disk, 8, &AT.to_be_bytes());
    patch(disk, 16, &u32::try_from(name.len()).unwrap().to_be_bytes());
}

/// A data file of this name: the feature's bit, and the extension before all others.
pub(super) fn data_file(disk: &Path, name: &str) {
    patch(disk, 79, &[4]);
    let mut extension = 0x4441_5441_u32.to_be_bytes().to_vec();
    extension.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
    extension.extend(name.as_bytes());
    extension.resize(extension.len().next_multiple_of(8) + 8, 0);
    patch(disk, 112, &extension);
}

pub(super) fn description(host: &Path) -> String {
    let file = host.display();
    format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{file}\"}}}}")
}

/// A disk on top of 200 others, none of which the catalogue knows.
fn deep(disk: &Path, aims: &Aims) {
    let folder = aims.workshop.join("deep");
    if !folder.exists() {
        fs::create_dir(&folder).unwrap();
        fs::copy(disk, folder.join("c0")).unwrap();
        for number in 1..=DEEP {
            let file = folder.join(format!("c{number}"));
            fs::copy(disk, &file).unwrap();
            backing(&file, &format!("c{}", number - 1));
        }
    }
    let pool = disk.parent().unwrap();
    for number in 0..DEEP {
        let name = format!("c{number}");
        fs::copy(folder.join(&name), pool.join(&name)).unwrap();
    }
    fs::copy(folder.join(format!("c{DEEP}")), disk).unwrap();
}

/// LUKS inside, of which the key takes as long to try as the number allows; all else is as it was.
fn luks(disk: &Path, _: &Aims) {
    const EXTENSION: u32 = 0x0537_be77;
    let head = fs::read(disk).unwrap();
    let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap()) as usize;
    let (name, length) = (number(12), number(16));
    let below = std::str::from_utf8(&head[name..name + length]).unwrap();
    let ends = if below.is_empty() { 1024 } else { name };
    let at = (head.len() as u64).next_multiple_of(64 << 10);
    let mut extensions = EXTENSION.to_be_bytes().to_vec();
    extensions.extend(16_u32.to_be_bytes());
    extensions.extend(at.to_be_bytes());
    extensions.extend(4096_u64.to_be_bytes());
    extensions.extend(&head[112..ends]);
    patch(disk, 32, &2_u32.to_be_bytes());
    patch(disk, 112, &extensions);
    if !below.is_empty() {
        backing(disk, below);
    }
    let mut key = vec![0; 4096];
    key[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    for (at, word) in [(8, "aes"), (40, "xts-plain64"), (72, "sha256")] {
        key[at..at + word.len()].copy_from_slice(word.as_bytes());
    }
    // The tries for the whole, and for the key in the first slot, which is in use.
    key[164..168].copy_from_slice(&i32::MAX.to_be_bytes());
    key[208..212].copy_from_slice(&0x00ac_71f3_u32.to_be_bytes());
    key[212..216].copy_from_slice(&i32::MAX.to_be_bytes());
    patch(disk, at, &key);
}

fn socket(disk: &Path, _: &Aims) {
    fs::remove_file(disk).unwrap();
    // The file outlives who listens.
    drop(UnixListener::bind(disk).unwrap());
}

/// A device that never ends to be read. Nobody but root can put one there: without that right
/// there's a socket.
fn device(disk: &Path, aims: &Aims) {
    const ENDLESS: (u32, u32) = (1, 5);
    fs::remove_file(disk).unwrap();
    let number = makedev(ENDLESS.0, ENDLESS.1);
    match mknodat(CWD, disk, FileType::CharacterDevice, Mode::RUSR, number) {
        Ok(()) => {}
        Err(Errno::PERM) => {
            fs::write(disk, "").unwrap();
            socket(disk, aims);
        }
        Err(error) => panic!("{error}"),
    }
}

/// In place of a qcow2's file: what, the code that a job on it ends with, and how it's made.
pub(super) const ATTACKS: &[(&str, Code, Attack)] = &[
    (
        "the host's file below",
        Code::ImageBackingFile,
        |disk, aims| {
            backing(disk, aims.host.to_str().unwrap());
        },
    ),
    ("a relative name", Code::ImageBackingFile, |disk, _| {
        backing(disk, "../../host-file");
    }),
    ("a description", Code::ImageBackingFile, |disk, aims| {
        backing(disk, &description(&aims.host));
    }),
    (
        "a block device's address",
        Code::ImageBackingFile,
        |disk, aims| {
            backing(disk, &format!("nbd://127.0.0.1:{}/x", aims.port));
        },
    ),
    ("a web address", Code::ImageBackingFile, |disk, aims| {
        backing(disk, &format!("http://127.0.0.1:{}/x", aims.port));
    }),
    ("itself", Code::ImageBackingFile, |disk, _| {
        backing(disk, disk.file_name().unwrap().to_str().unwrap());
    }),
    (
        "a name without a format",
        Code::ImageBackingFile,
        |disk, aims| {
            backing(disk, aims.host.to_str().unwrap());
            // The extension that says it, if there is one, becomes one that nobody knows.
            patch(disk, 112, &[0x11; 4]);
        },
    ),
    ("a chain that nobody made", Code::ImageBackingFile, deep),
    (
        "the host's file for the data",
        Code::ImageDataFile,
        |disk, aims| {
            data_file(disk, aims.host.to_str().unwrap());
        },
    ),
    (
        "a description of the data",
        Code::ImageDataFile,
        |disk, aims| {
            data_file(disk, &description(&aims.host));
        },
    ),
    (
        "a block device's address for the data",
        Code::ImageDataFile,
        |disk, aims| {
            data_file(disk, &format!("nbd://127.0.0.1:{}/x", aims.port));
        },
    ),
    ("data without a name", Code::ImageDataFile, |disk, _| {
        patch(disk, 79, &[4]);
    }),
    ("an unknown feature", Code::ImageUnsafeFeature, |disk, _| {
        patch(disk, 74, &[1]);
    }),
    ("a key that takes for ever", Code::ImageUnsafeFeature, luks),
    ("many snapshots", Code::ImageUnsafeFeature, |disk, _| {
        patch(disk, 60, &[0, 1, 0, 0]);
    }),
    (
        "all snapshots there can be",
        Code::ImageUnsafeFeature,
        |disk, _| {
            patch(disk, 60, &[0xff; 4]);
        },
    ),
    ("one more snapshot", Code::ImageUnsafeFeature, |disk, _| {
        program("qemu-img", &["snapshot", "-c", "x", disk.to_str().unwrap()]);
    }),
    ("another size", Code::ImageFormatMismatch, |disk, _| {
        patch(disk, 24, &(3_u64 << 20).to_be_bytes());
    }),
    ("a mark of damage", Code::ImageCorrupt, |disk, _| {
        patch(disk, 79, &[2]);
    }),
    ("a table outside the file", Code::ImageCorrupt, |disk, _| {
        patch(disk, 40, &(1_u64 << 40).to_be_bytes());
    }),
    ("a huge table", Code::ImageCorrupt, |disk, _| {
        patch(disk, 36, &[0x7f, 0xff, 0xff, 0xff]);
    }),
    ("huge counts", Code::ImageCorrupt, |disk, _| {
        patch(disk, 56, &[0x7f, 0xff, 0xff, 0xff]);
    }),
    ("wide counts", Code::ImageCorrupt, |disk, _| {
        patch(disk, 96, &63_u32.to_be_bytes());
    }),
    ("no clusters", Code::ImageCorrupt, |disk, _| {
        patch(disk, 20, &[0; 4]);
    }),
    ("huge clusters", Code::ImageCorrupt, |disk, _| {
        patch(disk, 20, &31_u32.to_be_bytes());
    }),
    ("a long extension", Code::ImageCorrupt, |disk, _| {
        patch(disk, 112, &[0x11, 0x11, 0x11, 0x11, 0x7f, 0xff, 0xff, 0xff]);
    }),
    ("half a file", Code::ImageCorrupt, |disk, _| cut(disk, 512)),
    ("the begin of a file", Code::ImageCorrupt, |disk, _| {
        cut(disk, 8)
    }),
    ("an empty file", Code::ImageFormatMismatch, |disk, _| {
        cut(disk, 0)
    }),
    (
        "a list of other files",
        Code::ImageFormatMismatch,
        vmdk_text,
    ),
    (
        "a disk that is a list of other files",
        Code::ImageFormatMismatch,
        vmdk_sparse,
    ),
    (
        "a format that nobody takes",
        Code::ImageFormatMismatch,
        |disk, _| {
            patch(disk, 0, b"QED\0");
        },
    ),
    ("a link", Code::ImageUnsafeFeature, |disk, aims| {
        fs::remove_file(disk).unwrap();
        symlink(&aims.host, disk).unwrap();
    }),
    (
        "a second name of the host's file",
        Code::ImageUnsafeFeature,
        |disk, aims| {
            fs::remove_file(disk).unwrap();
            fs::hard_link(&aims.host, disk).unwrap();
        },
    ),
    ("a pipe", Code::ImageUnsafeFeature, |disk, _| {
        fs::remove_file(disk).unwrap();
        program("mkfifo", &[disk.to_str().unwrap()]);
    }),
    ("a socket", Code::ImageUnsafeFeature, socket),
    ("a device", Code::ImageUnsafeFeature, device),
    ("a folder", Code::ImageUnsafeFeature, |disk, _| {
        fs::remove_file(disk).unwrap();
        fs::create_dir(disk).unwrap();
    }),
];

/// A qcow2 whose first cluster is the first of the host's file.
pub(super) fn mapped_elsewhere(disk: &Path, aims: &Aims) {
    const CLUSTER: u64 = 64 << 10;
    const HERE: u64 = 1 << 63;
    data_file(disk, aims.host.to_str().unwrap());
    let head = fs::read(disk).unwrap();
    let first = u64::from_be_bytes(head[40..48].try_into().unwrap());
    let table = u64::try_from(head.len()).unwrap().next_multiple_of(CLUSTER);
    cut(disk, table + CLUSTER);
    patch(disk, first, &(table | HERE).to_be_bytes());
    patch(disk, table, &HERE.to_be_bytes());
}

/// A qcow2 of these many bytes, all of which are the same cluster.
pub(super) fn all_the_same(disk: &Path, bytes: u64) {
    const CLUSTER: u64 = 64 << 10;
    let clusters = bytes / CLUSTER;
    let entries = CLUSTER / 8;
    let head = fs::read(disk).unwrap();
    let first = u64::from_be_bytes(head[40..48].try_into().unwrap());
    let table = u64::try_from(head.len()).unwrap().next_multiple_of(CLUSTER);
    let file = File::options().write(true).open(disk).unwrap();
    for number in 0..clusters.div_ceil(entries) {
        file.write_all_at(&table.to_be_bytes(), first + number * 8)
            .unwrap();
    }
    let entry = (table + CLUSTER).to_be_bytes();
    let entries = entry.repeat(usize::try_from(entries).unwrap());
    file.write_all_at(&entries, table).unwrap();
    file.write_all_at(&vec![7; 64 << 10], table + CLUSTER)
        .unwrap();
}
