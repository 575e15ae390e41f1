//! The lock of the operating system on what changes a disk in place: who writes is decided where
//! the bytes are, not in a record.
//!
//! It's `flock` on a file of the pool: as lasting as an OFD lock, and what the system offers
//! without unsafe code. It belongs to the open file, so a tool that inherits it keeps it when its
//! worker is gone, and NFS hands it to the server. The file says who has it. If that worker's
//! lease is out and its processes are on this host, they are killed: a frozen worker must not
//! wake up in the middle of another one's change. From elsewhere the lock can't be taken.
//!
//! The text also outlives a worker that dies. Where the image doesn't show whether an effect was
//! begun, the claim marks the lock before; the mark is handed on to the job's later claims until
//! one of them lets the lock go in order.

mod holder;
mod quiet;

pub use holder::Mark;
pub(crate) use holder::kill_users;
pub(crate) use quiet::Quiet;

use crate::{
    blocking,
    pool::{Name, PoolError, Root, root::facts_of},
};
use holder::{Holder, Kill};
use rustix::{
    fs::{FlockOperation, flock, fsync, ftruncate},
    io::{Errno, fcntl_dupfd_cloexec, pread, pwrite},
};
use std::{os::fd::OwnedFd, time::Duration};
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use virtbus_bus::{BusError, lease::Leases};
use virtbus_wire::{Code, JobError, JobId, state::Owner, task::Target};

/// How long killed holders may take to let go.
const KILLED: Duration = Duration::from_secs(5);
/// How long a lock may outlast its holder: a program that was being started as the holder let go
/// keeps it until it has become that program, which takes a while on a busy host.
const LINGER: Duration = Duration::from_secs(2);
/// Between two looks at a lock whose holders were killed.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the lock's file may be replaced while it's being locked.
const TRIES_MAX: u32 = 8;
/// Bytes of a lock file that are read: its text has about 400.
const TEXT_BYTES_MAX: usize = 1024;

/// A held lock. It's given back when this is dropped and no tool has it any more.
#[derive(Debug)]
pub struct Fence {
    file: OwnedFd,
    root: Root,
    name: Name,
    holder: Holder,
    /// Whether the mark stays when the lock goes.
    leaves_mark: bool,
}

/// Why a lock wasn't had.
#[derive(Debug, Error)]
pub enum FenceError {
    /// Another program has it, and may.
    #[error("lock {name}: another program has it")]
    Busy {
        /// The lock.
        name: String,
        /// Whether that's another claim of the same job, by the lock's file.
        by_own_job: bool,
    },
    /// The lock's file can't be used.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It can't be told whether its holder lives.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl From<FenceError> for JobError {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Busy { .. } => {
                Self::new(Code::DiskBusy, "another program is changing the disk")
            }
            FenceError::Pool(error) => error.into(),
            FenceError::Bus(error) => Self::internal(error.to_string()),
        }
    }
}

impl Fence {
    /// Takes the lock of a disk or a medium for this claim, from a dead holder by force.
    ///
    /// # Errors
    /// [`FenceError::Busy`] when somebody has it who may, or who can't be killed from here.
    pub async fn take(
        root: &Root,
        of: impl Into<Target> + Send,
        owner: &Owner,
        (job, claim): (&JobId, u64),
        leases: &Leases,
    ) -> Result<Self, FenceError> {
        let name = Name::lock(of);
        let own = Holder::new(owner, job, claim);
        let mut give_up: Option<Instant> = None;
        loop {
            let (at, lock, holder) = (root.clone(), name.clone(), own.clone());
            let attempt = spawn_blocking(move || attempt(&at, &lock, holder)).await;
            let found = match attempt.unwrap_or(Err(PoolError::Refused {
                act: "lock",
                name: name.to_string(),
                source: Errno::CANCELED,
            }))? {
                Attempt::Held(fence) => return Ok(fence),
                Attempt::Busy(found) => found,
            };
            let by_own_job = found
                .as_ref()
                .is_some_and(|(holder, _)| holder.job == own.job);
            let busy = || FenceError::Busy {
                name: name.to_string(),
                by_own_job,
            };
            if let Some(until) = give_up {
                if Instant::now() >= until {
                    return Err(busy());
                }
            } else if let Some((holder, identity)) = found {
                if leases.is_alive(&holder.owner()).await? {
                    return Err(busy());
                }
                tracing::warn!(lock = %name, worker = %holder.worker, job = %holder.job,
                    "a lock's holder lost its lease: its processes are killed");
                let kill = spawn_blocking(move || holder::kill(&holder, identity)).await;
                let wait = match kill.unwrap_or(Kill::NobodyHere) {
                    Kill::Sent => KILLED,
                    Kill::NobodyHere => LINGER,
                };
                give_up = Some(Instant::now() + wait);
            } else {
                give_up = Some(Instant::now() + LINGER);
            }
            sleep(PAUSE).await;
        }
    }

