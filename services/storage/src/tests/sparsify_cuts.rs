//! `sparsify`, cut at any of its steps and in each way. The tool would take half an hour for all
//! that; in its place stands a program that takes a moment, and does what the tool does: it counts,
//! speaks, and trims the image it's given.

use super::{
    cuts::{case, cut_at},
    site::{Site, TOOLS},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};
use virtbus_worker::process::find_program;

/// Trims the second MiB of the image, its last argument.
const PROGRAM: &str = r#"#!/bin/sh
echo 3/12
echo 12/12
for image; do :; done
echo '{ "message": "Trimming /dev/sda", "timestamp": "x", "type": "message" }'
exec /usr/bin/qemu-io -f qcow2 -d unmap -c "discard 1M 1M" "$image"
"#;

/// A site with that program.
pub(super) async fn quick_site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join(TOOLS);
    fs::create_dir(&tools).unwrap();
    let program = tools.join("virt-sparsify");
    fs::write(&program, PROGRAM).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    symlink(find_program("qemu-img").unwrap(), tools.join("qemu-img")).unwrap();
    Site::beside(dir, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_made_sparse() {
    let site = quick_site().await;
    let sparse = case("sparsify", r#"{"disk": "{a}"}"#).measures(&["before", "after"]);
    cut_at(&site, sparse).await;
}
