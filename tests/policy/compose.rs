//! `compose.yaml` and the files it stands on are read by the real tools; it runs what
//! `virtbus up` runs.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

/// The programs of `virtbus up`, and the one-shot container that prepares the server for them.
const SERVICES: &[&str] = &["core", "feedback", "hypervisor", "nats", "setup", "storage"];

/// Docker's plugin where it is installed, else Debian's program of the same language.
fn compose(arguments: &[&str]) -> Output {
    let root = super::root();
    let plugin = Command::new("docker").args(["compose", "version"]).output();
    let mut command = match plugin {
        Ok(output) if output.status.success() => {
            let mut docker = Command::new("docker");
            docker.arg("compose");
            docker
        }
        Ok(_) | Err(_) => Command::new("docker-compose"),
    };
    command
        .arg("--file")
        .arg(root.join("compose.yaml"))
        .args(arguments)
        .output()
        .expect("docker compose or docker-compose is installed: ./dev setup")
}

#[test]
fn compose_file_is_understood() {
    let output = compose(&["config", "--quiet"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn compose_runs_what_up_runs() {
    let output = compose(&["config", "--services"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8_lossy(&output.stdout);
    let found: BTreeSet<&str> = names.lines().collect();
    assert_eq!(found, SERVICES.iter().copied().collect());
}

/// The values of `key` in a text of `key value` lines, wherever they are indented.
fn values<'a>(text: &'a str, key: &str) -> BTreeSet<&'a str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(key))
        .map(str::trim)
        .collect()
}

#[test]
fn every_image_has_its_build_target() {
    let root = super::root();
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("the file is there");
    let (compose, containerfile) = (read("compose.yaml"), read("containers/Containerfile"));
    let stages: BTreeSet<&str> = values(&containerfile, "FROM ")
        .into_iter()
        .filter_map(|from| from.split_once(" AS ").map(|(_, stage)| stage))
        .collect();
    let targets = values(&compose, "target:");
    assert!(targets.is_subset(&stages), "{targets:?} of {stages:?}");
    for copied in values(&containerfile, "COPY ") {
        let sources = copied.split(' ').filter(|word| !word.starts_with('-'));
        for source in sources.filter(|word| !word.starts_with('/')) {
            assert!(root.join(source).exists(), "COPY {copied}: no {source}");
        }
    }
}

#[test]
fn nats_server_accepts_the_configuration_of_its_container() {
    let root = super::root();
    let local = root.join(".dev/bin/nats-server");
    let server = if local.exists() {
        local
    } else {
        "nats-server".into()
    };
    let output = Command::new(server)
        .arg("-t")
        .arg("-c")
        .arg(root.join("containers/nats.conf"))
        .output()
        .expect("nats-server is installed: ./dev setup");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
