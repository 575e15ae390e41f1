//! All of virtbus, started for one part of the bench and ended with it.

use crate::error::{Failure, failure};
use async_nats::{Client, ConnectOptions, jetstream};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use virtbus_testbed::{server::connect, until};

/// How long everything may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Lines shown of each log after a failure.
const LOG_LINES: usize = 10;

/// What `virtbus up` says when all is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    nats: String,
    http: String,
    token: String,
    hypervisor: String,
    pool_root: PathBuf,
    pids: BTreeMap<String, i32>,
    config: BTreeMap<String, PathBuf>,
    bin: BTreeMap<String, PathBuf>,
}

/// A running virtbus.
#[derive(Debug)]
pub(crate) struct Site {
    up: Child,
    ready: Ready,
    folder: TempDir,
    programs: PathBuf,
    client: Client,
    /// Services that were started again here.
    again: BTreeMap<String, Child>,
}

impl Site {
    /// Starts all, in a new folder beside the programs.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let programs = this
            .parent()
            .ok_or_else(|| failure("no folder"))?
            .to_owned();
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(programs.parent().unwrap_or(&programs))?;
        let ready_file = folder.path().join("ready.json");
        let log = File::create(folder.path().join("up.out"))?;
        let mut up = Command::new(programs.join("virtbus"))
            .arg("up")
            .arg("--dir")
            .arg(folder.path().join("up"))
            .arg("--ready-file")
            .arg(&ready_file)
            .args(["--hypervisor-uri", "test:///default"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| failure(format!("virtbus could not be started: {error}")))?;
        let text = until("virtbus up", async || {
            if let Ok(Some(status)) = up.try_wait() {
                let said = std::fs::read_to_string(folder.path().join("up.out"));
                let said = said.unwrap_or_default();
                return Ok(Err(failure(format!("virtbus up ended, {status}: {said}"))));
            }
            std::fs::read_to_string(&ready_file).map(Ok)
        });
        let ready: Ready = serde_json::from_str(&text.await?)?;
        let client = connect(&ready.nats, ConnectOptions::new()).await;
        Ok(Self {
            up,
            ready,
            folder,
            programs,
            client,
            again: BTreeMap::new(),
        })
    }

    /// A connection for whatever publishes and looks.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// JetStream for [`Self::client`].
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
    }

    /// One more connection, as another process would have.
    pub(crate) async fn another_client(&self) -> Client {
        connect(&self.ready.nats, ConnectOptions::new()).await
    }

    /// The folder for files of this run.
    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Where browsers go.
    pub(crate) fn http(&self) -> &str {
        &self.ready.http
    }

    /// The token of somebody who sees everything.
    pub(crate) fn token(&self) -> &str {
        &self.ready.token
    }

    /// This host's name among the hypervisors.
    pub(crate) fn hypervisor(&self) -> &str {
        &self.ready.hypervisor
    }

    /// Where the pool keeps its files.
    pub(crate) fn pool_root(&self) -> &Path {
        &self.ready.pool_root
    }

    /// A program of ours.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The process of a service.
    pub(crate) fn pid(&self, service: &str) -> Result<i32, Failure> {
        let again = self.again.get(service).and_then(Child::id);
        match again.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => Ok(pid),
            None => Ok(*of(&self.ready.pids, service)?),
        }
    }

    /// Stops a service and waits for its end.
    pub(crate) async fn stop(&mut self, service: &str) -> Result<(), Failure> {
        self.signal(service, Signal::TERM).await
    }

    /// Kills a service, as the kernel does when memory runs out.
    pub(crate) async fn kill(&mut self, service: &str) -> Result<(), Failure> {
        self.signal(service, Signal::KILL).await
    }

    async fn signal(&mut self, service: &str, signal: Signal) -> Result<(), Failure> {
        let gone = || failure(format!("{service} doesn't run"));
        let pid = Pid::from_raw(self.pid(service)?).ok_or_else(gone)?;
        kill_process(pid, signal)?;
        if let Some(mut child) = self.again.remove(service) {
            timeout(STOP_LIMIT, child.wait()).await??;
        } else {
            // `up` is its parent, and takes notice of the end.
            until(service, async || match test_kill_process(pid) {
                Ok(()) => Err("it still runs"),
                Err(_) => Ok(()),
            })
            .await;
            self.ready.pids.remove(service);
        }
        Ok(())
    }

    /// Starts a service that was stopped, with more settings in its environment.
    pub(crate) fn start_again(
        &mut self,
        service: &str,
        settings: &[(&str, String)],
    ) -> Result<(), Failure> {
        self.start_as(service, service, settings)
    }

    /// Starts one more process of a service, known here by this name.
    pub(crate) fn start_as(
        &mut self,
        name: &str,
        service: &str,
        settings: &[(&str, String)],
    ) -> Result<(), Failure> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir().join(format!("{name}.log")))?;
        let child = Command::new(of(&self.ready.bin, service)?)
            .arg("--config")
            .arg(of(&self.ready.config, service)?)
            .envs(settings.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.again.insert(name.to_owned(), child);
        Ok(())
    }

    /// What a service has in memory, in MiB.
    pub(crate) fn memory(&self, service: &str) -> Result<f64, Failure> {
        const KIB_PER_MIB: f64 = 1024.0;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid(service)?))?;
        let mut lines = status.lines();
        let text = lines.find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = text.and_then(|text| text.trim().strip_suffix(" kB"));
        let kib = kib.ok_or_else(|| failure(format!("no memory of {service}")))?;
        Ok(kib.trim().parse::<f64>()? / KIB_PER_MIB)
    }

    fn show_logs(&self) {
        for folder in [self.dir().to_owned(), self.dir().join("up/log")] {
            let entries = std::fs::read_dir(folder).into_iter().flatten();
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
            for path in paths.filter(is_log) {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
                let name = path.file_name().unwrap_or_default().display();
                eprintln!("---- {name}\n{}", last.join("\n"));
            }
        }
    }

    /// Stops all and removes the folder; after a failure it tells first what the logs end with.
    pub(crate) async fn end(mut self, failed: bool) -> Result<(), Failure> {
        if failed {
            self.show_logs();
        }
        let again: Vec<String> = self.again.keys().cloned().collect();
        for service in again {
            self.stop(&service).await?;
        }
        let up = self.up.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = up.and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        timeout(STOP_LIMIT, self.up.wait()).await??;
        Ok(self.folder.close()?)
    }
}

fn of<'a, T>(map: &'a BTreeMap<String, T>, service: &str) -> Result<&'a T, Failure> {
    let missing = || failure(format!("virtbus up says nothing of {service}"));
    map.get(service).ok_or_else(missing)
}
