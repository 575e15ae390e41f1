//! Processes as `/proc` shows them, and signals.

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use std::fs;
use std::path::Path;

/// Sends a signal. One that is gone already is left in peace.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).expect("a process id");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {signal:?} to {pid:?}: {error}"),
    }
}

/// Whether it runs. One that ended and wasn't waited for doesn't; one whose first thread alone
/// has ended does.
pub fn is_alive(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the state is the letter behind it.
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    })
}

/// The process group of a process, while there is one.
pub fn group(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name: its state, its parent, its group.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(2)?.parse().ok()
}

/// The processes of a group that live.
pub fn members(group: u32) -> Vec<Found> {
    let all = lines().map(|(pid, words)| Found {
        pid,
        line: words.join(" "),
    });
    all.filter(|found| self::group(found.pid) == Some(group) && is_alive(found.pid))
        .collect()
}

/// A process that was found, with its command line in one piece.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id.
    pub pid: u32,
    /// Its words, joined by blanks.
    pub line: String,
}

/// The command lines of all processes, in words.
pub(crate) fn lines() -> impl Iterator<Item = (u32, Vec<String>)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let words = line.trim_end_matches('\0').split('\0');
        (pid, words.map(str::to_owned).collect())
    })
}

/// Every other process that names a folder on its command line, or works in it.
pub fn of_folder(folder: &Path) -> Vec<Found> {
    let text = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != std::process::id() && is_alive(*pid));
    others
        .map(|pid| (pid, line(pid)))
        .filter(|(pid, line)| line.contains(text) || works_in(*pid, folder))
        .map(|(pid, line)| Found { pid, line })
        .collect()
}

/// The qemu-img processes of a pool.
pub fn tools(pool_root: &Path) -> Vec<Found> {
    let mut found = of_folder(pool_root);
    found.retain(|process| process.line.contains("qemu-img"));
    found
}

fn line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

fn works_in(pid: u32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
}
