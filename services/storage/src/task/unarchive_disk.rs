//! `unarchive_disk`: out of the archive, to where it was.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Disk,
    draft::Draft,
    pool::{PackedLabel, PoolError, Root},
    qemu_img::command::bytes_max,
    task::{
        Checked, Context, Pace, Steps, context, done,
        homes::taken,
        is_own, now,
        packed::{Plan, packed_of},
        relay::relayed,
        snapshot::SNAPSHOTS_MAX,
        stage::Stage,
    },
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
    task::{image::ImageFormat, storage as params},
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct UnarchiveDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::UnarchiveDisk,
}

impl UnarchiveDisk<'_> {
    fn result(&self, record: &DiskRecord) -> Result<Done, Stop> {
        done(&params::Unarchived {
            actual_size: record.actual_size.unwrap_or_default(),
        })
    }

    /// Unpacks the file, reads it back from the disk, and finds it to be the disk's.
    async fn unpack(&self, plan: &Plan, pace: &Pace<'_>) -> Result<Draft, Stop> {
        let (disk, packed) = (&plan.disk, packed_of(&plan.disk));
        let (archive, name) = (plan.archive.clone(), packed.clone());
        let label: Result<_, PoolError> = blocking::look(move || archive.label(&name)).await;
        let label = label?.filter(|label| is_of(label, disk));
        let other = || JobError::new(Code::ImageCorrupt, "the archived file is another disk's");
        let label = label.ok_or_else(other)?;
        let room = label.allocated.min(label.length);
        let draft = self.at.draft(&plan.root, &disk.id, room).await?;
        let (archive, root, part) = (
            plan.archive.clone(),
            plan.root.clone(),
            draft.part().clone(),
        );
        let stage = Stage::first("unarchive", room, room.saturating_mul(2));
        let seal = relayed(pace, stage, move |tell| {
            archive.unpack((&packed, &label), (&root, &part), tell)
        })
        .await?;
        let (root, part) = (plan.root.clone(), draft.part().clone());
        let is_sealed = relayed(pace, stage.then("verify", room), move |tell| {
            root.is_sealed(&part, seal, tell)
        });
        if !is_sealed.await? {
            let text = "the pool doesn't give back what was written to it";
            return Err(JobError::new(Code::PoolUnreachable, text).into());
        }
        let expected = context::expected(disk, plan.below.first());
        let passed = self.at.pass_file(&plan.root, draft.part(), expected);
        passed.await.map(|_| draft)
    }

    /// Says that the disk is back, then removes it from the archive.
    async fn forward(&self, root: &Root, archive: &Root, intent: &Disk) -> Result<Done, Stop> {
        let facts = self.at.facts_of(root, &context::file_of(intent)).await?;
        let back = |record: &DiskRecord| DiskRecord {
            actual_size: facts.map(|facts| facts.allocated),
            ..catalog::in_state(record, DiskState::Ready, now())
        };
        let finished = self.at.store.disks.finish(intent, back).await?;
        let disk = finished.ok_or(Stop::Lost)?;
        self.forget(archive, &disk).await?;
        self.result(&disk.record)
    }

    /// Removes the disk from the archive.
    async fn forget(&self, archive: &Root, disk: &Disk) -> Result<(), Stop> {
        let (archive, packed) = (archive.clone(), packed_of(disk));
        let removed: Result<bool, PoolError> = blocking::act(move || archive.unlink(&packed)).await;
        removed?;
        Ok(())
    }

    /// Whether the disk has its name in the pool, by an earlier claim.
    async fn is_placed(&self, roots: (&Root, &Root), disk: &Disk) -> Result<bool, Stop> {
        for (root, file) in [
            (roots.0, context::file_of(disk)),
            (roots.1, packed_of(disk)),
        ] {
            if self.at.facts_of(root, &file).await?.is_none() {
                return Ok(false);
            }
        }
        let never = process::Stop::new();
        let packed = (roots.1, &packed_of(disk));
        let pace = Pace::endless(&never);
        let stage = Stage::only("verify", 0);
        self.at
            .is_packed(packed, (roots.0, disk), stage, &pace)
            .await
    }
}

