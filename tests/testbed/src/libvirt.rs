//! A real libvirt daemon with QEMU, one per test: a session daemon with folders of its own, so
//! that several run side by side, without root's system daemon and without systemd.
//!
//! For root, libvirt has no session daemon: then it runs in a user name space, where the same
//! user has another number, and everything it makes is root's outside.

use crate::until;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tempfile::TempDir;

/// The ports that screens get, below those that the system gives out by itself.
const PORTS: std::ops::Range<u32> = 10_000..30_000;
/// How many of them a daemon has.
const PORTS_EACH: u32 = 64;

/// A daemon, its domains and their disks; all gone when this is dropped.
#[derive(Debug)]
pub struct Libvirt {
    child: Option<Child>,
    folder: TempDir,
}

impl Libvirt {
    /// Starts one. What a first start finds out about QEMU is kept for later ones.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "home",
            "run",
            "config/libvirt",
            "cache/libvirt/qemu/cache",
            "data",
            "pool",
        ] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        for name in ["disks", "media"] {
            fs::create_dir_all(folder.path().join("pool").join(name)).unwrap();
        }
        let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/libvirt-capabilities");
        fs::create_dir_all(&known).unwrap();
        let own = folder.path().join("cache/libvirt/qemu/cache/capabilities");
        std::os::unix::fs::symlink(known.canonicalize().unwrap(), own).unwrap();
        // Without a second daemon that writes logs; and with ports of its own for screens, since
        // daemons that look for a free one at the same time find the same.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let own = std::process::id() * 4 + STARTED.fetch_add(1, Ordering::Relaxed);
        let first = PORTS.start + own * PORTS_EACH % (PORTS.end - PORTS.start);
        let settings = format!(
            "stdio_handler = \"file\"\nremote_display_port_min = {first}\n\
             remote_display_port_max = {}\n",
            first + PORTS_EACH - 1
        );
        fs::write(folder.path().join("config/libvirt/qemu.conf"), settings).unwrap();
        let mut libvirt = Self {
            child: None,
            folder,
        };
        libvirt.run().await;
        libvirt
    }

    /// Starts the daemon again after [`Libvirt::kill`].
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn run(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = if is_root() {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=1000", "--map-group=1000", "libvirtd"]);
            command
        } else {
            Command::new("libvirtd")
        };
        self.environment(&mut command);
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(
            command
                .spawn()
                .expect("libvirtd, which ./dev setup installs"),
        );
        let socket = self.socket();
        until("libvirtd", async || UnixStream::connect(&socket)).await;
    }

    /// Ends the daemon at once; its domains run on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Removes what is gone when the host was off: what the daemon knows of domains that run.
    /// After [`Libvirt::kill`], and the end of them all.
    ///
    /// # Panics
    /// When it can't be removed.
    pub fn forget(&self) {
        let run = self.folder.path().join("run");
        fs::remove_dir_all(&run).unwrap();
        fs::create_dir(run).unwrap();
    }

    /// Sends the daemon a signal, such as `STOP`.
    ///
    /// # Panics
    /// When there is no daemon.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("a daemon").id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// The address to connect to.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}", self.socket().display())
    }

    /// A folder for disks, with `disks/` and `media/` in it.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    /// What virsh says.
    ///
    /// # Panics
    /// When it can't be run.
    pub fn virsh(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &self.uri()]).args(arguments);
        command.output().expect("virsh, which ./dev setup installs")
    }

    /// A domain's state in libvirt's words; empty when there is none.
    #[must_use]
    pub fn state(&self, domain: &str) -> String {
        let said = self.virsh(&["domstate", domain]);
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }

    /// The process ids of all domains.
    #[must_use]
    pub fn guests(&self) -> Vec<u32> {
        self.named_guests().into_values().collect()
    }

    /// The process ids of all domains, by the domains' names.
    #[must_use]
    pub fn named_guests(&self) -> BTreeMap<String, u32> {
        let folder = self.folder.path().join("run/libvirt/qemu/run");
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let files = files.map(|file| file.path());
        let pids = files.filter(|path| path.extension().is_some_and(|ending| ending == "pid"));
        let named = pids.filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            let pid = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
            (name != "driver").then_some((name, pid))
        });
        named.collect()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/libvirt/libvirt-sock")
    }

    fn environment(&self, command: &mut Command) {
        let folder = self.folder.path();
        for (name, below) in [
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
        ] {
            command.env(name, folder.join(below));
        }
        command.env_remove("DBUS_SESSION_BUS_ADDRESS");
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log"));
            eprintln!("libvirtd's log:\n{}", log.unwrap_or_default());
        }
        self.kill();
        for pid in self.guests() {
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}
