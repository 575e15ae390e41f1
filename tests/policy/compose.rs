//! `compose.yaml` and the files it stands on are read by the real tools; it runs what
//! `virtbus up` runs.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

/// The programs of `virtbus up`, and what it does itself: set up the streams, register the pool,
/// make the key of tokens.
const SERVICES: &[&str] = &[
    "core",
    "feedback",
    "hypervisor",
    "key",
    "nats",
    "register",
    "setup",
    "storage",
];

/// Our own services; each runs the program of its name.
const PROGRAMS: &[&str] = &["core", "feedback", "hypervisor", "storage"];

/// Where the pool lies in its container; there's no such folder here.
const POOL: &str = "/var/lib/virtbus/pool";

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
    let mut found: BTreeSet<&str> = names.lines().collect();
    // Behind a profile, which older versions list all the same.
    found.remove("token");
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

/// The settings that `compose.yaml` gives `service`, with those of the anchor all of them share.
fn settings(compose: &str, service: &str) -> Vec<(String, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in compose.lines() {
        let name = line.trim_end_matches(':');
        if line.starts_with("  ") && !line.starts_with("   ") && name != line {
            inside = name.trim() == service || name.trim() == "setup";
        }
        if let Some((key, value)) = line.trim().split_once(": ")
            && inside
            && key.starts_with("VIRTBUS__")
        {
            found.push((key.to_owned(), value.trim_matches('"').to_owned()));
        }
    }
    found
}

#[test]
fn each_program_accepts_its_settings() {
    let compose = fs::read_to_string(super::root().join("compose.yaml")).expect("it is there");
    let tests = std::env::current_exe().expect("the test has a path");
    let programs = tests
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let pool = tempfile::tempdir().expect("a temporary folder");
    let pool = pool.path().to_str().expect("it is UTF-8");
    for service in PROGRAMS {
        let settings = settings(&compose, service);
        assert!(settings.len() > 1, "{service} has settings");
        let output = Command::new(programs.join(format!("virtbus-{service}")))
            .args(["config", "check"])
            .env_clear()
            .envs(
                settings
                    .into_iter()
                    .map(|(key, value)| (key, value.replace(POOL, pool))),
            )
            .output()
            .unwrap_or_else(|error| panic!("virtbus-{service}: {error}; ./dev build makes it"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "virtbus-{service}: {told}");
    }
}
