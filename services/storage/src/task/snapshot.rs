//! `create_snapshot` inside the file, `revert_snapshot`, `delete_snapshot`: one tool, three
//! letters.
//!
//! The fence is the lock on the disk's file. Whether an earlier claim made or removed a snapshot
//! shows in the file. Whether it put the disk back to one doesn't; that claim marks the lock
//! before, and after it reverting is done once more, which changes nothing if it was done: nobody
//! else has written since. A tool that was killed in the middle leaves the disk as it was or as
//! asked, and at worst clusters that nothing refers to: `check_disk` gives them back.

use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    fence::Mark,
    pool::Root,
    qemu_img::{Act, Info, Snapshot as Command},
    space::Reservation,
    task::{Checked, Context, Pace, Steps, context, done, in_place::Alone, is_own, now},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError, SnapshotId,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
    task::{
        image::ImageFormat,
        storage::{self as params, NewSnapshot},
    },
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

/// The most snapshots in a disk: a tool reads all of them each time it opens the file.
pub(super) const SNAPSHOTS_MAX: usize = 64;
/// Bytes of a disk for each byte that the tables of a snapshot take at most.
const DISK_BYTES_PER_TABLE_BYTE: u64 = 8192;

pub(crate) struct Snapshot<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) disk: &'a DiskId,
    pub(crate) name: &'a SnapshotId,
    pub(crate) act: Act,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk and all below it.
    chain: Vec<Disk>,
    _room: Option<Reservation>,
    held: Option<Alone>,
    info: Option<Info>,
}

impl Snapshot<'_> {
    /// What the record says about it.
    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        if disk.record.format != ImageFormat::Qcow2 {
            let text = "only a qcow2 can hold snapshots";
            return Err(JobError::invalid_params("disk", text).into());
        }
        self.admit_name(disk.record.snapshots.contains(self.name))?;
        match self.act {
            Act::Create if disk.record.snapshots.len() >= SNAPSHOTS_MAX => {
                let text = "the disk has too many snapshots";
                let error = JobError::new(Code::DiskWrongState, text);
                return Err(error.with("snapshots_max", SNAPSHOTS_MAX).into());
            }
            // What the disks above read would be something else.
            Act::Revert => catalog::admit_change(&disk.id, &disk.record)?,
            Act::Create | Act::Delete => {}
        }
        self.at.admit_alone(disk)
    }

    fn admit_name(&self, is_there: bool) -> Result<(), JobError> {
        let (code, text) = match (self.act, is_there) {
            (Act::Create, true) => (Code::SnapshotExists, "the disk has a snapshot of this id"),
            (Act::Revert, false) => (
                Code::SnapshotNotFound,
                "the disk has no snapshot of this id",
            ),
            (Act::Create, false) | (Act::Revert, true) | (Act::Delete, _) => return Ok(()),
        };
        Err(JobError::new(code, text).with("snapshot", self.name.as_str()))
    }

    fn is_in(&self, info: &Info) -> bool {
        info.snapshots
            .iter()
            .any(|kept| kept.name == self.name.as_str())
    }

    /// Room for the tables of a new snapshot.
    async fn room(&self, root: &Root, disk: &Disk) -> Result<Option<Reservation>, Stop> {
        if self.act != Act::Create {
            return Ok(None);
        }
        let tables = context::virtual_size(&disk.record)? / DISK_BYTES_PER_TABLE_BYTE;
        let file = context::file_of(disk);
        self.at.room(root, &file, tables).await.map(Some)
    }

    /// Runs the tool, if the file isn't as asked for already. What the file holds then.
    async fn apply(&self, held: &mut Alone, lost: &process::Stop) -> Result<Info, Stop> {
        let before = self.at.info(&held.root, &held.was).await?;
        let is_there = self.is_in(&before);
        let id = before
            .snapshots
            .iter()
            .find(|kept| kept.name == self.name.as_str());
        let name = match (self.act, id) {
            (Act::Create, Some(_)) | (Act::Delete, None) => return Ok(before),
            (Act::Create, None) | (Act::Delete, Some(_)) => self.name.to_string(),
            (Act::Revert, Some(kept)) => kept.id.clone(),
            (Act::Revert, None) => {
                self.admit_name(is_there)?;
                return Ok(before);
            }
        };
        let chain = self.at.chain_of(&held.was).await?;
        let image = self.at.pass(&held.root, &chain).await?;
        held.fence.begin(Mark::default()).await?;
        let command = Command {
            image,
            act: self.act,
            name,
        };
        let tool = &self.at.store.tool;
        let ran = tool.snapshot(command, held.fence.share()?, lost).await;
        if ran.is_err() && self.act == Act::Revert {
            // The disk may have the size of then, which only the mark tells of.
            held.fence.leave_mark();
        }
        ran.map_err(context::tool)?;
        self.at.sync(&held.root, &held.disk).await?;
        let after = self.at.info(&held.root, &held.disk).await?;
        if self.is_in(&after) == (self.act == Act::Delete) {
            let text = "the disk's snapshots aren't what was asked for";
            return Err(JobError::new(Code::ToolFailed, text).into());
        }
        Ok(after)
    }

    /// Writes what the file holds now on top of the intent.
    async fn write(&self, intent: &Disk, info: &Info) -> Result<(), Stop> {
        let step = |record: &DiskRecord| {
            let record = catalog::made(record, info.measured(), now());
            catalog::with_snapshots(record, info.snapshots.iter().map(|kept| kept.name.as_str()))
        };
        self.at.settle(intent, step).await
    }

    /// What a file holds that the job may have changed; none if it can't be the job's doing: it
    /// isn't what any of its disk's files may be, another snapshot came or went, or its size is
    /// another one and nobody began to revert it.
    async fn left(&self, held: &Alone) -> Result<Option<Info>, Stop> {
        let info = match self.at.info(&held.root, &held.disk).await {
            Err(Stop::Failed(error)) if !error.retryable => return Ok(None),
            info => info?,
        };
        let record = &held.disk.record;
        let others = |name: &&str| *name != self.name.as_str();
        let now = info.snapshots.iter().map(|kept| kept.name.as_str());
        let before = record.snapshots.iter().map(SnapshotId::as_str);
        let is_same_list = { now }.filter(others).eq(before.filter(others));
        let is_same_size = record.virtual_size == Some(info.virtual_size);
        let is_reverted = self.act == Act::Revert && held.fence.mark().is_some();
        let can_be = is_same_list && (is_same_size || is_reverted);
        Ok(Some(info).filter(|_| can_be))
    }

    fn result(&self) -> Result<Done, Stop> {
        match self.act {
            Act::Create => done(&NewSnapshot::Snapshot(self.name.clone())),
            Act::Revert | Act::Delete => done(&params::Done {}),
        }
    }
}

