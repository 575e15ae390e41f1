//! `create_snapshot` with `base`: the content so far becomes a disk of its own, and the disk goes
//! on as an empty overlay of it: a template in one job.
//!
//! Two renames, under the lock on the disk's file: the disk's file gets the base's name, then the
//! overlay, made beforehand, gets the disk's. Both never replace anything, so the files tell how
//! far a dead claim came, whatever else happened:
//!
//! | in the disk's place | in the base's place | what happened |
//! |---|---|---|
//! | what was there | nothing, or a stranger's | nothing |
//! | nothing | the content | the first rename |
//! | an overlay that names the base | the content | both |
//!
//! Between the two the disk has no file, and nobody misses it: its record says `changing`. The
//! next claim makes the overlay anew (the old one was removed with all that older claims left)
//! and goes on. A job that ends without its effect renames backwards: the overlay is empty, as
//! nobody could write since. In the catalogue the disk's record is the first to say that it's
//! being changed and the last to say that it's done; while it says so, all else is in between.

use crate::{
    blocking, catalog,
    catalog::{NewDisk, Purpose},
    disks::Disk,
    draft::Draft,
    gate::{Expected, Known, Measured},
    pool::{Name, PoolError, Root},
    qemu_img::{Beneath, Image, NewImage},
    task::{Checked, Context, Pace, Steps, context, done, in_place::Alone, is_own, now},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError,
    catalog::{DiskRecord, DiskState, admit_depth},
    protocol::lock::Mode,
    task::{
        image::{ImageFormat, Qcow2Options},
        storage::{NewSnapshot, Preallocation},
    },
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct Base<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) disk: &'a DiskId,
    pub(crate) base: &'a DiskId,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk and all below it.
    chain: Vec<Disk>,
    qcow2: Qcow2Options,
    /// The overlay to come.
    draft: Option<Draft>,
    held: Option<Alone>,
    /// The base, as its intent is written.
    base: Option<Disk>,
}

/// How far the renames came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renamed {
    Nothing,
    First,
    Both,
}

impl Base<'_> {
    /// The base's file: that of the disk, under another name.
    fn base_file(&self, format: ImageFormat) -> Name {
        Name::disk(self.base, format)
    }

    /// The overlay's file: an overlay is a qcow2, whatever the disk was.
    fn overlay_file(&self) -> Name {
        Name::disk(self.disk, ImageFormat::Qcow2)
    }

    /// What the overlay is to be, as the disk was before.
    fn expected(&self, disk: &Disk) -> Expected {
        let format = disk.record.format;
        Expected {
            format: ImageFormat::Qcow2,
            backing: Some((self.base_file(format).file().to_owned(), format)),
            known: Known::default(),
        }
    }

    /// Makes the overlay under its temporary name. Its backing isn't there yet.
    async fn overlay(
        &self,
        root: &Root,
        disk: &Disk,
        qcow2: &Qcow2Options,
        stop: &process::Stop,
    ) -> Result<Draft, Stop> {
        let (tool, size) = (&self.at.store.tool, context::virtual_size(&disk.record)?);
        let measured = tool.measure_empty(size, stop).await;
        let room = measured.map_err(context::tool)?.required;
        let draft = self.at.draft(root, self.disk, room).await?;
        let base = self.base_file(disk.record.format);
        let new = NewImage {
            image: Image {
                path: root.path(draft.part()),
                format: ImageFormat::Qcow2,
            },
            size,
            backing: Beneath::ToCome(base.file().to_owned(), disk.record.format),
            preallocation: Preallocation::Off,
            qcow2: qcow2.clone(),
        };
        tool.create(new, stop).await.map_err(context::tool)?;
        draft.sync().await?;
        let verified = self
            .at
            .verify(root, draft.part(), self.expected(disk), size);
        verified.await?;
        Ok(draft)
    }

    async fn renamed(&self, root: &Root, disk: &Disk) -> Result<Renamed, Stop> {
        let overlay = self.overlay_file();
        let is_overlay = self.at.pass_file(root, &overlay, self.expected(disk)).await;
        if is_overlay.is_ok() {
            return Ok(Renamed::Both);
        }
        let base = self.base_file(disk.record.format);
        let is_there = async |name: Name| {
            let root = root.clone();
            let facts: Result<_, PoolError> = blocking::look(move || root.facts(&name)).await;
            facts.map(|facts| facts.is_some())
        };
        if is_there(context::file_of(disk)).await? {
            return Ok(Renamed::Nothing);
        }
        if is_there(base).await? {
            return Ok(Renamed::First);
        }
        let text = "the disk's file isn't in the pool";
        Err(JobError::new(Code::DiskWrongState, text).into())
    }

    async fn rename(&self, root: &Root, from: Name, to: Name) -> Result<(), Stop> {
        let root = root.clone();
        let renamed: Result<(), PoolError> =
            blocking::act(move || root.rename_new(&from, &to)).await;
        Ok(renamed?)
    }

    /// Writes what is there now, the disk's own record last.
    async fn write(&self, root: &Root, disk: &Disk, base: &Disk) -> Result<Done, Stop> {
        let disks = &self.at.store.disks;
        if base.record.state == DiskState::Creating {
            let measured = self.at.measured(root, base).await?;
            let step = |record: &DiskRecord| of_base(record, measured, disk);
            self.at.settle(base, step).await?;
        }
        if let Some(former) = &base.record.backing {
            disks.drop_child(former, self.disk).await?;
        }
        let (overlay, expected) = (self.overlay_file(), self.expected(disk));
        let passed = self.at.pass_file(root, &overlay, expected).await?;
        let measured = passed.measured();
        let step = |record: &DiskRecord| {
            let record = catalog::made(record, measured, now());
            let record = catalog::with_snapshots(record, std::iter::empty());
            catalog::on_top_of(record, Some(self.base), ImageFormat::Qcow2)
        };
        self.at.settle(disk, step).await?;
        self.result()
    }

    /// The base, if this job is making it or just made it.
    async fn own_base(&self) -> Result<Option<Disk>, Stop> {
        let base = self.at.store.disks.get(self.base).await?;
        Ok(base.filter(|base| {
            is_own(base.record.owner_job.as_ref(), self.at.job)
                && matches!(base.record.state, DiskState::Creating | DiskState::Ready)
        }))
    }

    fn result(&self) -> Result<Done, Stop> {
        done(&NewSnapshot::Base(self.base.clone()))
    }
}

