//! `adopt_disk`: a file that lies in the pool becomes a disk.
//!
//! Its bytes stay where they are: it's renamed to its place, and an overlay's header is rewritten
//! to name its backing as all of ours do. Both are done with the disk's lock held, so that no
//! earlier claim writes a header that is in use by then.

use crate::{
    blocking,
    catalog::{self, NewDisk},
    disks::Disk,
    fence::Fence,
    gate::{Expected, Known, Passed},
    pool::{Name, PoolError, Root},
    qemu_img::{Info, Relink},
    task::{Checked, Context, Pace, Steps, context, done, is_own, now},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError, SnapshotId,
    catalog::{DiskRecord, DiskState, PoolRecord, admit_depth},
    protocol::lock::Mode,
    task::storage as params,
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct AdoptDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::AdoptDisk,
}

pub(crate) struct Plan {
    root: Root,
    pool: PoolRecord,
    /// What the file must be in the end.
    expected: Expected,
    info: Option<Info>,
    fence: Option<Fence>,
    intent: Option<Disk>,
}

impl AdoptDisk<'_> {
    fn target(&self) -> Name {
        Name::disk(&self.params.disk, self.params.format)
    }

    /// Where the file lies before.
    fn source(&self) -> Name {
        let file = self.params.file.as_ref();
        file.map_or_else(|| self.target(), Name::adopted)
    }

    fn result(&self, record: &DiskRecord) -> Result<Done, Stop> {
        done(&params::Adopted {
            virtual_size: record.virtual_size.unwrap_or_default(),
            format: self.params.format,
        })
    }

    async fn expected(&self) -> Result<Expected, Stop> {
        let chain = match &self.params.backing {
            Some(backing) => self.at.readable_chain(backing).await?,
            None => Vec::new(),
        };
        admit_depth(&self.params.disk, chain.len() + 1)?;
        Ok(Expected {
            format: self.params.format,
            backing: chain.first().map(context::backing_of),
            known: Known::default(),
        })
    }

    /// That the file is what the job says, whatever its header calls its backing.
    async fn inspect(
        &self,
        (root, name): (&Root, &Name),
        expected: &Expected,
        size_max: u64,
    ) -> Result<Passed, Stop> {
        let gone = || JobError::invalid_params("file", "isn't in the pool");
        let format = self.params.format;
        let found = self.at.pass_foreign(root, name, format, size_max).await?;
        let (report, passed) = found.ok_or_else(gone)?;
        let fits = match (&report.backing, &expected.backing) {
            (None, None) => true,
            (Some(backing), Some((_, format))) => {
                let said = backing.format.as_ref();
                said.is_none_or(|said| said.as_bytes() == format.as_str().as_bytes())
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        if fits {
            expected.known.admit(&report)?;
            return Ok(passed);
        }
        let text = "what the file says of its backing isn't what the job says";
        Err(JobError::new(Code::ImageBackingFile, text).into())
    }

    /// Has the header, at its place, name the backing as ours do.
    async fn relink(
        &self,
        root: &Root,
        expected: &Expected,
        fence: &Fence,
        lost: &process::Stop,
    ) -> Result<(), Stop> {
        let target = self.target();
        let as_it_is = self.at.pass_file(root, &target, expected.clone()).await;
        let (Err(_), Some(backing)) = (&as_it_is, &expected.backing) else {
            return as_it_is.map(|_| ());
        };
        // It's still what it was when it came: what lies at its place now is looked at, too.
        let image = self.inspect((root, &target), expected, context::DISK_BYTES_MAX);
        let relink = Relink {
            image: image.await?,
            backing: backing.clone(),
        };
        let tool = &self.at.store.tool;
        let relinked = tool.relink(relink, fence.share()?, lost).await;
        relinked.map_err(context::tool)?;
        let (at, file) = (root.clone(), target.clone());
        let synced: Result<(), PoolError> = blocking::act(move || at.sync(&file)).await;
        synced?;
        let passed = self.at.pass_file(root, &target, expected.clone()).await;
        passed.map(|_| ())
    }

    /// Writes the result on top of the intent.
    async fn write(&self, intent: &Disk, info: &Info) -> Result<Done, Stop> {
        let names = || info.snapshots.iter().map(|snapshot| snapshot.name.as_str());
        let made = |record: &DiskRecord| {
            let made = catalog::made(record, info.measured(), now());
            catalog::with_snapshots(made, names())
        };
        let finished = self.at.store.disks.finish(intent, made).await?;
        self.result(&finished.ok_or(Stop::Lost)?.record)
    }

    /// The intent of an earlier claim, and whether the file is at its place.
    async fn begun(&self) -> Result<Option<(Disk, Root, bool)>, Stop> {
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let is_ours = |disk: &Disk| is_own(disk.record.owner_job.as_ref(), self.at.job);
        let Some(disk) = disk.filter(is_ours) else {
            return Ok(None);
        };
        let root = self.at.root().await?;
        let is_there = self.at.is_taken(&root, &self.target()).await?;
        // With the source there still, the target is somebody else's.
        let is_moved = match &self.params.file {
            Some(_) => !self.at.is_taken(&root, &self.source()).await?,
            None => true,
        };
        Ok(Some((disk, root, is_there && is_moved)))
    }
}

impl Steps for AdoptDisk<'_> {
    type Plan = Plan;

    /// Alone on the disk, shared on its backing and all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = match &self.params.backing {
            Some(backing) => self.at.locks_below(backing, Mode::Shared).await?,
            None => LockSet::new(),
        };
        locks.insert(context::lock_name(&self.params.disk), Mode::Exclusive);
        Ok(locks)
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(true).await?;
        let root = self.at.root().await?;
        if self.params.file.is_some() {
            let (id, target) = (&self.params.disk, self.target());
            self.at.admit_new(&root, id, &target).await?;
        } else {
            let there = self.at.store.disks.get(&self.params.disk).await?;
            let record = there.as_ref().map(|disk| &disk.record);
            catalog::admit_new(&self.params.disk, record, &self.at.job.id)?;
        }
        let gone = || JobError::invalid_params("file", "isn't in the pool");
        if self.at.facts_of(&root, &self.source()).await?.is_none() {
            return Err(gone().into());
        }
        Ok(Checked::Plan(Plan {
            expected: self.expected().await?,
            root,
            pool,
            info: None,
            fence: None,
            intent: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (source, size_max) = (self.source(), context::size_max(&plan.pool));
        let image = self.inspect((&plan.root, &source), &plan.expected, size_max);
        let image = image.await?;
        self.at.idle_foreign(&plan.root, &self.source()).await?;
        let info = self.at.store.tool.info(image, pace.stop).await;
        let info = info.map_err(context::tool)?;
        context::admit_size(info.virtual_size, &plan.pool)?;
        for snapshot in &info.snapshots {
            if snapshot.name.parse::<SnapshotId>().is_err() {
                let text = "the file has a snapshot whose name can't be used";
                return Err(JobError::new(Code::ImageUnsafeFeature, text).into());
            }
        }
        // What lies at its place in the end is what was looked at here.
        plan.expected.known = Known {
            virtual_size: Some(info.virtual_size),
            snapshots: u32::try_from(info.snapshots.len()).ok(),
        };
        plan.info = Some(info);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let info = plan.info.as_ref().ok_or_else(context::out_of_order)?;
        let disk = NewDisk {
            pool: self.at.pool.name.clone(),
            format: self.params.format,
            virtual_size: info.virtual_size,
            backing: self.params.backing.clone(),
        };
        plan.fence = Some(self.at.fence(&plan.root, &self.params.disk).await?);
        self.at.idle_foreign(&plan.root, &self.source()).await?;
        plan.intent = Some(self.at.intend_new(&self.params.disk, disk).await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let fence = plan.fence.as_ref().ok_or_else(context::out_of_order)?;
        // The rename comes first: it shows a later claim that this one has begun.
        let (root, source, target) = (plan.root.clone(), self.source(), self.target());
        let moved: Result<(), PoolError> = blocking::act(move || {
            root.sync(&source)?;
            if source == target {
                return root.sync_names(&source, &target);
            }
            root.rename_new(&source, &target)
        })
        .await;
        moved?;
        self.relink(&plan.root, &plan.expected, fence, pace.lost)
            .await
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.intent, &plan.info) {
            (Some(intent), Some(info)) => self.write(intent, info).await,
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some((intent, root, is_placed)) = self.begun().await? else {
            return Ok(None);
        };
        match intent.record.state {
            DiskState::Creating if is_placed => {}
            DiskState::Creating | DiskState::Deleted => return Ok(None),
            DiskState::Uploading
            | DiskState::Ready
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken => return self.result(&intent.record).map(Some),
        }
        let fence = self.at.fence(&root, &intent.id).await?;
        let (mut expected, target) = (self.expected().await?, self.target());
        expected.known.virtual_size = intent.record.virtual_size;
        let never = process::Stop::new();
        if self.params.file.is_some() {
            self.relink(&root, &expected, &fence, &never).await?;
        }
        let image = match self.at.pass_file(&root, &target, expected).await {
            Ok(image) => image,
            // At its place from the start, and not touched yet.
            Err(_) if self.params.file.is_none() => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = self.at.store.tool.info(image, &never).await;
        if let Some(backing) = &intent.record.backing {
            self.at.store.disks.add_child(backing, &intent.id).await?;
        }
        let info = info.map_err(context::tool)?;
        self.write(&intent, &info).await.map(Some)
    }

    /// The file goes back to where it lay.
    async fn abandon(&self) -> Result<(), Stop> {
        let Some((intent, root, is_placed)) = self.begun().await? else {
            return Ok(());
        };
        if intent.record.state != DiskState::Creating {
            return Ok(());
        }
        let _fence = self.at.fence(&root, &intent.id).await?;
        if is_placed && self.params.file.is_some() {
            let (source, target) = (self.source(), self.target());
            let moved: Result<(), PoolError> =
                blocking::act(move || root.rename_new(&target, &source)).await;
            moved?;
        }
        self.at.withdraw(&intent).await
    }
}
