//! Groups of the kernel (cgroup v2) for tools, where the host leaves some to us.
//!
//! A tool in a group of its own is killed with all that it starts, also with what left its process
//! group; a long one gets a smaller share of processor and disk. Nothing depends on it: where there
//! is no group the tool runs without.

use rustix::{fs::getxattr, process::Pid};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What systemd writes on a folder that it leaves to a service.
const DELEGATED: &str = "user.delegate";
/// The folder in it that tools have.
const FOLDER: &str = "tools";
/// What a tool's group is called: this, the worker's process number and a count.
const PREFIX: &str = "tool-";
/// Shares of processor and disk of a tool that stands back, where a group that nobody set has 100.
const WEIGHT: &str = "20";
/// Processes and threads of one tool: far above what the largest one has.
const PROCESSES_MAX: &str = "1024";

/// A folder of cgroup v2 in which this worker makes a group for each tool. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    base: Arc<PathBuf>,
    /// Whether what is in them has a smaller share.
    is_behind: bool,
}

static COUNT: AtomicU64 = AtomicU64::new(0);

impl Groups {
    /// The folder that the host leaves to this service beside its own group, if it does: systemd's
    /// `Delegate=` with `DelegateSubgroup=`.
    #[must_use]
    pub fn find() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let unit = unit_of(&own, &mounts)?;
        let mut said = [0; 8];
        let length = getxattr(&unit, DELEGATED, &mut said).ok()?;
        (said.get(..length)? == b"1").then_some(())?;
        Self::open(&unit.join(FOLDER)).ok()
    }

    /// This folder, made if it's missing. What dead workers left in it is removed.
    ///
    /// # Errors
    /// When it isn't one of cgroup v2 in which groups can be made.
    pub fn open(base: &Path) -> io::Result<Self> {
        match fs::create_dir(base) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Fails on any other file system.
        write(base, "cgroup.subtree_control", "")?;
        for controller in ["+cpu", "+io", "+pids"] {
            // Those that aren't there don't weigh.
            write(base, "cgroup.subtree_control", controller).ok();
        }
        for entry in fs::read_dir(base)? {
            let path = entry?.path();
            if is_left_over(&path) {
                Own { path }.kill();
            }
        }
        let base = Arc::new(base.to_owned());
        Ok(Self {
            base,
            is_behind: false,
        })
    }

    /// The same, for tools that stand behind others.
    #[must_use]
    pub fn behind(self) -> Self {
        Self {
            is_behind: true,
            ..self
        }
    }

    /// A new group.
    pub(super) fn make(&self) -> io::Result<Own> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.base.join(format!("{PREFIX}{}-{count}", process::id()));
        fs::create_dir(&path)?;
        let own = Own { path };
        let weights = [("cpu.weight", WEIGHT), ("io.weight", WEIGHT)];
        let weights = weights.into_iter().filter(|_| self.is_behind);
        for (file, value) in weights.chain([("pids.max", PROCESSES_MAX)]) {
            // Not there without its controller.
            write(&own.path, file, value).ok();
        }
        Ok(own)
    }
}

/// The folder around the group of a process, from what the kernel says of the process.
fn unit_of(own: &str, mounts: &str) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let is_ours = |line: &&str| line.contains(" - cgroup2 ");
    let mount = mounts.lines().find(is_ours)?;
    let root = Path::new(mount.split_ascii_whitespace().nth(4)?);
    let unit = Path::new(group).parent()?;
    // At the top there is nobody who could have left us something.
    (!unit.as_os_str().is_empty()).then(|| root.join(unit))
}

/// Whether it's the group of a tool whose worker is gone.
fn is_left_over(path: &Path) -> bool {
    let worker = || {
        let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        rest.split_once('-')?.0.parse::<u32>().ok()
    };
    worker().is_some_and(|worker| !Path::new(&format!("/proc/{worker}")).exists())
}

fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(folder.join(file))?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// The group of one tool. It's removed when dropped, if it's empty.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
}

impl Own {
    /// Takes in a process, and with it all that it starts from now on.
    pub(super) fn enter(&self, process: Pid) -> io::Result<()> {
        let number = process.as_raw_nonzero().to_string();
        write(&self.path, "cgroup.procs", &number)
    }

    /// Kills all in it. That there's nothing to kill is fine.
    pub(super) fn kill(&self) {
        write(&self.path, "cgroup.kill", "1").ok();
    }

    /// True when nothing in it runs.
    pub(super) fn is_empty(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events"));
        events.map_or(true, |events| !events.contains("populated 1"))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Not empty: what is left is dying, and the next worker removes it.
        fs::remove_dir(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_unit_is_around_the_services_own_group() {
        let own = "0::/system.slice/virtbus-storage.service/main\n";
        let unit = unit_of(own, MOUNTS).unwrap();
        let expected = "/sys/fs/cgroup/system.slice/virtbus-storage.service";
        assert_eq!(unit, Path::new(expected));
        for other in ["", "0::/\n", "0::/main\n", "4:memory:/x/y\n"] {
            assert_eq!(unit_of(other, MOUNTS), None, "{other}");
        }
        assert_eq!(
            unit_of(own, "29 23 0:26 / /sys rw - sysfs sysfs rw\n"),
            None
        );
    }

    #[test]
    fn only_groups_of_dead_workers_are_left_over() {
        let of = |worker: &str| PathBuf::from(format!("/x/{PREFIX}{worker}-7"));
        assert!(!is_left_over(&of(&process::id().to_string())));
        // Above the largest process number.
        assert!(is_left_over(&of("4194305")));
        assert!(!is_left_over(Path::new("/x/other")));
    }

    #[test]
    fn another_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Groups::open(&dir.path().join("x")).is_err());
    }
}
