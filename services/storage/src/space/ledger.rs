//! What each service has promised of a pool's room, in the pool, for all its services to see.
//!
//! One file per service lies in the pool's folder `space`, locked as long as the service lives: a
//! file whose lock can be had is a dead one's, and is removed by whoever finds it. Whoever counts
//! and promises has the folder's own lock meanwhile.

use crate::pool::{Folder, Name, PoolError, Root, root::facts_of};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long the folder's lock is waited for: longer has it only who stands still, and a promise is
/// no fence.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes that are read of a file: far above what the jobs of one service make.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Room that's set aside for one file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Promise {
    folder: String,
    file: String,
    bytes: u64,
    /// What the file took when the room was set aside.
    taken: u64,
}

impl Promise {
    pub(super) fn new(root: &Root, file: &Name, bytes: u64) -> Result<Self, PoolError> {
        Ok(Self {
            folder: file.folder().as_str().to_owned(),
            file: file.file().to_owned(),
            bytes,
            taken: root.facts(file)?.map_or(0, |facts| facts.allocated),
        })
    }

    /// What was written already is missing in the pool's free room, and must not count twice.
    pub(super) fn still_to_come(&self, root: &Root) -> u64 {
        let written = self
            .name()
            .and_then(|name| root.facts(&name).ok().flatten())
            .map_or(0, |facts| facts.allocated.saturating_sub(self.taken));
        self.bytes.saturating_sub(written)
    }

    fn name(&self) -> Option<Name> {
        let mut folders = Folder::ALL.into_iter();
        let folder = folders.find(|folder| folder.as_str() == self.folder)?;
        (!self.file.contains('/')).then(|| Name::listed(folder, self.file.clone()))
    }
}

/// What this service has promised in one pool. It's removed when this is dropped.
#[derive(Debug)]
pub(super) struct Ledger {
    root: Root,
    name: Name,
    _lock: OwnedFd,
}

impl Ledger {
    /// Begins one, for whoever has this token.
    pub(super) fn begin(root: &Root, token: &str) -> Result<Self, PoolError> {
        let name = Name::promises(token);
        let lock = root.open_or_make(&name)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| refused("lock", &name, errno))?;
        Ok(Self {
            root: root.clone(),
            name,
            _lock: lock,
        })
    }

    /// Writes all that is promised now. The file is closed then, so that NFS shows it to others.
    pub(super) fn write(&self, promises: &[&Promise]) -> Result<(), PoolError> {
        let failed = |errno| refused("write", &self.name, errno);
        let text = serde_json::to_vec(promises).map_err(|_| failed(Errno::INVAL))?;
        let file = self.root.open_rw(&self.name)?;
        let mut file = File::from(file.ok_or_else(|| failed(Errno::NOENT))?);
        // In one go, then the rest of a longer text: somebody may read meanwhile.
        let written = file.write_all(&text);
        let written = written.and_then(|()| file.set_len(text.len() as u64));
        written.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Err(error) = self.root.unlink(&self.name) {
            let chain: &dyn std::error::Error = &error;
            tracing::debug!(
                error = chain,
                "what was promised of a pool stays for others to remove"
            );
        }
    }
}

/// The lock of a pool's promises; none if somebody who stands still has it.
pub(super) fn lock(root: &Root) -> Result<Option<OwnedFd>, PoolError> {
    let name = Name::promises_lock();
    let file = root.open_or_make(&name)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => {
                tracing::warn!("room is set aside without the lock: somebody keeps it");
                return Ok(None);
            }
            Err(errno) => return Err(refused("lock", &name, errno)),
        }
    }
}

/// Bytes that other living services have promised in a pool and not written yet.
pub(super) fn promised_by_others(root: &Root, own: Option<&Name>) -> Result<u64, PoolError> {
    let mut names = root.list(Folder::Space)?;
    names.retain(|name| Some(name) != own && *name != Name::promises_lock());
    Ok(names.iter().map(|name| promised(root, name)).sum())
}

/// The same of one service. What can't be read is no promise.
fn promised(root: &Root, name: &Name) -> u64 {
    let Ok(Some(file)) = root.open(name) else {
        return 0;
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        tracing::info!(file = %name, "what a dead service had promised is free again");
        root.unlink(name).ok();
        return 0;
    }
    let length = facts_of(&file).map_or(0, |facts| facts.length);
    let mut text = Vec::new();
    let read = File::from(file).take(TEXT_BYTES_MAX).read_to_end(&mut text);
    let mut texts = serde_json::Deserializer::from_slice(&text).into_iter();
    let promises: Option<Result<Vec<Promise>, _>> = texts.next();
    match (read, promises) {
        (Ok(_), Some(Ok(promises))) => promises
            .iter()
            .map(|promise| promise.still_to_come(root))
            .sum(),
        (_, _) => {
            tracing::debug!(file = %name, length, "what another service promised can't be read");
            0
        }
    }
}

fn refused(act: &'static str, name: &Name, source: Errno) -> PoolError {
    let name = name.to_string();
    PoolError::Refused { act, name, source }
}
