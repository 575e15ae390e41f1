//! All of virtbus on one machine: started in order, watched, stopped in reverse.
//!
//! Everything lies in one folder, which is locked while it's in use. A process that dies is left
//! dead: a test may kill one and start it again by its program and configuration.

pub(crate) mod config;
pub(crate) mod files;
mod libvirt;
mod ports;
mod process;
mod programs;
mod ready;
pub(crate) mod token;

use crate::{
    context::{READY_FILE, Ready},
    exit::{Exit, Failure},
    output::Output,
};
use config::Layout;
use libvirt::Libvirt;
use process::{Ended, Processes};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, mpsc},
};
use virtbus_bus::topology::Role;

/// One of the processes, in the order they are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Name {
    Nats,
    Core,
    Storage,
    Hypervisor,
    Feedback,
}

impl Name {
    pub(crate) const ALL: [Self; 5] = [
        Self::Nats,
        Self::Core,
        Self::Storage,
        Self::Hypervisor,
        Self::Feedback,
    ];
    pub(crate) const SERVICES: [Self; 4] =
        [Self::Core, Self::Storage, Self::Hypervisor, Self::Feedback];

    fn as_str(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Core => "core",
            Self::Storage => "storage",
            Self::Hypervisor => "hypervisor",
            Self::Feedback => "feedback",
        }
    }

    /// What stands before the configuration file on its command line.
    fn config_flag(self) -> &'static str {
        match self {
            Self::Nats => "-c",
            Self::Core | Self::Storage | Self::Hypervisor | Self::Feedback => "--config",
        }
    }

    /// Whether it takes jobs, and has a loop to set up.
    fn takes_jobs(self) -> bool {
        match self {
            Self::Nats | Self::Core => false,
            Self::Storage | Self::Hypervisor | Self::Feedback => true,
        }
    }

    /// With whose key it connects.
    fn role(self) -> Option<Role> {
        match self {
            Self::Nats => None,
            Self::Core => Some(Role::Core),
            Self::Storage => Some(Role::Storage),
            Self::Hypervisor => Some(Role::Hypervisor),
            Self::Feedback => Some(Role::Feedback),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) dir: PathBuf,
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) hypervisor_uri: Option<String>,
    pub(crate) secure: bool,
}

/// Brings all up, stays until it's told to stop, and leaves no process behind.
///
/// # Errors
/// When something doesn't come up; what did is stopped again.
pub(crate) async fn run(options: Options, output: Output) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let dir = absolute(&options.dir)?;
    let _lock = lock(&dir)?;
    check_ready_file(options.ready_file.as_deref())?;
    let mut ready_files = vec![dir.join(READY_FILE)];
    ready_files.extend(options.ready_file.clone());
    for file in &ready_files {
        files::remove(file);
    }
    let programs = programs::find().await?;
    let layout = lay_out(dir, &options)?;
    let (mut processes, mut ended) = Processes::new(layout, programs);
    // What an earlier one that was killed has left would hold the ports and the store.
    processes.stop_all(std::future::pending).await;
    let libvirt = Libvirt::of(processes.layout());
    libvirt.stop().await;
    let ports = ports::choose(&processes.layout().dir.join("ports.json"))?;
    processes.layout_mut().ports = ports;
    processes.layout().write()?;

    let is_uri_fixed = options.hypervisor_uri.is_some();
    let outcome = tokio::select! {
        outcome = bring_up(&mut processes, &mut ended, &libvirt, is_uri_fixed, &ready_files) => outcome.map(Some),
        () = signals.next() => Ok(None),
    };
    if let Ok(Some(ready)) = &outcome {
        if output.json {
            output.value(ready)?;
        } else {
            ready::greet(ready, processes.layout(), output)?;
        }
        stay(&processes, &mut ended, &mut signals).await;
    }
    for file in &ready_files {
        files::remove(file);
    }
    if !output.json {
        eprintln!("stopping");
    }
    let signals = Mutex::new(signals);
    processes
        .stop_all(async || signals.lock().await.next().await)
        .await;
    libvirt.stop().await;
    outcome.map(|_| Exit::Done)
}

/// Starts a libvirt daemon, unless another one was named, and everything else.
async fn bring_up(
    processes: &mut Processes,
    ended: &mut mpsc::Receiver<Ended>,
    libvirt: &Libvirt,
    is_uri_fixed: bool,
    ready_files: &[PathBuf],
) -> Result<Ready, Failure> {
    if !is_uri_fixed && libvirt.start().await? {
        processes.layout_mut().libvirt_uri = libvirt.uri();
        processes.layout().write()?;
    }
    ready::bring_up(processes, ended, is_uri_fixed, ready_files).await
}

/// Tells who died, until it's time to stop.
async fn stay(processes: &Processes, ended: &mut mpsc::Receiver<Ended>, signals: &mut Signals) {
    loop {
        tokio::select! {
            () = signals.next() => return,
            Some((name, pid, status)) = ended.recv() => {
                let log = processes.layout().log(name);
                eprintln!("{name} (process {pid}) ended, {status}: {}", log.display());
            }
        }
    }
}

fn lay_out(dir: PathBuf, options: &Options) -> Result<Layout, Failure> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let creds = if options.secure {
        config::ensure_keys(&dir)?
    } else {
        BTreeMap::new()
    };
    let layout = Layout {
        ports: BTreeMap::new(),
        hypervisor: config::hypervisor_name(host.trim()),
        libvirt_uri: options
            .hypervisor_uri
            .clone()
            .unwrap_or_else(|| ready::LIBVIRT_URI.to_owned()),
        creds,
        dir,
    };
    token::ensure(&layout.token_key())?;
    Ok(layout)
}

fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    files::folder(dir)?;
    let shown = dir.display();
    let unusable = |error| Failure::failed(format!("can't use {shown}: {error}"));
    let dir = dir.canonicalize().map_err(unusable)?;
    // It goes into configuration files, which are text.
    if dir.to_str().is_none() {
        return Err(Failure::usage(format!("can't use {shown}: it isn't UTF-8")));
    }
    Ok(dir)
}

/// Better told now than when all is up.
fn check_ready_file(file: Option<&Path>) -> Result<(), Failure> {
    let folder = file.and_then(Path::parent);
    match folder.filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => {
            let shown = folder.display();
            Err(Failure::usage(format!("there is no folder {shown}")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Two in one folder would take each other's processes down.
fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let unusable = |error| Failure::failed(format!("can't use {}: {error}", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::new(
            Exit::Conflict,
            format!("another `virtbus up` runs in {}", dir.display()),
        )),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// What ends `up`.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
