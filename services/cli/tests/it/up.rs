//! `up`: everything at once, with the real services, which have to be built beside the program.

use crate::program::{Said, virtbus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use virtbus_testbed::{port, until, watch::soon};

const NAMES: [&str; 5] = ["nats", "core", "storage", "hypervisor", "feedback"];

/// A running `up`.
struct Up {
    child: Child,
    ready: Value,
}

fn command(dir: &Path, more: &str) -> Command {
    port::choose_for_up(dir);
    let mut command = virtbus("nats://127.0.0.1:1", "up");
    command.env("VIRTBUS_NATS_SERVER", virtbus_testbed::server::program());
    command.arg("--dir").arg(dir).args(more.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Up {
    async fn start(dir: &Path, more: &str) -> Self {
        let file = dir.join("told.json");
        // One that was killed leaves its own behind.
        fs::remove_file(&file).ok();
        let mut command = command(dir, more);
        let mut child = command.arg("--ready-file").arg(&file).spawn().unwrap();
        let ready = until("the ready file", async || {
            if let Some(status) = child.try_wait().unwrap() {
                let mut text = String::new();
                std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut text).unwrap();
                panic!("up ended, {status}: {text}");
            }
            let text = fs::read(&file).map_err(|error| error.to_string())?;
            serde_json::from_slice(&text).map_err(|error| error.to_string())
        })
        .await;
        Self { child, ready }
    }

    fn pid(&self, name: &str) -> u32 {
        self.ready["pids"][name]
            .as_u64()
            .expect(name)
            .try_into()
            .unwrap()
    }

    fn path(&self, kind: &str, name: &str) -> &str {
        self.ready[kind][name].as_str().expect(name)
    }

    /// Starts one again by its program and configuration, as anybody could.
    fn again(&self, name: &str) -> Child {
        let flag = if name == "nats" { "-c" } else { "--config" };
        Command::new(self.path("bin", name))
            .arg(flag)
            .arg(self.path("config", name))
            .env_clear()
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn stop(mut self, signal: Signal) -> Said {
        kill(self.child.id(), signal);
        let child = std::mem::replace(&mut self.child, sleeper());
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        Said::of(&soon("the end of up", ended).await.unwrap())
    }
}

/// A child that is over at once, to stand where another was.
fn sleeper() -> Child {
    Command::new("true").spawn().unwrap()
}

impl Drop for Up {
    fn drop(&mut self) {
        // A failed test leaves nothing behind either.
        kill(self.child.id(), Signal::TERM);
        drop(self.child.wait());
    }
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, signal).ok();
}

/// Whether a process runs; one that ended and waits for its parent doesn't.
fn lives(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

async fn context(dir: &Path, line: &str) -> Said {
    let mut command = virtbus("", line);
    command.env("VIRTBUS_CONTEXT", dir);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap());
    Said::of(&soon("the end of the program", done).await.unwrap())
}

#[tokio::test]
async fn everything_comes_up_survives_a_restart_by_hand_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path();
    let up = Up::start(dir, "").await;
    for name in NAMES {
        assert!(lives(up.pid(name)), "{name}");
        for kind in ["bin", "config"] {
            assert!(
                Path::new(up.path(kind, name)).is_absolute(),
                "{kind} {name}"
            );
        }
    }
    for field in ["http", "transfer", "token", "hypervisor", "pool_root"] {
        assert!(
            up.ready[field]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{field}"
        );
    }
    assert_eq!(
        (
            &up.ready["pool"],
            up.ready["creds"].as_object().unwrap().len()
        ),
        (&"default".into(), 0)
    );
    context(dir, "submit ping --id before --wait")
        .await
        .ended(0);

    // A service that dies is left dead; another one by hand takes its place.
    let (killed, core) = (up.pid("storage"), up.pid("core"));
    kill(killed, Signal::KILL);
    until(
        "its end",
        async || if lives(killed) { Err(()) } else { Ok(()) },
    )
    .await;
    let mut storage = up.again("storage");
    context(dir, "submit ping --id after --wait").await.ended(0);
    assert!(lives(core) && lives(storage.id()));

    let taken = command(dir, "").output().unwrap();
    let taken = Said::of(&taken).ended(4);
    assert!(taken.err.contains("another `virtbus up`"), "{taken:?}");

    let ready = up.ready.clone();
    let pids: Vec<u32> = NAMES.map(|name| up.pid(name)).to_vec();
    let said = up.stop(Signal::TERM).await.ended(0);
    assert!(said.err.contains("storage (process"), "{said:?}");
    for pid in pids.iter().chain([&storage.id()]) {
        assert!(!lives(*pid), "{pid} of {ready}");
    }
    assert_eq!(
        storage.wait().unwrap().code(),
        Some(0),
        "asked to stop, not killed"
    );
    assert!(!dir.join("ready.json").exists() && !dir.join("told.json").exists());

    let up = Up::start(dir, "").await;
    for field in ["nats", "http", "transfer"] {
        assert_eq!(up.ready[field], ready[field], "{field}");
    }
    let shown = context(dir, "show before --json").await.ended(0).json();
    assert_eq!(shown["state"], "succeeded");
    up.stop(Signal::INT).await.ended(0);
}

#[tokio::test]
async fn what_a_killed_one_left_is_taken_down_by_the_next() {
    let folder = TempDir::new().unwrap();
    let first = Up::start(folder.path(), "").await;
    let left: Vec<u32> = NAMES.map(|name| first.pid(name)).to_vec();
    first.stop(Signal::KILL).await;
    assert!(left.iter().all(|pid| lives(*pid)));
    let second = Up::start(folder.path(), "").await;
    assert!(!left.iter().any(|pid| lives(*pid)));
    second.stop(Signal::TERM).await.ended(0);
}

#[tokio::test]
async fn secure_asks_everybody_for_a_key_of_a_role() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path();
    let up = Up::start(dir, "--secure").await;
    for role in ["publisher", "storage", "core", "admin", "observer"] {
        let path = up.path("creds", role);
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
    let url = up.ready["nats"].as_str().unwrap();
    let stranger = crate::program::run(url, "list").await.ended(6);
    assert!(stranger.err.contains("authorization"), "{stranger:?}");
    context(dir, "submit ping --wait").await.ended(0);
    context(dir, "doctor").await.ended(0);
    let token = context(dir, "token --user alice --json")
        .await
        .ended(0)
        .json();
    assert_eq!(token["claims"]["scope"], "jobs:read:own");
    up.stop(Signal::TERM).await.ended(0);
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let folder = TempDir::new().unwrap();
    let old = folder.path().join("nats-server");
    fs::write(&old, "#!/bin/sh\necho nats-server: v2.10.29\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = command(&folder.path().join("up"), "--json");
    let said = Said::of(&command.env("VIRTBUS_NATS_SERVER", &old).output().unwrap()).ended(1);
    assert!(
        said.err.contains("v2.10.29") && said.err.contains("2.12"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_service_that_does_not_come_up_is_told_with_its_log_and_the_rest_is_stopped() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path();
    // A secret that every service refuses; whose end is seen first is chance.
    fs::write(dir.join("token.key"), "short").unwrap();
    let said = Said::of(&command(dir, "").output().unwrap()).ended(1);
    assert!(said.err.contains(" ended with exit code 64"), "{said:?}");
    assert!(said.err.contains("auth.key_file"), "{said:?}");
    let ports: Value = serde_json::from_slice(&fs::read(dir.join("ports.json")).unwrap()).unwrap();
    for name in NAMES {
        let port = ports[name].as_u64().unwrap().try_into().unwrap();
        TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
