//! `rebase`: a disk onto another backing, or onto none; what it shows stays.
//!
//! The work is done on a file beside the disk's: without a backing a copy of all that the disk
//! shows, else a copy of its file in which the tool sets down what the two backings hold
//! differently. It can be stopped at any time, and fails without a trace. The effect is one rename
//! over the disk's file, under the lock on it, and shows in the file's header.

use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    draft::Draft,
    gate::{Expected, Known, Measured},
    pool::Root,
    qemu_img::{Copy, Image, Info, Rebase as Command, command::bytes_max},
    task::{
        Checked, Context, Pace, Steps, context, done, in_place::Alone, is_own, now, stage::Stage,
    },
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState, UseMode, admit_depth},
    protocol::lock::Mode,
    task::{
        image::{Compress, ImageFormat},
        storage as params,
    },
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct Rebase<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Rebase,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk and all below it now.
    chain: Vec<Disk>,
    /// The new backing and all below it.
    onto: Vec<Disk>,
    draft: Option<Draft>,
    made: Option<Measured>,
    held: Option<Alone>,
}

impl Rebase<'_> {
    fn admit(&self, disk: &Disk, onto: &[Disk]) -> Result<(), Stop> {
        if disk.record.format != ImageFormat::Qcow2 {
            let text = "only a qcow2 can have a backing";
            return Err(JobError::invalid_params("disk", text).into());
        }
        if onto.iter().any(|below| below.id == disk.id) {
            let text = "stands on the disk itself";
            return Err(JobError::invalid_params("backing", text).into());
        }
        if !disk.record.snapshots.is_empty() {
            let text = "the disk's snapshots would show what the new backing holds";
            return Err(JobError::new(Code::DiskWrongState, text).into());
        }
        self.at.admit_alone(disk)
    }

    /// What the disk's file is to be.
    async fn expected(&self) -> Result<Expected, Stop> {
        let backing = match &self.params.backing {
            Some(id) => self.at.store.disks.get(id).await?,
            None => None,
        };
        Ok(Expected {
            format: ImageFormat::Qcow2,
            backing: backing.as_ref().map(context::backing_of),
            known: Known::default(),
        })
    }

    /// A copy of all that the disk shows.
    async fn flatten(&self, plan: &Plan, info: &Info, pace: &Pace<'_>) -> Result<Draft, Stop> {
        let (tool, disk) = (&self.at.store.tool, &plan.chain[0]);
        let source = self.at.pass(&plan.root, &plan.chain).await?;
        let measured = tool.measure(source, pace.stop).await;
        let measure = measured.map_err(context::tool)?;
        let draft = self.at.draft(&plan.root, &disk.id, measure.required);
        let draft = draft.await?;
        let cache = self.at.cache(&plan.root).await?;
        let copy = Copy {
            source: self.at.pass(&plan.root, &plan.chain).await?,
            target: Image {
                path: plan.root.path(draft.part()),
                format: ImageFormat::Qcow2,
            },
            compress: Compress::None,
            subformat: None,
            qcow2: info.qcow2_options(),
            cache,
            bandwidth: self.at.pool.config.bandwidth,
            bytes_max: bytes_max(measure.fully_allocated),
        };
        let stage = Stage::only("flatten", info.virtual_size);
        let rise = |percent| stage.tell(pace, percent);
        let copied = tool.convert(copy, pace.stop, rise).await;
        copied.map_err(context::tool)?;
        Ok(draft)
    }

    /// A copy of the disk's file, put onto the new backing.
    async fn put_onto(&self, plan: &Plan, info: &Info, pace: &Pace<'_>) -> Result<Draft, Stop> {
        let (root, disk) = (&plan.root, &plan.chain[0]);
        let facts = self.at.facts_there(root, disk).await?;
        let all = facts.allocated.saturating_add(info.virtual_size);
        let copy = Stage::first("copy", facts.allocated, all);
        let growth = self.growth(plan).await?.min(info.virtual_size);
        let draft = self.at.copied(root, disk, growth, copy, pace).await?;
        let cache = self.at.cache(root).await?;
        // The tool opens the copy, so it's the copy that has to be what the catalogue says.
        let (copied, below) = (context::expected(disk, plan.chain.get(1)), &plan.chain[1..]);
        let command = Command {
            image: self.at.pass_on(root, draft.part(), copied, below).await?,
            backing: self.at.pass(root, &plan.onto).await?,
            cache,
            bytes_max: bytes_max(facts.length.saturating_add(info.virtual_size)),
        };
        let stage = copy.then("rebase", info.virtual_size);
        let rise = |percent| stage.tell(pace, percent);
        let ran = self.at.store.tool.rebase(command, pace.stop, rise).await;
        ran.map_err(context::tool)?;
        Ok(draft)
    }

    /// The most that the disk's file grows by, in bytes: what is only in the old or only in the new
    /// backing, with all below, may have to be set down.
    async fn growth(&self, plan: &Plan) -> Result<u64, Stop> {
        let mut growth = 0_u64;
        for disk in apart(&plan.chain[1..], &plan.onto) {
            let facts = self.at.facts_there(&plan.root, disk).await?;
            growth = growth.saturating_add(facts.allocated);
        }
        Ok(growth)
    }

    /// Writes what is there now, the disk's own record last: it names the former backing.
    async fn write(&self, held: &Alone, is_now: Measured) -> Result<Done, Stop> {
        let (disks, disk) = (&self.at.store.disks, &held.disk);
        let (former, wanted) = (&disk.record.backing, &self.params.backing);
        if let Some(former) = former
            .as_ref()
            .filter(|former| Some(*former) != wanted.as_ref())
        {
            disks.drop_child(former, &disk.id).await?;
        }
        let step = |record: &DiskRecord| {
            let record = catalog::made(record, is_now, now());
            catalog::on_top_of(record, wanted.as_ref(), ImageFormat::Qcow2)
        };
        self.at.settle(disk, step).await?;
        self.result()
    }

    /// How large the file is, if it's as asked for.
    async fn rebased(&self, held: &Alone) -> Result<Option<Measured>, Stop> {
        let (file, expected) = (context::file_of(&held.disk), self.expected().await?);
        let passed = self.at.pass_file(&held.root, &file, expected).await;
        Ok(passed.ok().map(|passed| passed.measured()))
    }

    fn result(&self) -> Result<Done, Stop> {
        let backing = self.params.backing.clone();
        done(&params::Rebased { backing })
    }
}