    /// The lock for a tool to inherit.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub fn share(&self) -> Result<OwnedFd, PoolError> {
        fcntl_dupfd_cloexec(&self.file, 3).map_err(refused("share", &self.name))
    }

    /// What this claim, or an earlier one of the job that died, noted before its effect.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.holder.mark
    }

    /// Notes that the effect begins: from here on a later claim goes forward.
    ///
    /// # Errors
    /// When the note can't be brought to the disk; there must be no effect then.
    pub async fn begin(&mut self, mark: Mark) -> Result<(), PoolError> {
        self.holder.mark = Some(mark);
        self.write().await
    }

    /// Takes the note back, if there is one: there is no effect any more.
    ///
    /// # Errors
    /// When that can't be brought to the disk.
    pub async fn forget(&mut self) -> Result<(), PoolError> {
        match self.holder.mark.take() {
            Some(_) => self.write().await,
            None => Ok(()),
        }
    }

    /// Leaves the note to whoever of the job takes the lock next: the effect ended halfway.
    pub fn leave_mark(&mut self) {
        self.leaves_mark = true;
    }

    async fn write(&self) -> Result<(), PoolError> {
        let (file, text, name) = (self.share()?, self.holder.to_text(), self.name.clone());
        let write = move || {
            name_holder(&file, &text)
                .and_then(|()| fsync(&file))
                .map_err(refused("mark", &name))
        };
        blocking::act(write).await
    }

    /// Removes the lock's file with the lock: for a disk that's gone, whose id nobody uses again.
    pub fn retire(self) {
        if let Err(error) = self.root.unlink(&self.name) {
            tracing::debug!(%error, "the lock of a deleted disk stays");
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if self.leaves_mark {
            return;
        }
        // Given back in order: whatever comes next must not be taken for this holder.
        ftruncate(&self.file, 0).ok();
    }
}

enum Attempt {
    Held(Fence),
    /// Who has it, if the file says so, and the file itself.
    Busy(Option<(Holder, (u64, u64))>),
}

fn attempt(root: &Root, name: &Name, mut own: Holder) -> Result<Attempt, PoolError> {
    for _ in 0..TRIES_MAX {
        let file = root.open_or_make(name)?;
        let identity = facts_of(&file).map_err(refused("look at", name))?.identity;
        let last = || {
            let mut text = [0; TEXT_BYTES_MAX];
            let n = pread(&file, &mut text, 0).map_err(refused("read", name))?;
            Ok::<_, PoolError>(Holder::from_text(&text[..n]))
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Ok(Attempt::Busy(last()?.map(|holder| (holder, identity))));
            }
            Err(errno) => return Err(refused("lock", name)(errno)),
        }
        // A file that was removed meanwhile keeps nobody out.
        if root.facts(name)?.map(|facts| facts.identity) != Some(identity) {
            continue;
        }
        // On a full pool the lock must still be had, to delete something; it's then nobody's, and
        // its holder is never killed.
        let before = last()?.filter(|before| before.job == own.job);
        own.mark = before.and_then(|before| before.mark);
        if let Err(error) = name_holder(&file, &own.to_text()) {
            tracing::warn!(%error, lock = %name, "the lock doesn't say who has it");
        }
        return Ok(Attempt::Held(Fence {
            file,
            root: root.clone(),
            name: name.clone(),
            holder: own,
            leaves_mark: false,
        }));
    }
    Ok(Attempt::Busy(None))
}

/// Writes who has the lock, in one go: who dies meanwhile leaves the one text or the other.
fn name_holder(file: &OwnedFd, text: &str) -> Result<(), Errno> {
    pwrite(file, text.as_bytes(), 0)?;
    ftruncate(file, text.len() as u64)
}

fn refused(act: &'static str, name: &Name) -> impl FnOnce(Errno) -> PoolError {
    let name = name.to_string();
    move |source| PoolError::Refused { act, name, source }
}
