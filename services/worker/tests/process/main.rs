//! The process runner against real processes: small shell scripts that misbehave on purpose.

#![expect(clippy::unwrap_used, reason = "the whole crate is a test")]

mod cage;
mod cgroup;
mod death;
mod ends;
mod files;
mod stopping;
mod way;

use std::{
    fs,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use virtbus_worker::process::{CommandLine, Limits};

/// The bound of every wait: far above what a loaded machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// A script under limits that don't get in its way.
pub(crate) fn sh(script: &str) -> CommandLine {
    CommandLine::new("/bin/sh")
        .args(["-c", script])
        .limits(wide())
}

pub(crate) fn wide() -> Limits {
    Limits {
        open_files: 64,
        file_size_bytes: 1 << 30,
        cpu_seconds: 600,
        wall: Duration::from_secs(600),
    }
}

/// Waits until `level` holds.
pub(crate) async fn until(what: &str, mut level: impl FnMut() -> bool) {
    let began = Instant::now();
    while !level() {
        assert!(
            began.elapsed() < PATIENCE,
            "still not so after {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// True while the process runs; a zombie doesn't.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

/// How many processes carry this text in their environment.
pub(crate) fn marked(mark: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| fs::read(entry.ok()?.path().join("environ")).ok())
        .filter(|environ| String::from_utf8_lossy(environ).contains(mark))
        .count()
}

/// Process numbers that a script prints, one per record.
pub(crate) fn pids() -> (impl FnMut(&str) + Send, Pids) {
    let (sender, seen): (Sender<u32>, Receiver<u32>) = mpsc::channel();
    let tell = move |record: &str| sender.send(record.parse().unwrap()).unwrap();
    (tell, Pids(seen))
}

pub(crate) struct Pids(Receiver<u32>);

impl Pids {
    /// Waits for the next `n`.
    pub(crate) async fn take(&self, n: usize) -> Vec<u32> {
        let mut pids = Vec::new();
        until("the script printed its numbers", || {
            pids.extend(self.0.try_iter());
            pids.len() >= n
        })
        .await;
        pids
    }

    /// All that came so far.
    pub(crate) fn seen(&self) -> Vec<u32> {
        self.0.try_iter().collect()
    }
}
