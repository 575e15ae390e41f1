//! Disks as they lie in the pool, seen by real qemu-img.

use crate::random::Random;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// What `qemu-img info` says of a file.
pub fn info(path: &Path) -> Value {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(path)
        .output()
        .unwrap_or_else(|error| panic!("run qemu-img: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img info: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether two images hold the same bytes for a guest.
pub fn same(one: &Path, other: &Path) -> bool {
    let output = Command::new("qemu-img")
        .arg("compare")
        .args([one, other])
        .output();
    output.unwrap().status.success()
}

/// Writes bytes over a raw disk as its guest would: all different, none compressible.
pub fn fill(path: &Path, mib: u64) {
    let len = fs::metadata(path).unwrap().len();
    assert!(mib * MIB <= len, "the disk has room for {mib} MiB");
    let mut random = Random::seeded();
    // Per cluster it's incompressible although it repeats.
    let block = random.bytes(usize::try_from(MIB).unwrap());
    let mut file = File::options().write(true).open(path).unwrap();
    for _ in 0..mib {
        file.write_all(&block).unwrap();
    }
}

/// The path of a disk in its pool, by the contract.
pub fn path(pool_root: &Path, disk: &str, format: &str) -> PathBuf {
    pool_root.join("disks").join(format!("{disk}.{format}"))
}

/// Every file below the pool's root, relative to it, sorted.
pub fn files(pool_root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    collect(pool_root, pool_root, &mut found);
    found.sort();
    found
}

/// Temporary files that nobody works on any more, when nothing runs.
pub fn leftovers(pool_root: &Path) -> Vec<String> {
    let mut found = files(pool_root);
    found.retain(|name| name.ends_with(".part"));
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            found.push(name.to_owned());
        }
    }
}
