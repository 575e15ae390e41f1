//! `archive_disk`: packed into the pool's archive, and away from the pool.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Disk,
    pool::{PoolError, Root},
    task::{
        Checked, Context, Pace, Steps, context, done,
        homes::taken,
        now,
        packed::{Plan, packed_of},
        relay::relayed,
        stage::Stage,
    },
    trash::{Found, Home},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::storage as params,
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct ArchiveDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::ArchiveDisk,
}

impl ArchiveDisk<'_> {
    fn result(&self, record: &DiskRecord) -> Result<Done, Stop> {
        done(&params::Archived {
            archived_size: record.actual_size.unwrap_or_default(),
        })
    }

    /// Removes the file from the pool, and says that it's in the archive.
    async fn forward(&self, root: &Root, archive: &Root, intent: &Disk) -> Result<Done, Stop> {
        let home = Home {
            root: root.clone(),
            file: context::file_of(intent),
        };
        let (of, claim) = ((&intent.id).into(), (&self.at.job.id, self.at.job.claim));
        home.discard(&of, claim).await?;
        home.remove(&of).await?;
        let facts = self.at.facts_of(archive, &packed_of(intent)).await?;
        let archived = |record: &DiskRecord| DiskRecord {
            actual_size: facts.map(|facts| facts.allocated),
            ..catalog::in_state(record, DiskState::Archived, now())
        };
        let finished = self.at.store.disks.finish(intent, archived).await?;
        self.result(&finished.ok_or(Stop::Lost)?.record)
    }
}

impl Steps for ArchiveDisk<'_> {
    type Plan = Plan;

    /// Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at
            .locks_below(&self.params.disk, Mode::Exclusive)
            .await
    }

    /// Removes the temporary files of older claims.
    async fn clean(&self) -> Result<(), Stop> {
        self.at
            .clean_in(&self.at.archive()?, &self.params.disk)
            .await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let found = self.at.store.disks.get(&self.params.disk).await?;
        if let Some(disk) = self.at.is_so(found.as_ref(), DiskState::Archived) {
            return self.result(&disk.record).map(Checked::Done);
        }
        let disk = self.at.had(&self.params.disk, found, Purpose::Use)?;
        catalog::admit_change(&disk.id, &disk.record)?;
        self.at.admit_use(&disk, UseMode::Exclusive)?;
        let below = self.at.readable_below(&disk).await?;
        let places = self.at.both_places().await?;
        let is_ours = disk.record.state == DiskState::Archiving;
        let there = self.at.facts_of(&places.1, &packed_of(&disk)).await?;
        if there.is_some() && !is_ours {
            return Err(taken(&disk.id, "the archive").into());
        }
        Ok(Checked::Plan(Plan::new(disk, below, places)))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (disk, file, packed) = (
            &plan.disk,
            context::file_of(&plan.disk),
            packed_of(&plan.disk),
        );
        let passed = self.at.pass_disk(&plan.root, disk, plan.below.first());
        passed.await?;
        let idle = self.at.idle(&plan.root, [disk], UseMode::Exclusive);
        idle.await?;
        let facts = self.at.facts_of(&plan.root, &file).await?;
        let bytes = facts.map_or(0, |facts| facts.allocated);
        if self.at.facts_of(&plan.archive, &packed).await?.is_some() {
            let (packed, here) = ((&plan.archive, &packed), (&plan.root, disk));
            let stage = Stage::only("verify", bytes);
            return if self.at.is_packed(packed, here, stage, pace).await? {
                Ok(())
            } else {
                Err(taken(&disk.id, "the archive").into())
            };
        }
        let archive = self.at.archive()?;
        let draft = self
            .at
            .draft_in(&archive, &plan.archive, &disk.id, bytes)
            .await?;
        let (root, to, part) = (
            plan.root.clone(),
            plan.archive.clone(),
            draft.part().clone(),
        );
        let (id, format) = (disk.id.clone(), disk.record.format);
        let stage = Stage::first("archive", bytes, bytes.saturating_mul(2));
        relayed(pace, stage, move |tell| {
            root.pack(&file, (&id, format), (&to, &part), tell)
        })
        .await?;
        let (packed, here) = ((&plan.archive, draft.part()), (&plan.root, disk));
        let stage = stage.then("verify", bytes);
        if !self.at.is_packed(packed, here, stage, pace).await? {
            let text = "the disk changed while it was archived";
            let busy = JobError::new(Code::DiskBusy, text);
            return Err(busy.with("disk", disk.id.as_str()).into());
        }
        plan.draft = Some(draft);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        plan.fence = Some(self.at.fence(&plan.root, &plan.disk.id).await?);
        let idle = self.at.idle(&plan.root, [&plan.disk], UseMode::Exclusive);
        idle.await?;
        let (disks, job) = (&self.at.store.disks, &self.at.job.id);
        plan.disk = disks.take_as(&plan.disk, DiskState::Archiving, job).await?;
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let packed = packed_of(&plan.disk);
        match &mut plan.draft {
            Some(draft) => Ok(draft.place(&packed).await?),
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
        if disk.record.state == DiskState::Archived {
            return self.result(&disk.record).map(Some);
        }
        if disk.record.state != DiskState::Archiving {
            return Ok(None);
        }
        let (root, archive) = self.at.both_places().await?;
        let is_packed = self
            .at
            .facts_of(&archive, &packed_of(&disk))
            .await?
            .is_some();
        let is_here = self
            .at
            .facts_of(&root, &context::file_of(&disk))
            .await?
            .is_some();
        // It went only after what is in the archive was compared with it.
        if is_here || !is_packed {
            return Ok(None);
        }
        let _fence = self.at.fence(&root, &disk.id).await?;
        self.forward(&root, &archive, &disk).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let is_begun = |disk: &Disk| disk.record.state == DiskState::Archiving;
        let Some(disk) = self.at.own_disk(&self.params.disk).await?.filter(is_begun) else {
            return Ok(());
        };
        let (root, archive) = self.at.both_places().await?;
        let _fence = self.at.fence(&root, &disk.id).await?;
        let (home, of, job) = (
            Home {
                root: root.clone(),
                file: context::file_of(&disk),
            },
            (&disk.id).into(),
            self.at.job.id.clone(),
        );
        let found: Result<Found, PoolError> = blocking::act(move || home.put_back(&of, &job)).await;
        if found? == Found::Nowhere {
            return self.forward(&root, &archive, &disk).await.map(|_| ());
        }
        let packed = packed_of(&disk);
        if self.at.facts_of(&archive, &packed).await?.is_some() {
            let never = process::Stop::new();
            let pace = Pace::endless(&never);
            // What isn't the same isn't this job's.
            let (there, here) = ((&archive, &packed), (&root, &disk));
            let stage = Stage::only("verify", 0);
            if self.at.is_packed(there, here, stage, &pace).await? {
                let removed: Result<bool, PoolError> =
                    blocking::act(move || archive.unlink(&packed)).await;
                removed?;
            }
        }
        let back = |record: &DiskRecord| catalog::in_state(record, DiskState::Ready, now());
        let finished = self.at.store.disks.finish(&disk, back).await?;
        finished.map(|_| ()).ok_or(Stop::Lost)
    }
}
