//! `delete_disk`: to the trash, or for good; a whole tree if asked for, children first.
//!
//! Every file goes by way of the trash, under a name that says which claim put it there: that is
//! how a later claim knows its own effect. Until the first file is there nothing has happened;
//! from then on a later claim goes forward, so that a tree goes as a whole.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Disk,
    fence::Fence,
    pool::PoolError,
    task::{Checked, Context, Pace, Steps, context, done, is_own, now, stage::Stage},
    trash::{Found, Home, purge},
};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    DiskId, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::{
        Target,
        storage::{self as params, DeleteMode},
    },
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct DeleteDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::DeleteDisk,
}

pub(crate) struct Plan {
    /// Children before what they are on top of.
    doomed: Vec<Doomed>,
    /// What the end of each gave free, with that of all above it: of those that went already, and
    /// of those that go.
    freed: BTreeMap<DiskId, u64>,
    fences: Vec<Fence>,
}

/// A disk that goes; with its intent once that is written.
struct Doomed {
    disk: Disk,
    homes: Vec<Home>,
}

impl DeleteDisk<'_> {
    /// Whether a disk may go.
    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        let (pool, job) = (&self.at.pool.name, &self.at.job.id);
        catalog::admit(&disk.id, Some(&disk.record), pool, job, Purpose::Delete)?;
        self.at.admit_use(disk, UseMode::Exclusive)
    }

    /// The disk and, with `tree`, all above it that are still there.
    async fn plan(&self, disk: Disk) -> Result<Plan, Stop> {
        if !self.params.tree {
            catalog::admit_change(&disk.id, &disk.record)?;
        }
        let mut disks = self.at.store.disks.above(&disk).await?;
        disks.push(disk);
        let is_gone = |disk: &Disk| disk.record.state == DiskState::Deleted;
        let is_ours = |disk: &&Disk| is_own(disk.record.owner_job.as_ref(), self.at.job);
        let gone = disks.iter().filter(|disk| is_gone(disk)).filter(is_ours);
        let freed = gone.map(|disk| {
            let freed = disk.record.actual_size.unwrap_or_default();
            (disk.id.clone(), freed)
        });
        let freed = freed.collect();
        disks.retain(|disk| !is_gone(disk));
        for disk in &disks {
            self.admit(disk)?;
        }
        let mut doomed = Vec::new();
        for disk in disks {
            doomed.push(Doomed {
                homes: self.at.homes(&disk).await?,
                disk,
            });
        }
        Ok(Plan {
            doomed,
            freed,
            fences: Vec::new(),
        })
    }

    /// Writes that a disk goes, and what its end gives free: an earlier claim that wrote so has
    /// perhaps removed it already.
    async fn take(&self, doomed: &mut Doomed) -> Result<u64, Stop> {
        let is_ours = is_own(doomed.disk.record.owner_job.as_ref(), self.at.job);
        let mut intent = catalog::taken(&doomed.disk.record, &self.at.job.id, now());
        if self.params.mode != DeleteMode::Trash && !is_ours {
            let (homes, of) = (doomed.homes.clone(), Target::from(&doomed.disk.id));
            let sum: Result<u64, PoolError> =
                blocking::look(move || homes.iter().map(|home| home.allocated(&of)).sum()).await;
            intent.actual_size = Some(sum?);
        }
        doomed.disk = self.at.store.disks.update(&doomed.disk, intent).await?;
        Ok(match self.params.mode {
            DeleteMode::Trash => 0,
            DeleteMode::Unlink | DeleteMode::Wipe => {
                doomed.disk.record.actual_size.unwrap_or_default()
            }
        })
    }

    /// Takes the locks on the files, in one order for everybody, as with all locks.
    async fn lock(&self, plan: &mut Plan) -> Result<(), Stop> {
        let root = self.at.root().await?;
        let ids: BTreeSet<&DiskId> = plan.doomed.iter().map(|doomed| &doomed.disk.id).collect();
        for id in ids {
            plan.fences.push(self.at.fence(&root, id).await?);
        }
        Ok(())
    }

    /// That no other program has any of the files open.
    async fn idle(&self, plan: &Plan) -> Result<(), Stop> {
        for Doomed { disk, homes } in &plan.doomed {
            for home in homes {
                home.idle(&(&disk.id).into()).await?;
            }
        }
        Ok(())
    }

    async fn take_all(&self, plan: &mut Plan) -> Result<(), Stop> {
        for doomed in &mut plan.doomed {
            let own = self.take(doomed).await?;
            let children = doomed.disk.record.children.iter();
            let above: u64 = children.filter_map(|child| plan.freed.get(child)).sum();
            plan.freed.insert(doomed.disk.id.clone(), own + above);
        }
        Ok(())
    }

    fn result(&self, freed: u64) -> Result<Done, Stop> {
        done(&params::Freed { freed })
    }

    /// What is written of a disk that is gone.
    async fn bury(&self, disk: &Disk, freed: u64, with: &BTreeSet<&DiskId>) -> Result<(), Stop> {
        let disks = &self.at.store.disks;
        let is_trashed = self.params.mode == DeleteMode::Trash;
        let backing = disk.record.backing.as_ref();
        // Before the tombstone, which doesn't know the backing any more.
        if let Some(backing) = backing.filter(|id| !is_trashed && !with.contains(id)) {
            disks.drop_child(backing, &disk.id).await?;
        }
        let gone = |record: &DiskRecord| match self.params.mode {
            DeleteMode::Trash => catalog::trashed(record, now()),
            DeleteMode::Unlink | DeleteMode::Wipe => catalog::deleted(record, freed, now()),
        };
        let finished = disks.finish(disk, gone).await?;
        finished.map(|_| ()).ok_or(Stop::Lost)
    }

    /// Puts one disk back as far as its file can be.
    async fn put_back(&self, disk: &Disk) -> Result<(), Stop> {
        let homes = self.at.homes(disk).await?;
        let _fence = self.at.fence(&self.at.root().await?, &disk.id).await?;
        let (of, job) = (Target::from(&disk.id), self.at.job.id.clone());
        let found: Result<Vec<Found>, PoolError> =
            blocking::act(move || homes.iter().map(|home| home.put_back(&of, &job)).collect())
                .await;
        let found = found?;
        let is_nowhere = found.iter().all(|found| *found == Found::Nowhere);
        let step: fn(&DiskRecord, virtbus_wire::Timestamp) -> DiskRecord = match self.params.mode {
            // It can't be undone any more, so it's done.
            DeleteMode::Unlink | DeleteMode::Wipe if is_nowhere => {
                let freed = disk.record.actual_size.unwrap_or_default();
                return self.bury(disk, freed, &BTreeSet::new()).await;
            }
            // Nobody knows how far the overwriting came.
            DeleteMode::Wipe if found.contains(&Found::InTrash) => catalog::broken,
            DeleteMode::Trash | DeleteMode::Unlink | DeleteMode::Wipe => catalog::given_back,
        };
        let finished = self
            .at
            .store
            .disks
            .finish(disk, |record| step(record, now()));
        finished.await?.map(|_| ()).ok_or(Stop::Lost)
    }

    /// Whether an earlier claim of this job moved any of these files to the trash, or has removed
    /// all of them.
    async fn has_begun(&self, plan: &Plan) -> Result<bool, Stop> {
        let job = self.at.job.id.clone();
        let each = plan.doomed.iter();
        let homes: Vec<(Target, Home)> = each
            .flat_map(|doomed| {
                doomed
                    .homes
                    .iter()
                    .map(|home| ((&doomed.disk.id).into(), home.clone()))
            })
            .collect();
        let removes = self.params.mode != DeleteMode::Trash;
        let begun: Result<bool, PoolError> = blocking::look(move || {
            let mut is_left = false;
            for (of, home) in &homes {
                if home.is_left_by(of, &job)? {
                    return Ok(true);
                }
                is_left |= !home.is_gone(of)?;
            }
            Ok(removes && !is_left)
        })
        .await;
        Ok(begun?)
    }
}