/// The base: what the disk was, with the disk on top.
fn of_base(record: &DiskRecord, measured: Measured, disk: &Disk) -> DiskRecord {
    let record = DiskRecord {
        snapshots: disk.record.snapshots.clone(),
        ..catalog::made(record, measured, now())
    };
    catalog::with_child(&record, &disk.id, now()).unwrap_or(record)
}

impl Steps for Base<'_> {
    type Plan = Plan;

    // Alone on the disk and its base, shared on all below.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = self.at.locks_below(self.disk, Mode::Exclusive).await?;
        locks.insert(context::lock_name(self.base), Mode::Exclusive);
        Ok(locks)
    }

    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(self.disk).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(true).await?;
        let root = self.at.root().await?;
        let disk = self.at.admitted(self.disk, Purpose::Use).await?;
        catalog::admit_change(&disk.id, &disk.record)?;
        self.at.admit_alone(&disk)?;
        let below = self.at.readable_below(&disk).await?;
        admit_depth(&disk.id, below.len() + 2)?;
        context::admit_size(context::virtual_size(&disk.record)?, &pool)?;
        let base_file = self.base_file(disk.record.format);
        self.at.admit_new(&root, self.base, &base_file).await?;
        if disk.record.format != ImageFormat::Qcow2 {
            self.at
                .admit_file(&root, self.disk, &self.overlay_file())
                .await?;
        }
        Ok(Checked::Plan(Plan {
            root,
            chain: std::iter::once(disk).chain(below).collect(),
            qcow2: context::qcow2_options(None, &pool.qcow2)?,
            draft: None,
            held: None,
            base: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (root, disk) = (&plan.root, &plan.chain[0]);
        self.at.gate_idle(root, &plan.chain, pace.stop).await?;
        let overlay = self.overlay(root, disk, &plan.qcow2, pace.stop);
        plan.draft = Some(overlay.await?);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let disk = &plan.chain[0];
        let held = self.at.hold(&plan.root, disk).await?;
        let new = NewDisk {
            pool: self.at.pool.name.clone(),
            format: disk.record.format,
            virtual_size: context::virtual_size(&disk.record)?,
            backing: disk.record.backing.clone(),
        };
        plan.base = Some(self.at.intend_new(self.base, new).await?);
        plan.held = Some(held);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let draft = plan.draft.as_mut().ok_or_else(context::out_of_order)?;
        let (from, format) = (
            context::file_of(&plan.chain[0]),
            plan.chain[0].record.format,
        );
        self.rename(&plan.root, from, self.base_file(format))
            .await?;
        Ok(draft.place(&self.overlay_file()).await?)
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.held, &plan.base) {
            (Some(held), Some(base)) => self.write(&plan.root, &held.disk, base).await,
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let base = self.own_base().await?;
        let Some(held) = self.at.held_before(self.disk).await? else {
            let disk = self.at.store.disks.get(self.disk).await?;
            let is_done = disk.is_some_and(|disk| disk.record.backing.as_ref() == Some(self.base));
            return (is_done && base.is_some())
                .then(|| self.result())
                .transpose();
        };
        let Some(base) = base else { return Ok(None) };
        match self.renamed(&held.root, &held.disk).await? {
            Renamed::Nothing => return Ok(None),
            Renamed::First => {
                let pool = self.at.admit_pool(true).await?;
                let qcow2 = context::qcow2_options(None, &pool.qcow2)?;
                let never = process::Stop::new();
                let overlay = self.overlay(&held.root, &held.disk, &qcow2, &never);
                overlay.await?.place(&self.overlay_file()).await?;
            }
            Renamed::Both => {}
        }
        self.write(&held.root, &held.disk, &base).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(held) = self.at.held_before(self.disk).await? else {
            return Ok(());
        };
        let base = self.own_base().await?;
        let (root, disk) = (&held.root, &held.disk);
        if let Some(base) = base {
            let renamed = self.renamed(root, disk).await?;
            if base.record.state == DiskState::Ready && renamed == Renamed::Both {
                // Others may stand on it by now.
                return self.write(root, disk, &base).await.map(|_| ());
            }
            if renamed == Renamed::Both {
                let (root, overlay) = (root.clone(), self.overlay_file());
                let unlinked: Result<bool, PoolError> =
                    blocking::act(move || root.unlink(&overlay)).await;
                unlinked?;
            }
            if renamed != Renamed::Nothing {
                let file = self.base_file(disk.record.format);
                self.rename(root, file, context::file_of(disk)).await?;
            }
            self.at.withdraw(&base).await?;
        }
        self.at.settle_measured(root, disk).await
    }
}
