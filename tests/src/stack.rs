//! The whole system on this machine, as `virtbus up` runs it.
//!
//! Each stack has a folder and free ports of its own. It ends with its owner, or, when many tests
//! share one, with the test process, however that ends: a warden waits for the end of a pipe.

use crate::jobs::Bus;
use crate::process::{self, Signal};
use crate::ready::{self, Ready, Service, virtbus};
use crate::recorder::{self, Recorder};
use crate::warden::Warden;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use virtbus_testbed::{port, server, until};

/// How long all of it may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);
/// The end of each log that a failing test shows, in bytes.
const LOG_TAIL: usize = 12 << 10;

/// What stands in a log when a service met a bug of its own.
const PANIC: &str = "panicked at";

/// What differs from the usual.
#[derive(Debug, Default)]
pub struct Options {
    /// Notes each word of each command line of qemu-img, in [`Stack::tool_words`].
    pub record_tools: bool,
    /// Each role logs in with a key of its own.
    pub secure: bool,
    /// Domains run, on a libvirt daemon of the stack's own; else libvirt's trial driver is taken,
    /// which is there at once.
    pub domains: bool,
}

/// A running system.
pub struct Stack {
    /// Where everything is.
    pub ready: Ready,
    up: Mutex<Child>,
    warden: Warden,
    again: Mutex<Again>,
    recorder: Option<Recorder>,
    folder: PathBuf,
    temp: Option<TempDir>,
}

/// What was started again, or besides.
#[derive(Default)]
struct Again {
    pids: BTreeMap<Service, u32>,
    children: Vec<Child>,
}