impl Steps for Snapshot<'_> {
    type Plan = Plan;

    // Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at.locks_below(self.disk, Mode::Exclusive).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let disk = self.at.admitted(self.disk, Purpose::Use).await?;
        let is_ready = disk.record.state == DiskState::Ready;
        let is_there = disk.record.snapshots.contains(self.name);
        if self.act == Act::Delete && is_ready && !is_there {
            return self.result().map(Checked::Done);
        }
        self.admit(&disk)?;
        let below = self.at.readable_below(&disk).await?;
        Ok(Checked::Plan(Plan {
            root: self.at.root().await?,
            chain: std::iter::once(disk).chain(below).collect(),
            _room: None,
            held: None,
            info: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let idle = self.at.gate_idle(&plan.root, &plan.chain, pace.stop);
        self.admit_name(self.is_in(&idle.await?))?;
        plan._room = self.room(&plan.root, &plan.chain[0]).await?;
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        plan.held = Some(self.at.hold(&plan.root, &plan.chain[0]).await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let held = plan.held.as_mut().ok_or_else(context::out_of_order)?;
        plan.info = Some(self.apply(held, pace.lost).await?);
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let (Some(held), Some(info)) = (&plan.held, &plan.info) else {
            return Err(context::out_of_order());
        };
        self.write(&held.disk, info).await?;
        self.result()
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        if let Some(mut held) = self.at.held_before(self.disk).await? {
            if held.fence.mark().is_none() {
                return Ok(None);
            }
            let info = self.apply(&mut held, &process::Stop::new()).await?;
            self.write(&held.disk, &info).await?;
            return self.result().map(Some);
        }
        let Some(disk) = self.at.store.disks.get(self.disk).await? else {
            return Ok(None);
        };
        let is_ready = disk.record.state == DiskState::Ready;
        if !is_ready || !is_own(disk.record.owner_job.as_ref(), self.at.job) {
            return Ok(None);
        }
        let is_done = match self.act {
            Act::Create => disk.record.snapshots.contains(self.name),
            Act::Delete => !disk.record.snapshots.contains(self.name),
            Act::Revert => self.at.is_published(&disk).await?.is_some(),
        };
        is_done.then(|| self.result()).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(mut held) = self.at.held_before(self.disk).await? else {
            return Ok(());
        };
        let Some(mut info) = self.left(&held).await? else {
            held.fence.forget().await?;
            return self.at.give_back(&held.disk).await;
        };
        let is_listed = held.disk.record.snapshots.contains(self.name);
        if self.act == Act::Create && !is_listed && self.is_in(&info) {
            // Nobody was told of it, and the next attempt would find it in its way.
            let back = Snapshot {
                act: Act::Delete,
                at: self.at,
                ..*self
            };
            info = back.apply(&mut held, &process::Stop::new()).await?;
        }
        held.fence.forget().await?;
        self.write(&held.disk, &info).await
    }
}
