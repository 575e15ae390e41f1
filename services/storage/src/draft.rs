//! A file that a claim is making: it has a temporary name until it's whole, and is removed if it
//! never gets there.

use crate::{
    blocking,
    pool::{Name, PoolError, Root},
    space::Reservation,
};
use rustix::io::Errno;

/// A file with a temporary name. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Draft {
    root: Root,
    part: Name,
    is_placed: bool,
    /// Room for what's still to be written.
    _room: Reservation,
}

impl Draft {
    /// What a tool is about to make under this name, in room that was set aside.
    pub(crate) fn new(root: Root, part: Name, room: Reservation) -> Self {
        Self {
            root,
            part,
            is_placed: false,
            _room: room,
        }
    }

    /// The temporary name.
    pub(crate) fn part(&self) -> &Name {
        &self.part
    }

    /// Device and inode of the file.
    ///
    /// # Errors
    /// When there is no such file, or the system refuses.
    pub(crate) async fn identity(&self) -> Result<(u64, u64), PoolError> {
        let (root, part) = (self.root.clone(), self.part.clone());
        let facts = blocking::act(move || root.facts(&part)).await?;
        let gone = || PoolError::Refused {
            act: "look at",
            name: self.part.to_string(),
            source: Errno::NOENT,
        };
        Ok(facts.ok_or_else(gone)?.identity)
    }

    /// Brings what was written to the disk.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) async fn sync(&self) -> Result<(), PoolError> {
        let (root, part) = (self.root.clone(), self.part.clone());
        blocking::act(move || root.sync(&part)).await
    }

    /// Gives the file its name, if nobody has it. After an error it doesn't have that name.
    ///
    /// # Errors
    /// [`PoolError::Taken`], or when the system refuses: as when a newer claim removed the file.
    pub(crate) async fn place(&mut self, target: &Name) -> Result<(), PoolError> {
        let (root, part, target) = (self.root.clone(), self.part.clone(), target.clone());
        let placed: Result<(), PoolError> = blocking::act(move || {
            root.rename_unsynced(&part, &target)?;
            let synced = root.sync_names(&part, &target);
            if synced.is_err() {
                root.unlink(&target)?;
            }
            synced
        })
        .await;
        placed?;
        self.is_placed = true;
        Ok(())
    }

    /// Gives the file the name of another one, whose place it takes.
    ///
    /// # Errors
    /// When the system refuses: as when a newer claim removed the file.
    pub(crate) async fn replace(&mut self, target: &Name) -> Result<(), PoolError> {
        let (root, part, target) = (self.root.clone(), self.part.clone(), target.clone());
        let replaced: Result<(), PoolError> =
            blocking::act(move || root.replace(&part, &target)).await;
        replaced?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_placed {
            return;
        }
        if let Err(error) = self.root.unlink(&self.part) {
            let chain: &dyn std::error::Error = &error;
            tracing::warn!(error = chain, "a temporary file stays until the next start");
        }
    }
}
