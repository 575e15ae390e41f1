//! VMDKs that attack: lists of other files, parents, and two headers that differ.

use super::{
    HIGH, LOW, PAIR,
    corpus::{Aims, Attack, DISK_BYTES, patch},
    remove,
    siege::Siege,
};
use serde_json::json;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};
use virtbus_wire::Code;

/// Where a sparse file has its text, in bytes, and how long that may be.
const TEXT: (u64, usize) = (512, 20 * 512);

/// A VMDK without a disk in it, whose text names the host's file.
fn descriptor(kind: &str, extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\
         {extent}\n"
    )
}

pub(super) fn vmdk_text(disk: &Path, aims: &Aims) {
    let extent = format!("RW 8192 FLAT \"{}\" 0", aims.host.display());
    fs::write(disk, descriptor("monolithicFlat", &extent)).unwrap();
}

fn vmdk_sibling(disk: &Path, _: &Aims) {
    let text = descriptor("twoGbMaxExtentFlat", "RW 8192 FLAT \"../../host-file\" 0");
    fs::write(disk, text).unwrap();
}

pub(super) fn vmdk_sparse(disk: &Path, aims: &Aims) {
    let extent = format!("RW 8192 FLAT \"{}\" 0", aims.host.display());
    let text = descriptor("monolithicFlat", &extent);
    let mut image = vec![0; 1 << 20];
    image[..8].copy_from_slice(b"KDMV\x01\0\0\0");
    image[28] = 1;
    image[36] = 20;
    image[512..512 + text.len()].copy_from_slice(text.as_bytes());
    fs::write(disk, image).unwrap();
}

fn vmdk_parent(disk: &Path, aims: &Aims) {
    let hint = format!("parentFileNameHint=\"{}\"", aims.host.display());
    fs::write(disk, descriptor("monolithicSparse", &hint)).unwrap();
}

fn vmdk_huge(disk: &Path, _: &Aims) {
    patch(disk, 12, &0xffff_ffff_0001_u64.to_le_bytes());
}

fn vmdk_footer(disk: &Path, _: &Aims) {
    patch(disk, 56, &u64::MAX.to_le_bytes());
}

/// A sound disk, whose text inside names the host's file as what it's on top of.
fn vmdk_sparse_parent(disk: &Path, aims: &Aims) {
    let mut text = vec![0; TEXT.1];
    File::open(disk)
        .unwrap()
        .read_exact_at(&mut text, TEXT.0)
        .unwrap();
    let text = String::from_utf8(text).unwrap();
    let text = text
        .trim_end_matches('\0')
        .replace("parentCID=ffffffff", "parentCID=00000001");
    let mut bytes = format!("{text}parentFileNameHint=\"{}\"\n", aims.host.display()).into_bytes();
    bytes.resize(TEXT.1, 0);
    patch(disk, TEXT.0, &bytes);
}

/// The tables are said to be where a second header says, at the end; that one is of another size.
fn vmdk_two_headers(disk: &Path, _: &Aims) {
    patch(disk, 56, &u64::MAX.to_le_bytes());
    let length = fs::metadata(disk).unwrap().len().next_multiple_of(512);
    let mut end = vec![0; 3 * 512];
    end[12..16].copy_from_slice(&3_u32.to_le_bytes());
    File::open(disk)
        .unwrap()
        .read_exact_at(&mut end[512..1024], 0)
        .unwrap();
    end[512 + 12..512 + 20].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    end[512 + 56..512 + 64].copy_from_slice(&21_u64.to_le_bytes());
    patch(disk, length, &end);
}

/// In place of a VMDK's file: what, the code that a job on it ends with, and how it's made.
pub(super) const VMDKS: &[(&str, Code, Attack)] = &[
    (
        "a text that names the host's file",
        Code::ImageDataFile,
        vmdk_text,
    ),
    (
        "a text that names a file above",
        Code::ImageDataFile,
        vmdk_sibling,
    ),
    (
        "a disk without room, and such a text",
        Code::ImageDataFile,
        vmdk_sparse,
    ),
    (
        "a text that names a parent",
        Code::ImageDataFile,
        vmdk_parent,
    ),
    (
        "a disk that names a parent",
        Code::ImageBackingFile,
        vmdk_sparse_parent,
    ),
    (
        "two headers that differ",
        Code::ImageCorrupt,
        vmdk_two_headers,
    ),
    ("a disk larger than any", Code::ImageTooLarge, vmdk_huge),
    (
        "a table that is said to be at the end",
        Code::ImageCorrupt,
        vmdk_footer,
    ),
];

/// Every attack on a VMDK, on copies that the service made: one alone, and one below an overlay.
pub(super) async fn attack(siege: &Siege) {
    let loose = json!({ "disk": "v-loose", "size": DISK_BYTES });
    siege.done("v-loose", HIGH, ("create_disk", loose)).await;
    for (number, one) in VMDKS.iter().enumerate() {
        attack_with(siege, number, *one).await;
    }
}

async fn attack_with(siege: &Siege, number: usize, (what, code, attack): (&str, Code, Attack)) {
    let named = |name: &str| format!("v{number}-{name}");
    let (alone, base, top, new) = (named("alone"), named("base"), named("top"), named("new"));
    for disk in [&alone, &base] {
        let made = json!({ "disk": "spare", "to": disk, "format": "vmdk" });
        siege
            .done(&format!("make-{disk}"), LOW, ("convert", made))
            .await;
    }
    let overlay = json!({ "disk": top, "backing": base });
    siege
        .done(&format!("make-{top}"), HIGH, ("create_disk", overlay))
        .await;
    let files = [&alone, &base].map(|disk| siege.file(&format!("{disk}.vmdk")));
    for file in &files {
        attack(file, &siege.aims);
    }
    let copy = |of: &str| json!({ "disk": of, "to": new, "format": "raw" });
    let tasks = [
        (LOW, ("convert", copy(&alone))),
        (LOW, ("archive_disk", json!({ "disk": alone }))),
        (LOW, ("check_disk", json!({ "disk": alone }))),
        (
            HIGH,
            ("create_disk", json!({ "disk": new, "backing": base })),
        ),
        (LOW, ("convert", copy(&top))),
        (LOW, ("commit", json!({ "disk": top }))),
        (LOW, ("commit", json!({ "disk": top, "delete": true }))),
        (LOW, ("rebase", json!({ "disk": top, "backing": null }))),
        (
            LOW,
            ("rebase", json!({ "disk": "v-loose", "backing": base })),
        ),
        (
            PAIR,
            (
                "move_disk",
                json!({ "disk": top, "pool": "other", "tree": true }),
            ),
        ),
    ];
    for (index, (subject, task)) in tasks.into_iter().enumerate() {
        let told = format!("{what}: {} {}", task.0, task.1);
        let refused = siege
            .refused(&named(&index.to_string()), subject, task)
            .await;
        assert_eq!(refused, code, "{told}");
        let new = siege.site.disks.get(&new).await.unwrap();
        assert!(new.is_none(), "{told}: {new:?}");
        for disk in ["v-loose", &top] {
            let record = siege.site.disks.get(disk).await.unwrap();
            assert_eq!(record.unwrap().value["state"], "ready", "{told}: {disk}");
        }
    }
    files.iter().for_each(|file| remove(file));
}
