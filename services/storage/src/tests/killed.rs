//! Workers that are processes of their own: each runs one claim, and at a step gets SIGKILL, or
//! SIGSTOP. Whatever a dead process leaves is left, down to its tools.

use super::{
    claims::{abandon, drive},
    site::{STEPS, Site, assignment, failed, owner, settings},
};
use crate::{store::Store, task::Step};
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    task::block_in_place,
};
use virtbus_bus::{Bus, ConnectConfig, Jobs};
use virtbus_wire::{Code, JobError};
use virtbus_worker::{Assignment, Done, Stop, process};

/// What the process is told by its environment.
const FATE: &str = "VIRTBUS_TEST_FATE";
/// The test that the process runs.
const WORKER: &str = "tests::killed::a_worker_that_is_to_be_killed";
/// What the kernel says of a process that was killed.
const SIGKILL: i32 = 9;
/// How long the tool of a killed worker may take to be gone.
const LETS_GO: Duration = Duration::from_secs(60);
/// Where a process says, below its folder, what its claim failed with.
const FAILED: &str = "failed.json";

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
    what: What,
}

/// What befalls the claim of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    /// Nothing: it's killed from outside.
    Nothing,
    /// SIGKILL.
    Killed(At),
    /// SIGSTOP. Whether it still has the job when it's awake again, the job's record says.
    Frozen(At),
    /// The system lets no file get longer than this, in bytes.
    Cramped(u64),
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
        let mut worker = self.worker(envelope, What::Killed(at)).await;
        let ended = tokio::task::spawn_blocking(move || worker.wait());
        was_killed(ended.await.unwrap().unwrap())
    }

    /// Runs the next claim of a job whose worker was killed. That comes a lease later, when the dead
    /// one's tool has let go of the disk: here it's claimed anew until it has.
    pub(super) async fn run_after(&self, claim: &Assignment) -> Result<Done, Stop> {
        let began = Instant::now();
        loop {
            match self.run(claim).await {
                Err(Stop::Failed(error))
                    if error.code == Code::DiskBusy && began.elapsed() < LETS_GO => {}
                ended => return ended,
            }
        }
    }

    /// Runs the first claim of a job in a process that can't write files longer than this, in
    /// bytes; what it failed with, once it has put back what it began.
    pub(super) async fn is_cramped(&self, envelope: Value, bytes: u64) -> JobError {
        let mut worker = self.worker(envelope, What::Cramped(bytes)).await;
        let ended = tokio::task::spawn_blocking(move || worker.wait());
        assert!(!was_killed(ended.await.unwrap().unwrap()));
        let said = fs::read(self.dir.path().join(FAILED)).unwrap();
        serde_json::from_slice(&said).unwrap()
    }

    /// Runs the first claim of a job in a process of its own.
    pub(super) async fn worker(&self, envelope: Value, what: What) -> Child {
        let fate = Fate {
            url: self.url(),
            dir: self.dir.path().to_owned(),
            envelope,
            what,
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

/// Does nothing but in a process that [`Site::worker`] has started.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_to_be_killed() {
    let Ok(text) = std::env::var(FATE) else {
        return;
    };
    let fate: Fate = serde_json::from_str(&text).unwrap();
    let (store, jobs) = means(&fate.url, &fate.dir).await;
    let job = assignment(&owner("st-dead"), fate.envelope, 1);
    match fate.what {
        What::Nothing => runs(&store, &job, &|_| {}, &|| Ok(())).await.unwrap(),
        What::Killed(at) => {
            let killed = |now| {
                if now == at {
                    kill_process(getpid(), Signal::KILL).unwrap();
                }
            };
            runs(&store, &job, &killed, &|| Ok(())).await.unwrap();
        }
        What::Frozen(at) => {
            let woken = signal(SignalKind::from_raw(Signal::CONT.as_raw())).unwrap();
            let woken = Mutex::new(woken);
            let frozen = |now| {
                if now == at {
                    kill_process(getpid(), Signal::STOP).unwrap();
                    // Another thread may have been chosen to see to the signal, later.
                    let mut woken = woken.lock().unwrap();
                    block_in_place(|| Handle::current().block_on(woken.recv())).unwrap();
                }
            };
            let entry = jobs.get_latest(&job.id).await.unwrap().unwrap();
            // The compare-and-set on the job's record.
            let fence = || {
                let written = jobs.write(&entry.value, entry.revision);
                let written = block_in_place(|| Handle::current().block_on(written));
                written.map(|_| ()).map_err(|_| Stop::Lost)
            };
            // Who lost its claim takes nothing back: it would be its successor's.
            runs(&store, &job, &frozen, &fence).await.ok();
        }
        What::Cramped(bytes) => {
            // Else it would be the end of the process.
            let _over = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap();
            let most = Some(bytes);
            let limit = Rlimit {
                current: most,
                maximum: most,
            };
            setrlimit(Resource::Fsize, limit).unwrap();
            let error = failed(runs(&store, &job, &|_| {}, &|| Ok(())).await);
            abandon(&store, &job).await.unwrap();
            let said = serde_json::to_string(&error).unwrap();
            fs::write(fate.dir.join(FAILED), said).unwrap();
        }
    }
}

/// Runs a claim, of which all moments are told, and which asks for its fence before its commit.
async fn runs(
    store: &Store,
    job: &Assignment,
    seen: &(dyn Fn(At) + Send + Sync),
    fence: &(dyn Fn() -> Result<(), Stop> + Send + Sync),
) -> Result<(), Stop> {
    let moments = Moments::default();
    let progress = |_| seen(moments.within());
    let reached = |step| {
        seen(moments.after(step));
        if step == Step::Intend {
            fence()
        } else {
            Ok(())
        }
    };
    let never = process::Stop::new();
    let done = drive(store, job, &never, &progress, &reached).await;
    done.map(|_| ())
}

async fn means(url: &str, dir: &Path) -> (Store, Jobs) {
    let connect = ConnectConfig {
        url: url.to_owned(),
        ..ConnectConfig::default()
    };
    let bus = Bus::connect(&connect, "test").await.unwrap();
    let store = Store::new(&bus, &settings(dir, |_| {}));
    (store, Jobs::new(&bus, Duration::from_secs(60)))
}
