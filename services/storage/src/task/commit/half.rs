//! A backing that a commit left half written: whose it is, and what's said of it.

use super::Commit;
use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    task::{is_own, now},
};
use virtbus_wire::{
    DiskId,
    catalog::{DiskRecord, DiskState},
};
use virtbus_worker::perform::Stop;

impl Commit<'_> {
    /// The backing, also when an earlier attempt of this job left it half written, or another
    /// commit of this disk.
    pub(super) async fn backing(&self, id: &DiskId, above: &Disk) -> Result<Disk, Stop> {
        let disk = self.at.store.disks.get(id).await?;
        let is_half = |disk: &Disk| {
            self.has_broken(&disk.record)
                || disk.record.is_half_written_from((&above.id, &above.record))
        };
        match disk {
            Some(disk) if is_half(&disk) => Ok(disk),
            other => Ok(self.at.had(id, other, Purpose::Use)?),
        }
    }

    /// Whether an earlier attempt of this job left a backing half written.
    fn has_broken(&self, backing: &DiskRecord) -> bool {
        backing.state == DiskState::Broken && is_own(backing.owner_job.as_ref(), self.at.job)
    }

    /// What the job is told of a tool that failed with the backing half written.
    pub(super) fn halfway(&self, stop: Stop, backing: &DiskId) -> Stop {
        let Stop::Failed(mut error) = stop else {
            return stop;
        };
        error.message += "; the disk is whole, its backing is not until the commit is run again";
        let error = error.with("disk", self.params.disk.as_str());
        Stop::Failed(error.with("backing", backing.as_str()))
    }

    /// Gives back a backing that an earlier claim held: as it was, or half written.
    pub(super) async fn give_back(&self, backing: &DiskId, is_half: bool) -> Result<(), Stop> {
        let Some(base) = self.at.held_before(backing).await? else {
            return Ok(());
        };
        if is_half {
            let half = |record: &DiskRecord| catalog::broken(record, now());
            return self.at.settle(&base.disk, half).await;
        }
        self.at.give_back(&base.disk).await
    }

    /// Says of the disk too that it's this job's, if this job has begun with what another commit
    /// left of its backing: both tell of one job, or nobody knows that the one hides the other.
    pub(super) async fn own(&self, disk: &Disk, backing: &DiskId) -> Result<(), Stop> {
        let disks = &self.at.store.disks;
        let below = disks.get(backing).await?;
        if below.is_some_and(|below| self.has_broken(&below.record)) {
            let owner_job = Some(self.at.job.id.clone());
            let told = |record: &DiskRecord| {
                let owner_job = owner_job.clone();
                let told = DiskRecord {
                    owner_job,
                    ..record.clone()
                };
                (told != *record).then_some(told)
            };
            disks.change(&disk.id, told).await?;
        }
        Ok(())
    }
}
