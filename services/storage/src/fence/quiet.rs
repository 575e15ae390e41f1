//! The same lock, held for a moment by nobody in particular: its text is left as it is, so that
//! whoever holds it so is never killed for it.

use super::refused;
use crate::{
    blocking,
    pool::{Name, PoolError, Root, root::facts_of},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::os::fd::OwnedFd;

/// A held lock. It's given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Quiet {
    _file: OwnedFd,
    root: Root,
    name: Name,
}

impl Quiet {
    /// Takes the lock; none if somebody has it.
    ///
    /// # Errors
    /// When the lock's file can't be used.
    pub(crate) async fn take(root: &Root, name: Name) -> Result<Option<Self>, PoolError> {
        let root = root.clone();
        blocking::act(move || {
            let file = root.open_or_make(&name)?;
            let identity = facts_of(&file).map_err(refused("look at", &name))?.identity;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(refused("lock", &name)(errno)),
            }
            // A file that was removed meanwhile keeps nobody out.
            let now = root.facts(&name)?.map(|facts| facts.identity);
            Ok((now == Some(identity)).then_some(Self {
                _file: file,
                root,
                name,
            }))
        })
        .await
    }

    /// Removes the lock's file with the lock: for what's gone, whose id nobody uses again.
    pub(crate) fn retire(self) {
        if let Err(error) = self.root.unlink(&self.name) {
            tracing::debug!(%error, "the lock of something deleted stays");
        }
    }
}
