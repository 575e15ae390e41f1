//! `resize`: another virtual size, in place.

use crate::{
    blocking,
    catalog::{self, Purpose},
    disks::Disk,
    fence::Fence,
    pool::{PoolError, Root},
    qemu_img::{Image, Info, Resize as Command},
    task::{Checked, Context, Pace, Steps, context, done, is_own, now},
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

pub(crate) struct Resize<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Resize,
}

pub(crate) struct Plan {
    root: Root,
    disk: Disk,
    /// The disks below.
    below: Vec<Disk>,
    command: Command,
    fence: Option<Fence>,
    intent: Option<Disk>,
    info: Option<Info>,
}

impl Plan {
    /// The disk and all below it.
    fn chain(&self) -> Vec<Disk> {
        std::iter::once(&self.disk)
            .chain(&self.below)
            .cloned()
            .collect()
    }
}

impl Resize<'_> {
    /// What the record and the parameters say about each other.
    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        catalog::admit_change(&disk.id, &disk.record)?;
        self.at.admit_use(disk, UseMode::Exclusive)?;
        let (size, is_now) = (
            self.params.size.bytes(),
            context::virtual_size(&disk.record)?,
        );
        if size >= is_now {
            return Ok(());
        }
        if !self.params.shrink {
            let text = "is below the disk's size, and shrink isn't true";
            return Err(JobError::invalid_params("size", text)
                .with("virtual_size", is_now)
                .into());
        }
        if disk.record.snapshots.is_empty() {
            return Ok(());
        }
        let text = "a disk with snapshots can't become smaller";
        Err(JobError::new(Code::DiskWrongState, text).into())
    }

    async fn info(&self, image: &Image) -> Result<Info, Stop> {
        let never = process::Stop::new();
        let info = self.at.store.tool.info(image, &never).await;
        info.map_err(context::tool)
    }

    async fn write(&self, intent: &Disk, info: &Info) -> Result<Done, Stop> {
        let made =
            |record: &DiskRecord| catalog::made(record, info.virtual_size, info.actual_size, now());
        match self.at.store.disks.finish(intent, made).await? {
            Some(_) => self.result(info.virtual_size),
            None => Err(Stop::Lost),
        }
    }

    fn result(&self, virtual_size: u64) -> Result<Done, Stop> {
        done(&params::Resized { virtual_size })
    }

    /// The intent of an earlier claim, with its disk's lock and what the file says now.
    async fn begun(&self) -> Result<Option<(Disk, Fence, Info)>, Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(None);
        };
        let is_own = is_own(disk.record.owner_job.as_ref(), self.at.job);
        if !is_own || disk.record.state != DiskState::Changing {
            return Ok(None);
        }
        let root = self.at.root().await?;
        let fence = self.at.fence(&root, &disk.id).await?;
        let mut chain = vec![disk];
        chain.extend(self.at.store.disks.below(&chain[0]).await?);
        self.at.gate(&root, &chain).await?;
        let info = self.info(&context::image_of(&root, &chain[0])).await?;
        Ok(Some((chain.swap_remove(0), fence, info)))
    }
}

impl Steps for Resize<'_> {
    type Plan = Plan;

    // Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at
            .locks_below(&self.params.disk, Mode::Exclusive)
            .await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(false).await?;
        let disk = self.at.admitted(&self.params.disk, Purpose::Use).await?;
        let size = self.params.size.bytes();
        if disk.record.state == DiskState::Ready && disk.record.virtual_size == Some(size) {
            return self.result(size).map(Checked::Done);
        }
        self.admit(&disk)?;
        context::admit_size(size, &pool)?;
        let below = self.at.readable_below(&disk).await?;
        let root = self.at.root().await?;
        let command = Command {
            image: context::image_of(&root, &disk),
            size,
            shrink: self.params.shrink,
            file_bytes: 0,
        };
        Ok(Checked::Plan(Plan {
            root,
            disk,
            below,
            command,
            fence: None,
            intent: None,
            info: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        self.at.gate(&plan.root, &plan.chain()).await?;
        let (root, file) = (plan.root.clone(), context::file_of(&plan.disk));
        let facts: Result<_, PoolError> = blocking::look(move || root.facts(&file)).await;
        plan.command.file_bytes = facts?.map_or(0, |facts| facts.length);
        // Before the intent, so that a missing tool leaves nothing behind.
        let info = self
            .at
            .store
            .tool
            .info(&plan.command.image, pace.stop)
            .await;
        info.map(|_| ()).map_err(context::tool)
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        plan.fence = Some(self.at.fence(&plan.root, &plan.disk.id).await?);
        let intent = self
            .at
            .store
            .disks
            .take(&plan.disk, &self.at.job.id)
            .await?;
        plan.intent = Some(intent);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let fence = plan.fence.as_ref().ok_or_else(context::out_of_order)?;
        // Again, now that the disk's lock is had: this is the run that writes.
        self.at.gate(&plan.root, &plan.chain()).await?;
        let tool = &self.at.store.tool;
        let resized = tool.resize(&plan.command, fence.share()?, pace.lost).await;
        resized.map_err(context::tool)?;
        let (root, file) = (plan.root.clone(), context::file_of(&plan.disk));
        let synced: Result<(), PoolError> = blocking::act(move || root.sync(&file)).await;
        synced?;
        let info = self.info(&plan.command.image).await?;
        if info.virtual_size != plan.command.size {
            let text = "the disk has another size than asked for";
            return Err(JobError::new(Code::ToolFailed, text).into());
        }
        plan.info = Some(info);
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.intent, &plan.info) {
            (Some(intent), Some(info)) => self.write(intent, info).await,
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let size = self.params.size.bytes();
        match self.begun().await? {
            Some((intent, _fence, info)) if info.virtual_size == size => {
                self.write(&intent, &info).await.map(Some)
            }
            Some(_) => Ok(None),
            None => {
                let disk = self.at.store.disks.get(&self.params.disk).await?;
                let is_done = disk.is_some_and(|disk| {
                    is_own(disk.record.owner_job.as_ref(), self.at.job)
                        && disk.record.state == DiskState::Ready
                        && disk.record.virtual_size == Some(size)
                });
                is_done.then(|| self.result(size)).transpose()
            }
        }
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some((intent, _fence, info)) = self.begun().await? else {
            return Ok(());
        };
        // What the file says, in case the tool came some way.
        self.write(&intent, &info).await.map(|_| ())
    }
}
