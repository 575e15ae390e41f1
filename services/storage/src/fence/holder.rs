//! Who has a lock, by the text in its file, and the processes that keep it.

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, test_kill_process,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};
use virtbus_wire::{BootId, JobId, WorkerId, state::Owner};

/// The text in a lock's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) worker: WorkerId,
    pub(super) boot: BootId,
    pub(super) job: JobId,
    pub(super) claim: u64,
    /// The process that took it.
    pub(super) pid: i32,
    /// Set once the effect has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<Mark>,
}

/// What a claim notes on the lock before an effect that can't be told from the image afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The number of the file that takes the disk's place, if one does.
    #[serde(default)]
    pub inode: Option<u64>,
    /// The room that the disk's file took before, in bytes.
    #[serde(default)]
    pub before: Option<u64>,
}

/// What became of a dead holder's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kill {
    /// They were sent SIGKILL.
    Sent,
    /// None is on this host, or none is surely that holder's.
    NobodyHere,
}

impl Holder {
    pub(super) fn new(owner: &Owner, job: &JobId, claim: u64) -> Self {
        Self {
            worker: owner.worker.clone(),
            boot: owner.boot,
            job: job.clone(),
            claim,
            pid: getpid().as_raw_nonzero().get(),
            mark: None,
        }
    }

    pub(super) fn owner(&self) -> Owner {
        Owner {
            worker: self.worker.clone(),
            boot: self.boot,
        }
    }

    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        // The rest of a longer text may follow, if its writer died just then.
        let mut texts = serde_json::Deserializer::from_slice(text).into_iter();
        texts.next()?.ok()
    }
}

/// Kills what keeps the lock of a dead holder: the frozen worker itself and its tools.
///
/// The file's text may be an older holder's if a new one took the lock this very moment, so the
/// kernel must name the same process as the one that took it, or that one must be gone.
pub(super) fn kill(holder: &Holder, identity: (u64, u64)) -> Kill {
    let mut sent = Kill::NobodyHere;
    for keeper in keepers(identity) {
        if keeper.pid == getpid() || !is_of(holder, keeper.taken_by) {
            continue;
        }
        // The number could be another process's by now; the descriptor can't.
        let Ok(process) = pidfd_open(keeper.pid, PidfdFlags::empty()) else {
            continue;
        };
        let still = keeper_of(keeper.pid, identity);
        if still.is_some_and(|taken_by| is_of(holder, taken_by))
            && pidfd_send_signal(&process, Signal::KILL).is_ok()
        {
            sent = Kill::Sent;
        }
    }
    sent
}

/// Whether a lock that the kernel says was taken by this process is the holder's.
fn is_of(holder: &Holder, taken_by: Option<i32>) -> bool {
    match taken_by {
        Some(pid) => pid == holder.pid,
        // The taker is gone; its tool is what is left.
        None => Pid::from_raw(holder.pid).is_none_or(|pid| test_kill_process(pid).is_err()),
    }
}

struct Keeper {
    pid: Pid,
    taken_by: Option<i32>,
}

/// The processes of this host that have the locked file open by way of the lock's own opening.
fn keepers(identity: (u64, u64)) -> Vec<Keeper> {
    let keeper = |pid| {
        let taken_by = keeper_of(pid, identity)?;
        Some(Keeper { pid, taken_by })
    };
    processes().into_iter().filter_map(keeper).collect()
}

/// Who took the lock that this process keeps; none if it keeps none.
fn keeper_of(pid: Pid, identity: (u64, u64)) -> Option<Option<i32>> {
    let info = openings(pid, identity).next()?;
    taken_by(&fs::read_to_string(info).ok()?)
}

/// What the kernel says of each opening that a process has of a file.
fn openings(pid: Pid, identity: (u64, u64)) -> impl Iterator<Item = PathBuf> {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    files.filter_map(Result::ok).filter_map(move |file| {
        let facts = rustix::fs::stat(file.path()).ok()?;
        let same = crate::pool::root::identity_of(&facts) == identity;
        same.then(|| process.join("fdinfo").join(file.file_name()))
    })
}

/// Kills all processes of this host, but this one, that have a file open: what a tool started and
/// left behind. Only for a file that's nobody else's. True if there were any.
pub(crate) fn kill_users(identity: (u64, u64)) -> bool {
    let mut any = false;
    for pid in processes() {
        if pid == getpid() || openings(pid, identity).next().is_none() {
            continue;
        }
        // The number could be another process's by now; the descriptor can't.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if openings(pid, identity).next().is_some() {
            any |= pidfd_send_signal(&process, Signal::KILL).is_ok();
        }
    }
    any
}

fn processes() -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

/// The taker in a file's `fdinfo`, if its opening carries an exclusive `flock`: a line such as
/// `lock: 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`.
fn taken_by(info: &str) -> Option<Option<i32>> {
    let line = info.lines().find_map(|line| line.strip_prefix("lock:"))?;
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = [words.next()?, words.next()?, words.next()?];
    if kind != ["FLOCK", "ADVISORY", "WRITE"] {
        return None;
    }
    let pid: i32 = words.next()?.parse().ok()?;
    Some((pid > 0).then_some(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_names_the_taker() {
        let info = "pos:\t0\nflags:\t0100002\nlock:\t1: FLOCK  ADVISORY  WRITE 4711 fe:00:12 0 EOF";
        assert_eq!(taken_by(info), Some(Some(4711)));
        assert_eq!(taken_by(&info.replace("4711", "0")), Some(None));
        assert_eq!(taken_by(&info.replace("WRITE", "READ")), None);
        assert_eq!(taken_by("pos:\t0\n"), None);
    }

    #[test]
    fn only_the_process_in_the_text_is_the_holder() {
        let owner = Owner {
            worker: "st-1".parse().unwrap(),
            boot: BootId::nil(),
        };
        let holder = Holder::new(&owner, &"j1".parse().unwrap(), 1);
        assert_eq!(
            Holder::from_text(holder.to_text().as_bytes()).as_ref(),
            Some(&holder)
        );
        assert!(is_of(&holder, Some(holder.pid)));
        assert!(!is_of(&holder, Some(holder.pid + 1)));
        assert!(!is_of(&holder, None), "the taker lives");
    }
}
