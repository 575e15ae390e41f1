//! What `archive_disk` and `unarchive_disk` share: a disk whose file is in the pool, packed in the
//! pool's archive, or both.

use crate::{
    disks::Disk,
    draft::Draft,
    fence::Fence,
    pool::{Name, Root},
    task::{Context, Pace, context, is_own, relay::relayed, stage::Stage},
};
use virtbus_wire::DiskId;
use virtbus_worker::perform::Stop;

/// A disk on its way from one place to the other.
pub(crate) struct Plan {
    /// With its intent once that is written.
    pub(super) disk: Disk,
    pub(super) below: Vec<Disk>,
    pub(super) root: Root,
    pub(super) archive: Root,
    /// The file that is made, until it has its name. None if an earlier claim gave it its name.
    pub(super) draft: Option<Draft>,
    pub(super) fence: Option<Fence>,
}

impl Plan {
    pub(super) fn new(disk: Disk, below: Vec<Disk>, (root, archive): (Root, Root)) -> Self {
        Self {
            disk,
            below,
            root,
            archive,
            draft: None,
            fence: None,
        }
    }
}

impl Context<'_> {
    /// The folders of the pool and of its archive.
    pub(super) async fn both_places(&self) -> Result<(Root, Root), Stop> {
        let archive = self.reach(&self.archive()?).await?;
        Ok((self.root().await?, archive))
    }

    /// The disk, if an earlier claim of this job began with it, or this one has.
    pub(super) async fn own_disk(&self, id: &DiskId) -> Result<Option<Disk>, Stop> {
        let disk = self.store.disks.get(id).await?;
        Ok(disk.filter(|disk| is_own(disk.record.owner_job.as_ref(), self.job)))
    }

    /// Whether a packed file holds what a disk's file in the pool does.
    pub(super) async fn is_packed(
        &self,
        (archive, packed): (&Root, &Name),
        (root, disk): (&Root, &Disk),
        stage: Stage,
        pace: &Pace<'_>,
    ) -> Result<bool, Stop> {
        let (archive, packed) = (archive.clone(), packed.clone());
        let (root, file) = (root.clone(), context::file_of(disk));
        relayed(pace, stage, move |tell| {
            archive.is_packed(&packed, (&root, &file), tell)
        })
        .await
    }
}

/// A disk's file in the archive.
pub(super) fn packed_of(disk: &Disk) -> Name {
    Name::archived(&disk.id, disk.record.format)
}
