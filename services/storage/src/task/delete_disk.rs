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
    pool::{Folder, Name, PoolError, Root},
    task::{Checked, Context, Pace, Steps, context, done, is_own, new_disk::tell, now},
};
use std::collections::BTreeSet;
use tokio::sync::mpsc::{Sender, channel};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError, JobId, Timestamp,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::storage::{self as params, DeleteMode},
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
    root: Root,
    /// Children before what they are on top of; with their intents once these are written.
    disks: Vec<Disk>,
    fences: Vec<Fence>,
    /// Bytes that are free again, by disk.
    freed: Vec<u64>,
}

impl DeleteDisk<'_> {
    /// Whether a disk may go.
    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        let (pool, job) = (&self.at.pool.name, &self.at.job.id);
        catalog::admit(&disk.id, Some(&disk.record), pool, job, Purpose::Delete)?;
        if disk.record.state == DiskState::Archived {
            let text = "this service can't reach the archive";
            return Err(JobError::new(Code::PoolUnsupported, text).into());
        }
        self.at.admit_use(disk, UseMode::Exclusive)
    }

    /// The disk and, with `tree`, all above it that are still there.
    async fn doomed(&self, disk: Disk) -> Result<Vec<Disk>, Stop> {
        if !self.params.tree {
            catalog::admit_change(&disk.id, &disk.record)?;
        }
        let mut disks = self.at.store.disks.above(&disk).await?;
        disks.push(disk);
        disks.retain(|disk| disk.record.state != DiskState::Deleted);
        for disk in &disks {
            self.admit(disk)?;
        }
        Ok(disks)
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
    async fn put_back(&self, root: &Root, disk: &Disk) -> Result<(), Stop> {
        let _fence = self.at.fence(root, &disk.id).await?;
        let (at, job, file) = (root.clone(), self.at.job.id.clone(), context::file_of(disk));
        let id = disk.id.clone();
        let found: Result<Found, PoolError> =
            blocking::act(move || restore(&at, &id, &job, &file)).await;
        let step: fn(&DiskRecord, Timestamp) -> DiskRecord = match (found?, self.params.mode) {
            (Found::InPlace, _) | (Found::Nowhere, DeleteMode::Trash) => catalog::given_back,
            // Nobody knows how far the overwriting came.
            (Found::InTrash, DeleteMode::Wipe) => catalog::broken,
            (Found::InTrash, DeleteMode::Trash | DeleteMode::Unlink) => catalog::given_back,
            // It can't be undone any more, so it's done.
            (Found::Nowhere, DeleteMode::Unlink | DeleteMode::Wipe) => {
                return self.bury(disk, 0, &BTreeSet::new()).await;
            }
        };
        let finished = self
            .at
            .store
            .disks
            .finish(disk, |record| step(record, now()));
        finished.await?.map(|_| ()).ok_or(Stop::Lost)
    }

    /// Whether an earlier claim of this job moved any of these files to the trash.
    async fn has_begun(&self, root: &Root, disks: &[Disk]) -> Result<bool, Stop> {
        let (root, job) = (root.clone(), self.at.job.id.clone());
        let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id.clone()).collect();
        let begun: Result<bool, PoolError> = blocking::look(move || {
            let trash = root.list(Folder::Trash)?;
            let is_own = |name: &Name| {
                name.as_trash()
                    .is_some_and(|(disk, by, _)| by == job && ids.contains(&disk))
            };
            Ok(trash.iter().any(is_own))
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
        let is_enough = |state| match state {
            DiskState::Deleted => true,
            DiskState::Trashed => self.params.mode == DeleteMode::Trash && !self.params.tree,
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Ready
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Missing
            | DiskState::Broken => false,
        };
        if state.is_some_and(is_enough) {
            return self.result(0).map(Checked::Done);
        }
        let disk = self.at.admitted(&self.params.disk, Purpose::Delete).await?;
        let disks = self.doomed(disk).await?;
        let root = self.at.root().await?;
        Ok(Checked::Plan(Plan {
            root,
            disks,
            fences: Vec::new(),
            freed: Vec::new(),
        }))
    }

    async fn work(&self, _: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        // In one order for everybody, as with all locks.
        let ids: BTreeSet<&DiskId> = plan.disks.iter().map(|disk| &disk.id).collect();
        for id in ids {
            plan.fences.push(self.at.fence(&plan.root, id).await?);
        }
        for disk in &mut plan.disks {
            *disk = self.at.store.disks.take(disk, &self.at.job.id).await?;
        }
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        for disk in &plan.disks {
            let freed = Removal {
                root: plan.root.clone(),
                file: context::file_of(disk),
                trash: Name::trash(&disk.id, &self.at.job.id, self.at.job.claim),
                disk: disk.id.clone(),
                mode: self.params.mode,
            };
            plan.freed.push(freed.run(pace).await?);
        }
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let ids: BTreeSet<&DiskId> = plan.disks.iter().map(|disk| &disk.id).collect();
        for (disk, freed) in plan.disks.iter().zip(&plan.freed) {
            self.bury(disk, *freed, &ids).await?;
        }
        if self.params.mode != DeleteMode::Trash {
            plan.fences.drain(..).for_each(Fence::retire);
        }
        self.result(plan.freed.iter().sum())
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
        let disks = self.doomed(disk).await?;
        let root = self.at.root().await?;
        if !self.has_begun(&root, &disks).await? {
            return Ok(None);
        }
        let mut plan = Plan {
            root,
            disks,
            fences: Vec::new(),
            freed: Vec::new(),
        };
        let never = process::Stop::new();
        let pace = Pace {
            stop: &never,
            lost: &never,
            progress: &|_| {},
            keep: &drop,
            reached: &|_| Ok(()),
        };
        self.intend(&mut plan).await?;
        self.effect(&mut plan, &pace).await?;
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
            if is_own && disk.record.state == DiskState::Changing {
                ids.push(disk.id.clone());
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let root = self.at.root().await?;
        for id in ids {
            // Read anew: the one before may have been its child.
            if let Some(disk) = self.at.store.disks.get(&id).await? {
                self.put_back(&root, &disk).await?;
            }
        }
        Ok(())
    }
}

/// One file on its way out.
struct Removal {
    root: Root,
    disk: DiskId,
    file: Name,
    trash: Name,
    mode: DeleteMode,
}

impl Removal {
    /// Bytes that are free again.
    async fn run(self, pace: &Pace<'_>) -> Result<u64, Stop> {
        let (root, file, trash) = (self.root.clone(), self.file.clone(), self.trash.clone());
        let moved: Result<(), PoolError> = blocking::act(move || match root.facts(&file)? {
            Some(_) => root.rename_new(&file, &trash),
            None => Ok(()),
        })
        .await;
        moved?;
        if self.mode == DeleteMode::Trash {
            return Ok(0);
        }
        let (tell_to, mut told) = channel(1);
        let lost = pace.lost.clone();
        let removed = blocking::act(move || self.remove(&tell_to, &lost));
        let telling = async {
            while let Some((bytes, total)) = told.recv().await {
                #[expect(clippy::cast_precision_loss, reason = "a percentage, for people")]
                let percent = bytes as f64 * 100.0 / total as f64;
                tell(pace, "wipe", percent, total);
            }
        };
        let (freed, ()) = tokio::join!(removed, telling);
        Ok(freed?)
    }

    /// Removes whatever of the disk is in the trash, by this claim, an older one, or an older job.
    fn remove(&self, tell: &Sender<(u64, u64)>, lost: &process::Stop) -> Result<u64, PoolError> {
        let mut freed = 0;
        for name in in_trash(&self.root, &self.disk)? {
            if self.mode == DeleteMode::Wipe {
                self.root.wipe(&name, |bytes, total| {
                    // Progress that nobody has time for is left out.
                    tell.try_send((bytes, total)).ok();
                    !lost.is_asked()
                })?;
            }
            let facts = self.root.facts(&name)?;
            if self.root.unlink(&name)? {
                freed += facts.map_or(0, |facts| facts.allocated);
            }
        }
        Ok(freed)
    }
}

fn in_trash(root: &Root, disk: &DiskId) -> Result<Vec<Name>, PoolError> {
    let mut names = root.list(Folder::Trash)?;
    names.retain(|name| name.as_trash().is_some_and(|(of, _, _)| of == *disk));
    Ok(names)
}

/// Where a file was that is to be in its place.
enum Found {
    InPlace,
    InTrash,
    Nowhere,
}

/// Brings a file back that this job had moved to the trash.
fn restore(root: &Root, disk: &DiskId, job: &JobId, file: &Name) -> Result<Found, PoolError> {
    if root.facts(file)?.is_some() {
        return Ok(Found::InPlace);
    }
    let names = in_trash(root, disk)?;
    let is_own = |name: &&Name| name.as_trash().is_some_and(|(_, by, _)| by == *job);
    match names.iter().find(is_own) {
        Some(name) => root.rename_new(name, file).map(|()| Found::InTrash),
        None => Ok(Found::Nowhere),
    }
}
