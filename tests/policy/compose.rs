//! `compose.yaml` is read by the real tool, and runs what `virtbus up` runs.

use std::collections::BTreeSet;
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
