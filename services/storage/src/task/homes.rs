//! Where the files of a disk are: in the pool or its archive; and where those of its tree are.

use crate::{
    disks::Disk,
    pool::{Name, Pool},
    task::{Context, context::file_of},
    trash::Home,
};
use virtbus_wire::{Code, DiskId, JobError, catalog::DiskState};
use virtbus_worker::perform::Stop;

impl Context<'_> {
    /// The pool's archive.
    pub(crate) fn archive(&self) -> Result<Pool, JobError> {
        let missing = || JobError::new(Code::PoolUnsupported, "the pool has no archive here");
        self.pool.archive().ok_or_else(missing)
    }

    /// Where a disk's file is to be looked for.
    pub(crate) async fn homes(&self, disk: &Disk) -> Result<Vec<Home>, Stop> {
        let in_pool = Home {
            root: self.root().await?,
            file: file_of(disk),
        };
        let archive = match disk.record.state {
            DiskState::Archived => Some(self.archive()?),
            // It may have come from there.
            DiskState::Trashed => self.pool.archive(),
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Ready
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Missing
            | DiskState::Broken
            | DiskState::Deleted => None,
        };
        let Some(archive) = archive else {
            return Ok(vec![in_pool]);
        };
        let in_archive = Home {
            root: self.reach(&archive).await?,
            file: Name::archived(&disk.id, disk.record.format),
        };
        if disk.record.state == DiskState::Archived {
            return Ok(vec![in_archive]);
        }
        Ok(vec![in_pool, in_archive])
    }

    /// The disk with all below it, and all above those, the lowest first.
    pub(crate) async fn whole_tree(&self, disk: &Disk) -> Result<Vec<Disk>, Stop> {
        let disks = &self.store.disks;
        let mut below = disks.below(disk).await?;
        let lowest = below.pop().unwrap_or_else(|| disk.clone());
        let mut tree = disks.above(&lowest).await?;
        tree.push(lowest);
        tree.retain(|disk| disk.record.state != DiskState::Deleted);
        tree.reverse();
        Ok(tree)
    }
}

/// Each disk of a tree with the one below it.
pub(crate) fn with_below(tree: &[Disk]) -> impl Iterator<Item = (&Disk, Option<&Disk>)> {
    tree.iter().map(move |disk| {
        let backing = disk.record.backing.as_ref();
        (disk, tree.iter().find(|below| Some(&below.id) == backing))
    })
}

/// The refusal of a name that is taken; `place` is where, for people.
pub(crate) fn taken(id: &DiskId, place: &str) -> JobError {
    let text = format!("a file of that name is in {place} already");
    JobError::new(Code::DiskExists, text).with("disk", id.as_str())
}