impl Stack {
    /// One for this test alone; ends with it, and leaves nothing behind.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// The same with differences.
    pub async fn start_with(options: Options) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().to_owned();
        Self::start_in(folder, Some(temp), options).await
    }

    /// One for all tests that don't disturb each other; ends with the test process.
    pub async fn shared(cell: &'static OnceCell<Self>, options: Options) -> Shared {
        let start = async || {
            let folder = tempfile::tempdir().unwrap().keep();
            Self::start_in(folder, None, options).await
        };
        Shared(cell.get_or_init(start).await)
    }

    async fn start_in(folder: PathBuf, temp: Option<TempDir>, options: Options) -> Self {
        let folder = folder.canonicalize().unwrap();
        let ready_file = folder.join("ready.json");
        let log = File::create(folder.join("up.log")).unwrap();
        port::choose_for_up(&folder.join("up"));
        let mut command = Command::new(virtbus());
        command.arg("up").arg("--dir").arg(folder.join("up"));
        command.arg("--ready-file").arg(&ready_file);
        if !options.domains {
            command.args(["--hypervisor-uri", "test:///default"]);
        }
        if options.secure {
            command.arg("--secure");
        }
        let server = PathBuf::from(server::program());
        if server.is_absolute() {
            command.env("VIRTBUS_NATS_SERVER", server);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut up = command.spawn().unwrap();
        let warden = Warden::over(up.id(), &folder);
        let read = async || ready::read(&mut up, &ready_file);
        let ready = until("the ready file", read).await;
        let mut stack = Self {
            ready,
            up: Mutex::new(up),
            warden,
            again: Mutex::default(),
            recorder: None,
            folder,
            temp,
        };
        if options.record_tools {
            let recorder = Recorder::new(&stack.folder);
            stack.with_qemu_img(&recorder.script()).await;
            stack.recorder = Some(recorder);
        }
        stack
    }

    /// Starts the storage service anew with a script as qemu-img, which runs locked in as the real
    /// one does. `REAL` in it is the real one.
    pub async fn with_qemu_img(&self, script: &str) {
        let tools = self.folder.join("tools");
        recorder::write_script(&tools, script);
        self.stop(Service::Storage).await;
        let file = &self.ready.config[&Service::Storage];
        // Lists can't be set in the environment.
        let also_run = format!(
            "\n[cage]\nalso_run = ['/bin', '/usr/bin', '{}']\n",
            self.folder.display()
        );
        let text = fs::read_to_string(file).unwrap() + &also_run;
        fs::write(file, text).unwrap();
        let tools = tools.to_str().unwrap();
        self.start_again_with(Service::Storage, &[("VIRTBUS__TOOLS_DIR", tools)]);
    }

    /// Stops all of it, and starts it again in the same folder.
    pub async fn restart(mut self) -> Self {
        let (temp, folder) = (self.temp.take(), self.folder.clone());
        drop(self);
        Self::start_in(folder, temp, Options::default()).await
    }

    /// A connection of this test's own.
    pub async fn bus(&self) -> Bus {
        Bus::connect(&self.ready.nats).await
    }

    /// The ready file, as the command line takes it with `--context`.
    pub fn ready_file(&self) -> PathBuf {
        self.folder.join("ready.json")
    }

    /// A folder for this test's own files, beside the pool.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process that serves now.
    pub fn pid(&self, service: Service) -> u32 {
        let again = self.again();
        let first = || self.ready.pids[&service];
        again.pids.get(&service).copied().unwrap_or_else(first)
    }

    fn again(&self) -> MutexGuard<'_, Again> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL; returns when it's gone.
    pub async fn kill(&self, service: Service) {
        self.end(service, Signal::KILL).await;
    }

    /// SIGTERM; returns when it's gone.
    pub async fn stop(&self, service: Service) {
        self.end(service, Signal::TERM).await;
    }

    async fn end(&self, service: Service, how: Signal) {
        let pid = self.pid(service);
        process::signal(pid, how);
        let gone = async || {
            if process::is_alive(pid) {
                Err(pid)
            } else {
                Ok(())
            }
        };
        until(&format!("{service} is gone"), gone).await;
    }

    /// SIGSTOP.
    pub fn freeze(&self, service: Service) {
        process::signal(self.pid(service), Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self, service: Service) {
        process::signal(self.pid(service), Signal::CONT);
    }

    /// Starts a service that was ended, by nothing but its program and configuration.
    pub fn start_again(&self, service: Service) {
        self.start_again_with(service, &[]);
    }

    /// The same with settings in the environment, such as `VIRTBUS__WORK__SLOTS`.
    pub fn start_again_with(&self, service: Service, settings: &[(&str, &str)]) {
        let pid = self.start_besides(service, settings);
        self.again().pids.insert(service, pid);
    }

    /// Starts one more process of a service, and returns its id.
    pub fn start_besides(&self, service: Service, settings: &[(&str, &str)]) -> u32 {
        let number = self.again().children.len();
        let log = self.folder.join(format!("{service}-again-{number}.log"));
        let log = File::create(log).unwrap();
        let flag = if service == Service::Nats {
            "-c"
        } else {
            "--config"
        };
        let child = Command::new(&self.ready.bin[&service])
            .arg(flag)
            .arg(&self.ready.config[&service])
            .envs(settings.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.again().children.push(child);
        self.warden.also(pid);
        pid
    }

    /// How a process that was started here ends.
    ///
    /// # Panics
    /// When it wasn't started here, or goes on.
    pub async fn exit_code(&self, pid: u32) -> Option<i32> {
        let ended = async || {
            let mut again = self.again();
            let child = again.children.iter_mut().find(|child| child.id() == pid);
            let status = child.expect("a process started here").try_wait().unwrap();
            status.ok_or("it runs")
        };
        until("its end", ended).await.code()
    }

    /// The services whose process, the last one that was started here, is gone.
    pub fn dead(&self) -> Vec<Service> {
        let services = self.ready.pids.keys().copied();
        services
            .filter(|service| !process::is_alive(self.pid(*service)))
            .collect()
    }

    /// The words that reached qemu-img.
    ///
    /// # Panics
    /// Where they aren't recorded.
    pub fn tool_words(&self) -> Vec<String> {
        self.recorder.as_ref().expect("words are recorded").words()
    }

    /// The lines of all logs that contain a text, whatever the case.
    pub fn logged(&self, text: &str) -> Vec<String> {
        let text = text.to_lowercase();
        let mut found = Vec::new();
        for log in logs(&self.folder) {
            let log = fs::read(log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines = log
                .lines()
                .filter(|line| line.to_lowercase().contains(&text));
            found.extend(lines.map(str::to_owned));
        }
        found
    }

    fn show_logs(&self) {
        for log in logs(&self.folder) {
            let text = fs::read(&log).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(LOG_TAIL)..];
            eprintln!(
                "---- the end of {}:\n{}",
                log.display(),
                String::from_utf8_lossy(tail)
            );
        }
    }

    /// Ends all of it, and tells what is still there then.
    fn finish(&mut self) -> Vec<process::Found> {
        self.warden.leave();
        let up = self.up.get_mut().unwrap_or_else(PoisonError::into_inner);
        process::signal(up.id(), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while matches!(up.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::park_timeout(PAUSE);
        }
        drop(up.kill());
        drop(up.wait());
        let left = process::of_folder(&self.folder);
        for process in &left {
            process::signal(process.pid, Signal::KILL);
        }
        for child in &mut self.again().children {
            drop(child.kill());
            drop(child.wait());
        }
        left
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.show_logs();
        }
        let left = self.finish();
        assert!(failed || left.is_empty(), "left running: {left:#?}");
        let panics = self.logged(PANIC);
        assert!(failed || panics.is_empty(), "{panics:#?}");
    }
}

/// A stack that other tests use too.
pub struct Shared(&'static Stack);

impl Deref for Shared {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show_logs();
            return;
        }
        let panics = self.0.logged(PANIC);
        assert!(panics.is_empty(), "{panics:#?}");
    }
}

fn logs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(logs(&path));
        } else if path.extension().is_some_and(|ending| ending == "log") {
            found.push(path);
        }
    }
    found
}
