//! The processes under test: started by program and configuration alone, hurt, started again.
//!
//! Whoever hurts a process holds it until it's well again. Whatever ends by itself meanwhile is
//! started again, as a service manager would; how it ended is noted, and a defect it reports is a
//! violation.

use super::journal::Journal;
use crate::process::{self, Signal};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

/// How often is looked whether somebody ended by itself.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process may take to stop when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// The pause before a process that ended by itself is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// The exit code of a service that couldn't reach the messaging server at its start.
const EXIT_UNREACHABLE: i32 = 69;

/// What kind of process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// nats-server.
    Nats,
    /// virtbus-core.
    Core,
    /// virtbus-storage.
    Storage,
    /// virtbus-feedback.
    Feedback,
}

/// How one is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name among the processes, such as `storage-a`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The program.
    pub program: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

/// One process, through all its lives.
#[derive(Debug)]
pub struct Member {
    spec: Spec,
    life: Mutex<Life>,
}

/// The present life of a process.
#[derive(Debug)]
struct Life {
    child: Child,
}

impl Member {
    fn start(spec: Spec) -> Self {
        let child = spawn(&spec);
        let life = Mutex::new(Life { child });
        Self { spec, life }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.spec.kind
    }

    /// Holds it, to be hurt; none while somebody else does.
    pub fn hold(&self) -> Option<Patient<'_>> {
        let life = self.life.try_lock().ok()?;
        Some(Patient { member: self, life })
    }
}

/// A process that somebody hurts.
#[derive(Debug)]
pub struct Patient<'a> {
    member: &'a Member,
    life: MutexGuard<'a, Life>,
}

impl Patient<'_> {
    /// Ends it by this signal, and returns when it's gone.
    pub async fn end(&mut self, how: Signal) {
        process::signal(self.life.child.id(), how);
        let deadline = Instant::now() + STOP_LIMIT;
        while matches!(self.life.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                drop(self.life.child.kill());
            }
            sleep(LOOK).await;
        }
    }

    /// Starts it again.
    pub fn start(&mut self) {
        self.life.child = spawn(&self.member.spec);
    }

    /// SIGSTOP.
    pub fn freeze(&mut self) {
        process::signal(self.life.child.id(), Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        process::signal(self.life.child.id(), Signal::CONT);
    }
}

/// All processes.
#[derive(Debug)]
pub struct Crew {
    members: Vec<Arc<Member>>,
    journal: Arc<Journal>,
    defects: StdMutex<Vec<String>>,
}

impl Crew {
    /// Nobody yet.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self {
            members: Vec::new(),
            journal,
            defects: StdMutex::default(),
        }
    }

    /// Starts one more.
    pub fn add(&mut self, spec: Spec) {
        self.members.push(Arc::new(Member::start(spec)));
    }

    /// All of them.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Starts again whatever ended by itself, for ever.
    pub async fn care(&self) {
        loop {
            for member in &self.members {
                self.look_after(member).await;
            }
            sleep(LOOK).await;
        }
    }

    async fn look_after(&self, member: &Member) {
        let Some(mut patient) = member.hold() else {
            return;
        };
        let Ok(Some(status)) = patient.life.child.try_wait() else {
            return;
        };
        self.journal
            .note(format!("{} ended by itself: {status}", member.name()));
        if !is_excused(status) {
            let text = format!("{} ended, {status}", member.name());
            self.defects().push(text);
        }
        sleep(RESTART_PAUSE).await;
        patient.start();
    }

    fn defects(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.defects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all in reverse order of their start, and says what was wrong with any, then or before.
    pub async fn stop(&self) -> Vec<String> {
        for member in self.members.iter().rev() {
            let mut life = member.life.lock().await;
            process::signal(life.child.id(), Signal::TERM);
            let deadline = Instant::now() + STOP_LIMIT;
            let status = loop {
                match life.child.try_wait() {
                    Ok(None) if Instant::now() < deadline => sleep(LOOK).await,
                    Ok(status) => break status,
                    Err(error) => panic!("{}: {error}", member.name()),
                }
            };
            let is_well = match status {
                // nats-server ends with 1 on SIGTERM.
                Some(status) => status.success() || member.kind() == Kind::Nats,
                None => {
                    drop(life.child.kill());
                    drop(life.child.wait());
                    false
                }
            };
            if !is_well {
                let how = status.map_or_else(|| "not at all".to_owned(), |s| s.to_string());
                let text = format!("{} was asked to stop and ended: {how}", member.name());
                self.defects().push(text);
            }
        }
        std::mem::take(&mut *self.defects())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &self.members {
            if let Ok(mut life) = member.life.try_lock() {
                drop(life.child.kill());
                drop(life.child.wait());
            }
        }
    }
}

/// Whether a process may end like this by itself: it was stopped, found no server at its start, or
/// was killed by its successor because it was frozen with a disk's lock in its hand.
fn is_excused(status: ExitStatus) -> bool {
    let killed = Some(Signal::KILL.as_raw());
    status.signal() == killed || matches!(status.code(), Some(0 | EXIT_UNREACHABLE))
}

fn spawn(spec: &Spec) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&spec.log)
        .unwrap();
    let flag = match spec.kind {
        Kind::Nats => "-c",
        Kind::Core | Kind::Storage | Kind::Feedback => "--config",
    };
    let mut command = Command::new(&spec.program);
    command.arg(flag).arg(&spec.config).current_dir("/");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VIRTBUS__") {
            command.env_remove(name);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("start {}: {error}", spec.name))
}