/// Whether a label can be that of a disk's file. What it says is how much is unpacked, and zeros
/// take no room in an archive: the file may only be as long as one of this disk can be.
fn is_of(label: &PackedLabel, disk: &Disk) -> bool {
    /// As many times as a disk's bytes can be in its file: its own, and those of each snapshot.
    const COPIES_MAX: u64 = SNAPSHOTS_MAX as u64 + 1;
    /// What a raw disk's length is a multiple of, in bytes.
    const SECTOR_BYTES: u64 = 512;
    let record = &disk.record;
    let fits = |size: u64| match record.format {
        ImageFormat::Raw => label.length.checked_next_multiple_of(SECTOR_BYTES) == Some(size),
        ImageFormat::Qcow2 => label.length <= bytes_max(size.saturating_mul(COPIES_MAX)),
        ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhdx | ImageFormat::Vpc => {
            label.length <= bytes_max(size)
        }
    };
    let is_the_disks = label.disk == disk.id && label.format == record.format;
    is_the_disks && record.virtual_size.is_none_or(fits)
}

impl Steps for UnarchiveDisk<'_> {
    type Plan = Plan;

    /// Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at
            .locks_below(&self.params.disk, Mode::Exclusive)
            .await
    }

    /// Removes the temporary files of older claims.
    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(&self.params.disk).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(true).await?;
        let found = self.at.store.disks.get(&self.params.disk).await?;
        if let Some(disk) = self.at.is_so(found.as_ref(), DiskState::Ready) {
            return self.result(&disk.record).map(Checked::Done);
        }
        let disk = self.at.had(&self.params.disk, found, Purpose::Unarchive)?;
        let below = self.at.readable_below(&disk).await?;
        let (root, archive) = self.at.both_places().await?;
        if self
            .at
            .facts_of(&archive, &packed_of(&disk))
            .await?
            .is_none()
        {
            let text = "the disk's file isn't in the archive";
            let gone = JobError::new(Code::DiskWrongState, text);
            return Err(gone.with("disk", disk.id.as_str()).into());
        }
        let is_ours = is_own(disk.record.owner_job.as_ref(), self.at.job);
        let there = self.at.facts_of(&root, &context::file_of(&disk)).await?;
        if there.is_some() && !is_ours {
            return Err(taken(&disk.id, "the pool").into());
        }
        Ok(Checked::Plan(Plan::new(disk, below, (root, archive))))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let file = context::file_of(&plan.disk);
        if self.at.facts_of(&plan.root, &file).await?.is_none() {
            plan.draft = Some(self.unpack(plan, pace).await?);
            return Ok(());
        }
        let (packed, here) = (packed_of(&plan.disk), (&plan.root, &plan.disk));
        let stage = Stage::only("verify", plan.disk.record.actual_size.unwrap_or_default());
        if self
            .at
            .is_packed((&plan.archive, &packed), here, stage, pace)
            .await?
        {
            Ok(())
        } else {
            Err(taken(&plan.disk.id, "the pool").into())
        }
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        plan.fence = Some(self.at.fence(&plan.root, &plan.disk.id).await?);
        plan.disk = self
            .at
            .store
            .disks
            .take(&plan.disk, &self.at.job.id)
            .await?;
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        match &mut plan.draft {
            Some(draft) => Ok(draft.place(&context::file_of(&plan.disk)).await?),
            None => Ok(()),
        }
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        self.forward(&plan.root, &plan.archive, &plan.disk).await
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some(disk) = self.at.own_disk(&self.params.disk).await? else {
            return Ok(None);
        };
        let (root, archive) = self.at.both_places().await?;
        match disk.record.state {
            DiskState::Ready => {
                let _fence = self.at.fence(&root, &disk.id).await?;
                self.forget(&archive, &disk).await?;
                self.result(&disk.record).map(Some)
            }
            DiskState::Archived if self.is_placed((&root, &archive), &disk).await? => {
                let _fence = self.at.fence(&root, &disk.id).await?;
                self.forward(&root, &archive, &disk).await.map(Some)
            }
            DiskState::Archived
            | DiskState::Creating
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken
            | DiskState::Deleted => Ok(None),
        }
    }

    /// What is archived keeps its state, so there's only the file to see to.
    async fn abandon(&self) -> Result<(), Stop> {
        let is_begun = |disk: &Disk| disk.record.state == DiskState::Archived;
        let Some(disk) = self.at.own_disk(&self.params.disk).await?.filter(is_begun) else {
            return Ok(());
        };
        let (root, archive) = self.at.both_places().await?;
        let _fence = self.at.fence(&root, &disk.id).await?;
        if self.is_placed((&root, &archive), &disk).await? {
            let file = context::file_of(&disk);
            let removed: Result<bool, PoolError> = blocking::act(move || root.unlink(&file)).await;
            removed?;
        }
        Ok(())
    }
}
