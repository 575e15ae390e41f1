//! How much memory the service and its tools take.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);

/// Looks at a process and all below it from time to time.
pub(super) struct Watch {
    most: Arc<AtomicU64>,
    /// The looks end with it.
    goes_on: Option<Sender<()>>,
    looks: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn begin(process: u32) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&most);
        let (goes_on, over) = mpsc::channel();
        let looks = thread::spawn(move || {
            while over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                seen.fetch_max(resident(process), Ordering::Relaxed);
            }
        });
        Self {
            most,
            goes_on: Some(goes_on),
            looks: Some(looks),
        }
    }

    /// The most bytes that all had at once.
    pub(super) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.goes_on.take());
        if let Some(looks) = self.looks.take() {
            drop(looks.join());
        }
    }
}

/// Bytes of memory that a process and all below it have now.
fn resident(root: u32) -> u64 {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        if let (Some(pid), Some(parent)) = (field("Pid:"), field("PPid:")) {
            processes.insert(pid, (parent, field("VmRSS:").unwrap_or(0) << 10));
        }
    }
    let is_below = |mut pid: u64| {
        while let Some((parent, _)) = processes.get(&pid).filter(|_| pid != u64::from(root)) {
            pid = *parent;
        }
        pid == u64::from(root)
    };
    let own = processes.iter().filter(|(pid, _)| is_below(**pid));
    own.map(|(_, (_, bytes))| bytes).sum()
}