impl Steps for DeleteDisk<'_> {
    type Plan = Plan;

    // Alone on the disk and, with `tree`, on all above it; shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = self
            .at
            .locks_below(&self.params.disk, Mode::Exclusive)
            .await?;
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        if let Some(disk) = disk.filter(|_| self.params.tree) {
            let above = self.at.store.disks.above(&disk).await?;
            let names = above.iter().map(|disk| context::lock_name(&disk.id));
            locks.extend(names.map(|name| (name, Mode::Exclusive)));
        }
        Ok(locks)
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let found = self.at.store.disks.get(&self.params.disk).await?;
        let state = found.as_ref().map(|disk| disk.record.state);
        let is_trashed = self.at.is_so(found.as_ref(), DiskState::Trashed).is_some();
        let is_enough = state == Some(DiskState::Deleted)
            || is_trashed && self.params.mode == DeleteMode::Trash && !self.params.tree;
        if is_enough {
            return self.result(0).map(Checked::Done);
        }
        let disk = self.at.admitted(&self.params.disk, Purpose::Delete).await?;
        self.plan(disk).await.map(Checked::Plan)
    }

    async fn work(&self, _: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.lock(plan).await?;
        self.idle(plan).await?;
        self.take_all(plan).await
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let claim = (&self.at.job.id, self.at.job.claim);
        for doomed in &plan.doomed {
            for home in &doomed.homes {
                home.discard(&(&doomed.disk.id).into(), claim).await?;
            }
        }
        // All are in the trash before one is removed: a later claim sees that it's begun.
        let bytes = |doomed: &Doomed| doomed.disk.record.actual_size.unwrap_or_default();
        let mut stage = Stage::first("wipe", 0, plan.doomed.iter().map(bytes).sum());
        for doomed in &plan.doomed {
            let of = Target::from(&doomed.disk.id);
            stage = stage.then("wipe", bytes(doomed));
            purge(&doomed.homes, &of, self.params.mode, stage, pace).await?;
        }
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let ids: BTreeSet<&DiskId> = plan.doomed.iter().map(|doomed| &doomed.disk.id).collect();
        for doomed in &plan.doomed {
            let freed = plan.freed.get(&doomed.disk.id).copied();
            self.bury(&doomed.disk, freed.unwrap_or_default(), &ids)
                .await?;
        }
        if self.params.mode != DeleteMode::Trash {
            plan.fences.drain(..).for_each(Fence::retire);
        }
        let freed = plan.freed.get(&self.params.disk).copied();
        self.result(freed.unwrap_or_default())
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(None);
        };
        if !is_own(disk.record.owner_job.as_ref(), self.at.job) {
            return Ok(None);
        }
        // The disk itself goes last, so it tells of the whole tree.
        match disk.record.state {
            DiskState::Deleted => {
                return self
                    .result(disk.record.actual_size.unwrap_or_default())
                    .map(Some);
            }
            DiskState::Trashed if self.params.mode == DeleteMode::Trash => {
                return self.result(0).map(Some);
            }
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Ready
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken => {}
        }
        let mut plan = self.plan(disk).await?;
        if !self.has_begun(&plan).await? {
            return Ok(None);
        }
        let never = process::Stop::new();
        self.lock(&mut plan).await?;
        self.take_all(&mut plan).await?;
        self.effect(&mut plan, &Pace::endless(&never)).await?;
        self.publish(&mut plan).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(());
        };
        let mut ids: Vec<DiskId> = Vec::new();
        for disk in self
            .at
            .store
            .disks
            .above(&disk)
            .await?
            .iter()
            .chain([&disk])
        {
            let is_own = is_own(disk.record.owner_job.as_ref(), self.at.job);
            if is_own && can_be_put_back(disk.record.state) {
                ids.push(disk.id.clone());
            }
        }
        for id in ids {
            // Read anew: the one before may have been its child.
            if let Some(disk) = self.at.store.disks.get(&id).await? {
                self.put_back(&disk).await?;
            }
        }
        Ok(())
    }
}

/// Whether a disk of this state is one that the job began with, and had not deleted.
fn can_be_put_back(state: DiskState) -> bool {
    match state {
        DiskState::Changing | DiskState::Archived | DiskState::Missing | DiskState::Broken => true,
        DiskState::Creating
        | DiskState::Uploading
        | DiskState::Ready
        | DiskState::Archiving
        | DiskState::Trashed
        | DiskState::Deleted => false,
    }
}
