//! A libvirt daemon of our own: a session daemon with folders of its own, so that it's nobody
//! else's, and needs neither root nor systemd.
//!
//! For root, libvirt has no session daemon: then it runs in a user name space, where the same
//! user has another number, and everything it makes is root's outside.

use super::{config::Layout, files, process};
use crate::exit::Failure;
use rustix::process::{Signal, getuid};
use std::{
    fs::{self, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, time::Instant};

/// How long the daemon may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long guests, and then the daemon, may take to end by themselves.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// What the daemon starts, and itself.
const PROGRAMS: [&str; 4] = ["qemu-system-", "swtpm", "virtlogd", "libvirtd"];
/// Where they are, besides on the PATH.
const USUAL: [&str; 2] = ["/usr/sbin", "/usr/bin"];

/// The daemon of one folder.
#[derive(Debug, Clone)]
pub(crate) struct Libvirt {
    /// Its files.
    folder: PathBuf,
    /// A short way there: the names of sockets may have no more than 107 bytes.
    link: PathBuf,
    log: PathBuf,
}

impl Libvirt {
    /// The daemon of a layout; nothing is started.
    pub(crate) fn of(layout: &Layout) -> Self {
        let mut hasher = DefaultHasher::new();
        layout.dir.hash(&mut hasher);
        let name = format!(
            "virtbus-{}-{:012x}",
            getuid().as_raw(),
            hasher.finish() >> 16
        );
        Self {
            folder: layout.dir.join("libvirt"),
            link: std::env::temp_dir().join(name),
            log: layout.dir.join("log").join("libvirt.log"),
        }
    }

    /// Its address.
    pub(crate) fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}", self.socket().display())
    }

    /// Starts it, if libvirt and QEMU are installed; false when they aren't.
    ///
    /// # Errors
    /// When its files can't be written.
    pub(crate) async fn start(&self) -> Result<bool, Failure> {
        let (Some(libvirtd), Some(_)) = (find("libvirtd"), find("qemu-system-x86_64")) else {
            return Ok(false);
        };
        for name in ["home", "run", "config/libvirt", "cache", "data"] {
            files::folder(&self.folder.join(name))?;
        }
        // Without a second daemon that writes logs.
        let settings = self.folder.join("config/libvirt/qemu.conf");
        files::write(&settings, "stdio_handler = \"file\"")?;
        fs::remove_file(&self.link).ok();
        symlink(&self.folder, &self.link)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = if getuid().is_root() {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=1000", "--map-group=1000"]);
            command.arg(libvirtd);
            command
        } else {
            Command::new(libvirtd)
        };
        for (name, below) in [
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
        ] {
            command.env(name, self.link.join(below));
        }
        command
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let Ok(mut child) = command.spawn() else {
            return Ok(false);
        };
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(self.socket()).is_err() {
            if Instant::now() >= deadline || !matches!(child.try_wait(), Ok(None)) {
                self.stop().await;
                return Ok(false);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        // Reaped when it ends.
        tokio::spawn(async move { child.wait().await });
        Ok(true)
    }

    /// Ends the guests, then the daemon, whoever started it.
    pub(crate) async fn stop(&self) {
        for program in PROGRAMS {
            for with in [Signal::TERM, Signal::KILL] {
                for pid in self.members(program) {
                    process::signal(pid, with);
                }
                let deadline = Instant::now() + STOP_LIMIT;
                while !self.members(program).is_empty() && Instant::now() < deadline {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        }
        fs::remove_file(&self.link).ok();
    }

    /// The processes of a program that have to do with our folder.
    fn members(&self, program: &str) -> Vec<u32> {
        let Some(link) = self.link.to_str() else {
            return Vec::new();
        };
        let all = process::pids().into_iter();
        let ours = all.filter(|pid| {
            let words = process::command_line(*pid);
            let name = words.first().map(Path::new).and_then(Path::file_name);
            let is_program = name.is_some_and(|n| n.to_string_lossy().starts_with(program));
            is_program
                && (words.iter().any(|word| word.contains(link)) || has_in_environment(*pid, link))
        });
        ours.collect()
    }

    fn socket(&self) -> PathBuf {
        self.link.join("run/libvirt/libvirt-sock")
    }
}

fn has_in_environment(pid: u32, text: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut windows = environment.windows(text.len());
    windows.any(|window| window == text.as_bytes())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(USUAL.map(PathBuf::from));
    let mut programs = folders.map(|folder| folder.join(program));
    programs.find(|path| path.is_file())
}
