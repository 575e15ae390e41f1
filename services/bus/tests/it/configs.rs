//! The server configurations are what a real server takes.

use nkeys::KeyPair;
use std::path::Path;
use std::process::Command;
use virtbus_bus::topology::keys_conf;
use virtbus_testbed::server::{copy_nats_folder, program};

fn tested(config: &Path) -> (bool, String) {
    let output = Command::new(program())
        .args(["-t", "-c"])
        .arg(config)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

#[test]
fn every_configuration_is_valid_once_the_keys_are_there() {
    let folder = tempfile::tempdir().unwrap();
    copy_nats_folder(folder.path());
    let keys = keys_conf(|_| KeyPair::new_user().public_key());
    std::fs::write(folder.path().join("keys.conf"), keys).unwrap();
    for name in [
        "dev.conf",
        "production.conf",
        "cluster/node1.conf",
        "cluster/node2.conf",
        "cluster/node3.conf",
    ] {
        let (valid, text) = tested(&folder.path().join(name));
        assert!(valid, "{name}: {text}");
    }
}

#[test]
fn production_does_not_start_without_keys() {
    let folder = tempfile::tempdir().unwrap();
    copy_nats_folder(folder.path());
    let (valid, text) = tested(&folder.path().join("production.conf"));
    assert!(!valid && text.contains("keys.conf"), "{text}");

    let example = folder.path().join("keys.example.conf");
    std::fs::copy(example, folder.path().join("keys.conf")).unwrap();
    let (valid, text) = tested(&folder.path().join("production.conf"));
    assert!(!valid, "accepted the empty example: {text}");
}
