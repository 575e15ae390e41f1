//! `resize`: another virtual size, in place.

use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    fence::Fence,
    gate::Measured,
    pool::Root,
    qemu_img::Resize as Command,
    task::{Checked, Context, Pace, Steps, context, done, is_own, now},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::{image::ImageFormat, storage as params},
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct Resize<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Resize,
}

pub(crate) struct Plan {
    root: Root,
    disk: Disk,
    /// The disks below.
    below: Vec<Disk>,
    fence: Option<Fence>,
    intent: Option<Disk>,
    made: Option<Measured>,
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
        if !is_resizable(disk.record.format) {
            let text = "only a qcow2 or a raw disk can get another size";
            return Err(JobError::invalid_params("disk", text).into());
        }
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

    async fn write(&self, intent: &Disk, is_now: Measured) -> Result<Done, Stop> {
        let made = |record: &DiskRecord| catalog::made(record, is_now, now());
        match self.at.store.disks.finish(intent, made).await? {
            Some(_) => self.result(is_now.virtual_size),
            None => Err(Stop::Lost),
        }
    }

    fn result(&self, virtual_size: u64) -> Result<Done, Stop> {
        done(&params::Resized { virtual_size })
    }

    /// The intent of an earlier claim, with its disk's lock.
    async fn begun(&self) -> Result<Option<(Root, Disk, Fence)>, Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(None);
        };
        let is_own = is_own(disk.record.owner_job.as_ref(), self.at.job);
        if !is_own || disk.record.state != DiskState::Changing {
            return Ok(None);
        }
        let root = self.at.root().await?;
        let fence = self.at.fence(&root, &disk.id).await?;
        Ok(Some((root, disk, fence)))
    }

    /// How large a file is that the job may have changed; none if it can't be the job's doing: it
    /// isn't what any of its disk's files may be, or has a size that's neither the old nor the new.
    async fn left(&self, root: &Root, intent: &Disk) -> Result<Option<Measured>, Stop> {
        let is_now = match self.at.measured(root, intent).await {
            Err(Stop::Failed(error)) if !error.retryable => return Ok(None),
            measured => measured?,
        };
        let sizes = [intent.record.virtual_size, Some(self.params.size.bytes())];
        Ok(Some(is_now).filter(|is_now| sizes.contains(&Some(is_now.virtual_size))))
    }
}

/// Whether qemu can give an image of this format another size.
pub(crate) fn is_resizable(format: ImageFormat) -> bool {
    match format {
        ImageFormat::Qcow2 | ImageFormat::Raw => true,
        ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhdx | ImageFormat::Vpc => false,
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
        Ok(Checked::Plan(Plan {
            root,
            disk,
            below,
            fence: None,
            intent: None,
            made: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        // Before the intent, so that a missing tool leaves nothing behind.
        let chain = plan.chain();
        let idle = self.at.gate_idle(&plan.root, &chain, pace.stop);
        idle.await.map(|_| ())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let held = self.at.hold(&plan.root, &plan.disk).await?;
        plan.fence = Some(held.fence);
        plan.intent = Some(held.disk);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let fence = plan.fence.as_ref().ok_or_else(context::out_of_order)?;
        // Again, now that the disk's lock is had: this is the run that writes.
        let command = Command {
            image: self.at.pass(&plan.root, &plan.chain()).await?,
            size: self.params.size.bytes(),
            shrink: self.params.shrink,
        };
        let tool = &self.at.store.tool;
        let resized = tool.resize(command, fence.share()?, pace.lost).await;
        resized.map_err(context::tool)?;
        self.at.sync(&plan.root, &plan.disk).await?;
        let intent = plan.intent.as_ref().ok_or_else(context::out_of_order)?;
        let is_now = self.at.measured(&plan.root, intent).await?;
        if is_now.virtual_size != self.params.size.bytes() {
            let text = "the disk has another size than asked for";
            return Err(JobError::new(Code::ToolFailed, text).into());
        }
        plan.made = Some(is_now);
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.intent, plan.made) {
            (Some(intent), Some(is_now)) => self.write(intent, is_now).await,
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let size = self.params.size.bytes();
        if let Some((root, intent, _fence)) = self.begun().await? {
            let is_now = self.at.measured(&root, &intent).await?;
            if is_now.virtual_size != size {
                return Ok(None);
            }
            return self.write(&intent, is_now).await.map(Some);
        }
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let is_done = disk.is_some_and(|disk| {
            is_own(disk.record.owner_job.as_ref(), self.at.job)
                && disk.record.state == DiskState::Ready
                && disk.record.virtual_size == Some(size)
        });
        is_done.then(|| self.result(size)).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some((root, intent, _fence)) = self.begun().await? else {
            return Ok(());
        };
        // What the file says, in case the tool came some way.
        match self.left(&root, &intent).await? {
            Some(is_now) => self.write(&intent, is_now).await.map(|_| ()),
            None => self.at.give_back(&intent).await,
        }
    }
}