/// What two chains don't have in common.
fn apart<'a>(one: &'a [Disk], other: &'a [Disk]) -> impl Iterator<Item = &'a Disk> {
    let is_in = |chain: &[Disk], disk: &Disk| chain.iter().any(|there| there.id == disk.id);
    let of_one = one.iter().filter(move |disk| !is_in(other, disk));
    of_one.chain(other.iter().filter(move |disk| !is_in(one, disk)))
}

impl Steps for Rebase<'_> {
    type Plan = Plan;

    // Alone on the disk, shared on all below it, before and after.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = match &self.params.backing {
            Some(backing) => self.at.locks_below(backing, Mode::Shared).await?,
            None => LockSet::new(),
        };
        let disk = self.at.locks_below(&self.params.disk, Mode::Exclusive);
        locks.extend(disk.await?);
        Ok(locks)
    }

    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(&self.params.disk).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let disk = self.at.admitted(&self.params.disk, Purpose::Use).await?;
        let is_ready = disk.record.state == DiskState::Ready;
        if is_ready && disk.record.backing == self.params.backing {
            return self.result().map(Checked::Done);
        }
        let onto = match &self.params.backing {
            Some(backing) => self.at.readable_chain(backing).await?,
            None => Vec::new(),
        };
        self.admit(&disk, &onto)?;
        let below = self.at.readable_below(&disk).await?;
        if onto.len() > below.len() {
            let above = self.at.store.disks.height(&disk).await?;
            admit_depth(&disk.id, onto.len() + 1 + above)?;
        }
        Ok(Checked::Plan(Plan {
            root: self.at.root().await?,
            chain: std::iter::once(disk).chain(below).collect(),
            onto,
            draft: None,
            made: None,
            held: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let root = &plan.root;
        let info = self.at.gate_idle(root, &plan.chain, pace.stop).await?;
        let read = plan.chain[1..].iter().chain(&plan.onto);
        self.at.idle(root, read, UseMode::Shared).await?;
        let draft = match &self.params.backing {
            None => self.flatten(plan, &info, pace).await?,
            Some(_) => self.put_onto(plan, &info, pace).await?,
        };
        draft.sync().await?;
        let (expected, size) = (self.expected().await?, info.virtual_size);
        let made = self.at.verify(root, draft.part(), expected, size);
        plan.made = Some(made.await?);
        plan.draft = Some(draft);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let disk = &plan.chain[0];
        let read = plan.chain[1..].iter().chain(&plan.onto);
        self.at.idle(&plan.root, read, UseMode::Shared).await?;
        plan.held = Some(self.at.hold(&plan.root, disk).await?);
        // After the intent, by which whoever takes it back finds the way.
        if let Some(backing) = &self.params.backing {
            self.at.store.disks.add_child(backing, &disk.id).await?;
        }
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let file = context::file_of(&plan.chain[0]);
        let draft = plan.draft.as_mut().ok_or_else(context::out_of_order)?;
        Ok(draft.replace(&file).await?)
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.held, plan.made) {
            (Some(held), Some(made)) => self.write(held, made).await,
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        if let Some(held) = self.at.held_before(&self.params.disk).await? {
            return match self.rebased(&held).await? {
                Some(is_now) => self.write(&held, is_now).await.map(Some),
                None => Ok(None),
            };
        }
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let is_done = disk.is_some_and(|disk| {
            is_own(disk.record.owner_job.as_ref(), self.at.job)
                && disk.record.state == DiskState::Ready
                && disk.record.backing == self.params.backing
        });
        is_done.then(|| self.result()).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(held) = self.at.held_before(&self.params.disk).await? else {
            return Ok(());
        };
        if let Some(is_now) = self.rebased(&held).await? {
            return self.write(&held, is_now).await.map(|_| ());
        }
        if let Some(backing) = &self.params.backing {
            let disks = &self.at.store.disks;
            disks.drop_child(backing, &held.disk.id).await?;
        }
        self.at.settle_measured(&held.root, &held.disk).await
    }
}
