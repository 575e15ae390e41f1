//! Workers that are killed for good: each is a process of its own, which runs one claim and gets
//! SIGKILL at a step. Whatever a dead process leaves is left, down to its tools.

use super::{
    claims::drive,
    site::{STEPS, Site, assignment, owner, settings},
};
use crate::{store::Store, task::Step};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
};
use virtbus_bus::{Bus, ConnectConfig};
use virtbus_worker::{Stop, process};

/// What the process is told by its environment.
const FATE: &str = "VIRTBUS_TEST_FATE";
/// The test that the process runs.
const WORKER: &str = "tests::killed::a_worker_that_is_to_be_killed";
/// What the kernel says of a process that was killed.
const SIGKILL: i32 = 9;

/// When a worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum At {
    /// When this step is done, counted from 0.
    After(usize),
    /// When this step tells of its progress for the first time.
    Within(usize),
}

impl At {
    /// All there is, in its order.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..STEPS.len()).flat_map(|step| [Self::Within(step), Self::After(step)])
    }
}

/// The claim of a process, and its end.
#[derive(Debug, Serialize, Deserialize)]
struct Fate {
    url: String,
    dir: PathBuf,
    envelope: Value,
    /// None if it's killed from outside.
    at: Option<At>,
}

/// Where a claim is.
#[derive(Debug, Default)]
pub(super) struct Moments(Mutex<usize>);

impl Moments {
    /// It tells of its progress.
    pub(super) fn within(&self) -> At {
        At::Within(*self.0.lock().unwrap())
    }

    /// It has done a step.
    pub(super) fn after(&self, step: Step) -> At {
        let number = STEPS.iter().position(|other| *other == step).unwrap();
        *self.0.lock().unwrap() = number + 1;
        At::After(number)
    }
}

impl Site {
    /// Runs the first claim of a job in a process that dies then. Whether it came that far: not
    /// every step has progress to tell.
    pub(super) async fn is_killed(&self, envelope: Value, at: At) -> bool {
        let mut worker = self.worker(envelope, Some(at)).await;
        let ended = tokio::task::spawn_blocking(move || worker.wait());
        was_killed(ended.await.unwrap().unwrap())
    }

    /// Runs the first claim of a job in a process of its own.
    pub(super) async fn worker(&self, envelope: Value, at: Option<At>) -> Child {
        let fate = Fate {
            url: self.url(),
            dir: self.dir.path().to_owned(),
            envelope,
            at,
        };
        let text = serde_json::to_string(&fate).unwrap();
        let alone = process::no_starts().await;
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", WORKER])
            .env(FATE, text)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        drop(alone);
        child.unwrap()
    }
}

/// Whether a worker was killed; else it has done its job.
pub(super) fn was_killed(ended: ExitStatus) -> bool {
    match ended.signal() {
        Some(signal) => assert_eq!(signal, SIGKILL),
        None => assert!(ended.success(), "{ended}"),
    }
    ended.signal().is_some()
}

/// Does nothing but in a process that [`Site::is_killed`] has started.
#[tokio::test]
async fn a_worker_that_is_to_be_killed() {
    let Ok(text) = std::env::var(FATE) else {
        return;
    };
    let fate: Fate = serde_json::from_str(&text).unwrap();
    let store = store(&fate.url, &fate.dir).await;
    let job = assignment(&owner("st-dead"), fate.envelope, 1);
    let moments = Moments::default();
    let seen = |now| {
        if Some(now) == fate.at {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
    };
    let progress = |_| seen(moments.within());
    let reached = |step| {
        seen(moments.after(step));
        Ok::<(), Stop>(())
    };
    let never = process::Stop::new();
    drive(&store, &job, &never, &progress, &reached)
        .await
        .unwrap();
}

async fn store(url: &str, dir: &Path) -> Store {
    let connect = ConnectConfig {
        url: url.to_owned(),
        ..ConnectConfig::default()
    };
    let bus = Bus::connect(&connect, "test").await.unwrap();
    Store::new(&bus, &settings(dir, |_| {}))
}
