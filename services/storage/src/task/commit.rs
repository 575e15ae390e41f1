//! `commit`: what an overlay holds goes into its backing. The overlay stays, empty, or goes.
//!
//! The tool writes the backing first and empties the overlay last, so whatever stops it halfway,
//! the overlay shows a guest what it showed before, and doing it once more ends the same. The
//! fence is the locks on both files; before the tool starts the overlay's is marked, and whoever
//! comes next goes forward from the mark.
//!
//! A tool that fails halfway leaves the backing half written, which only the overlay hides. Then the
//! disk is `ready`, as it was, and the backing `broken`, so that nobody reads it or loses the
//! overlay that makes it whole. The job's next attempt, or its retry, goes on from there.
//!
//! With `delete` the tool leaves the overlay as it is, and its file goes by way of the trash:
//!
//! | the overlay's file | what happened | what the next claim does |
//! |---|---|---|
//! | in its place, the lock not marked | nothing | begins |
//! | in its place, the lock marked | the backing may be half written | runs the tool again |
//! | in the trash, or gone | the backing holds everything, down to the disk | removes it, writes the catalogue |
//!
//! In the catalogue the backing comes first and the overlay last: while the overlay's record says
//! `changing`, all else is in between. Its tombstone keeps the backing, for the claim that has
//! only that left to tell of.

mod half;

use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    fence::Mark,
    pool::{Facts, Root},
    qemu_img::{Commit as Command, command::bytes_max},
    space::Reservation,
    task::{
        Checked, Context, Pace, Steps, context, done, in_place::Alone, is_own, now,
        resize::is_resizable, stage::Stage,
    },
    trash::Home,
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
    task::storage as params,
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct Commit<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Commit,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk, its backing, and all below.
    chain: Vec<Disk>,
    _room: Option<Reservation>,
    pair: Option<Pair>,
    /// The backing, when the overlay is gone: held until all is written.
    base: Option<Alone>,
    /// Bytes that are free again.
    freed: u64,
}

/// The overlay and its backing, both had alone.
struct Pair {
    top: Alone,
    base: Alone,
}

impl Commit<'_> {
    /// What the records say about it.
    fn admit(&self, disk: &Disk, backing: &Disk) -> Result<(), Stop> {
        if !disk.record.snapshots.is_empty() {
            let text = "the disk's snapshots would show what is committed now";
            return Err(JobError::new(Code::DiskWrongState, text).into());
        }
        if self.params.delete {
            catalog::admit_change(&disk.id, &disk.record)?;
        }
        let grows = disk.record.virtual_size > backing.record.virtual_size;
        if grows && !is_resizable(backing.record.format) {
            let text = "is larger than its backing, which can't grow";
            return Err(JobError::invalid_params("disk", text).into());
        }
        let others = catalog::without_child(&backing.record, &disk.id, now());
        let others = others.as_ref().unwrap_or(&backing.record);
        catalog::admit_change(&backing.id, others)?;
        self.at.admit_alone(disk)?;
        self.at.admit_alone(backing)
    }

    fn backing_id<'r>(&self, record: &'r DiskRecord) -> Result<&'r DiskId, Stop> {
        let alone = || {
            let error = JobError::new(Code::DiskWrongState, "the disk has no backing");
            Stop::Failed(error.with("disk", self.params.disk.as_str()))
        };
        record.backing.as_ref().ok_or_else(alone)
    }

    fn home(&self, top: &Alone) -> Home {
        Home {
            root: top.root.clone(),
            file: context::file_of(&top.disk),
        }
    }

    /// Both disks, with their locks in the order of their names, as with all locks.
    async fn take(&self, root: &Root, disk: &Disk, backing: &Disk) -> Result<Pair, Stop> {
        if disk.id < backing.id {
            let top = self.at.hold(root, disk).await?;
            let base = self.at.hold(root, backing).await?;
            return Ok(Pair { top, base });
        }
        let base = self.at.hold(root, backing).await?;
        let top = self.at.hold(root, disk).await?;
        Ok(Pair { top, base })
    }

    /// Writes the backing and, if it stays, empties the overlay.
    async fn run(&self, pair: &mut Pair, pace: &Pace<'_>) -> Result<(), Stop> {
        let (top, base) = (&mut pair.top, &pair.base);
        let above = self.at.facts_there(&top.root, &top.disk).await?;
        let below = self.at.facts_there(&base.root, &base.disk).await?;
        let size = context::virtual_size(&top.disk.record)?;
        let mut chain = self.at.chain_of(&top.was).await?;
        if let Some(below) = chain.get_mut(1) {
            *below = base.was.clone();
        }
        let cache = self.at.cache(&base.root).await?;
        let into = self.at.pass_disk(&base.root, &base.was, chain.get(2));
        let into = into.await?;
        let image = self.at.pass(&top.root, &chain).await?;
        let was_begun = top.fence.mark().is_some();
        top.fence.begin(Mark::default()).await?;
        let command = Command {
            image,
            into,
            empties: !self.params.delete,
            cache,
            bandwidth: self.at.pool.config.bandwidth,
            bytes_max: bytes_max(below.length.max(above.length).saturating_add(size)),
        };
        let locks = vec![top.fence.share()?, base.fence.share()?];
        let stage = Stage::only("commit", above.length);
        let rise = |percent| stage.tell(pace, percent);
        let tool = &self.at.store.tool;
        let ran = tool.commit(command, locks, pace.lost, rise).await;
        if let Err(error) = ran {
            let now = self.at.facts(&base.root, &base.disk).await;
            let is_same = |now: Facts| now.changed_ns == below.changed_ns;
            if !was_begun && now.is_ok_and(|now| now.is_some_and(is_same)) {
                // It didn't get as far as to write anything.
                top.fence.forget().await?;
                return Err(context::tool(error));
            }
            top.fence.leave_mark();
            return Err(self.halfway(context::tool(error), &base.disk.id));
        }
        self.at.sync(&base.root, &base.disk).await?;
        self.at.sync(&top.root, &top.disk).await
    }

    /// Removes an overlay that goes. Its backing holds everything.
    async fn remove(&self, top: &Alone) -> Result<(), Stop> {
        let (home, id) = (self.home(top), (&top.disk.id).into());
        home.discard(&id, (&self.at.job.id, self.at.job.claim))
            .await?;
        home.remove(&id).await
    }

    /// Writes what is there now, the overlay's own record last.
    async fn write(&self, pair: &Pair, freed: u64) -> Result<Done, Stop> {
        let Pair { top, base } = pair;
        let measured = self.at.measured(&base.root, &base.disk).await?;
        let step = |record: &DiskRecord| {
            let record = catalog::made(record, measured, now());
            let without = catalog::without_child(&record, &top.disk.id, now());
            without.filter(|_| self.params.delete).unwrap_or(record)
        };
        self.at.settle(&base.disk, step).await?;
        let backing = base.disk.id.clone();
        if self.params.delete {
            let gone = |record: &DiskRecord| merged(record, freed);
            self.at.settle(&top.disk, gone).await?;
        } else {
            self.at.settle_measured(&top.root, &top.disk).await?;
        }
        result(backing)
    }

    /// Both disks, as an earlier claim held them.
    async fn pair_before(&self) -> Result<Option<Pair>, Stop> {
        let Some(top) = self.at.held_before(&self.params.disk).await? else {
            return Ok(None);
        };
        let backing = self.backing_id(&top.disk.record)?;
        let base = match self.at.held_before(backing).await? {
            Some(base) => base,
            // It wasn't held yet, or its result is written already: either can be done again.
            None => {
                let backing = self.backing(backing, &top.disk).await?;
                self.at.hold(&top.root, &backing).await?
            }
        };
        Ok(Some(Pair { top, base }))
    }

    /// Goes on from where an earlier claim was; none if it hadn't begun.
    async fn go_on(&self, mut pair: Pair) -> Result<Result<Done, Pair>, Stop> {
        let (root, disk) = (&pair.top.root, &pair.top.disk);
        let is_there = self.at.facts(root, disk).await?.is_some();
        if is_there && pair.top.fence.mark().is_none() {
            return Ok(Err(pair));
        }
        let never = process::Stop::new();
        let pace = Pace::endless(&never);
        if is_there {
            self.run(&mut pair, &pace).await?;
        }
        let freed = pair.top.disk.record.actual_size.unwrap_or_default();
        if self.params.delete {
            self.remove(&pair.top).await?;
        }
        self.write(&pair, freed).await.map(Ok)
    }
}

/// The tombstone of an overlay whose backing holds everything.
fn merged(record: &DiskRecord, freed: u64) -> DiskRecord {
    let backing = record.backing.clone();
    DiskRecord {
        backing,
        ..catalog::deleted(record, freed, now())
    }
}

fn result(backing: DiskId) -> Result<Done, Stop> {
    done(&params::Committed { backing })
}

impl Steps for Commit<'_> {
    type Plan = Plan;

    // Alone on the disk and its backing, shared on all below.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let disk = &self.params.disk;
        let mut locks = self.at.locks_below(disk, Mode::Exclusive).await?;
        if let Some(disk) = self.at.store.disks.get(disk).await?
            && let Some(backing) = &disk.record.backing
        {
            locks.insert(context::lock_name(backing), Mode::Exclusive);
        }
        Ok(locks)
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let disk = self.at.admitted(&self.params.disk, Purpose::Use).await?;
        let backing = self.backing_id(&disk.record)?;
        let backing = self.backing(backing, &disk).await?;
        self.admit(&disk, &backing)?;
        let below = self.at.readable_below(&backing).await?;
        Ok(Checked::Plan(Plan {
            root: self.at.root().await?,
            chain: [disk, backing].into_iter().chain(below).collect(),
            _room: None,
            pair: None,
            base: None,
            freed: 0,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (root, chain) = (&plan.root, &plan.chain);
        for at in [0, 1] {
            self.at.gate_idle(root, &chain[at..], pace.stop).await?;
        }
        let above = self.at.facts_there(root, &chain[0]).await?;
        let backing = context::file_of(&chain[1]);
        let room = self.at.room(root, &backing, above.allocated);
        plan._room = Some(room.await?);
        plan.freed = above.allocated;
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let pair = self.take(&plan.root, &plan.chain[0], &plan.chain[1]);
        plan.pair = Some(pair.await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let pair = plan.pair.as_mut().ok_or_else(context::out_of_order)?;
        self.run(pair, pace).await?;
        if self.params.delete {
            self.remove(&pair.top).await?;
        }
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let pair = plan.pair.as_ref().ok_or_else(context::out_of_order)?;
        let done = self.write(pair, plan.freed).await?;
        if self.params.delete
            && let Some(Pair { top, base }) = plan.pair.take()
        {
            top.fence.retire();
            plan.base = Some(base);
        }
        Ok(done)
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        if let Some(pair) = self.pair_before().await? {
            return Ok(self.go_on(pair).await?.ok());
        }
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(None);
        };
        let is_done = match disk.record.state {
            DiskState::Deleted => is_own(disk.record.owner_job.as_ref(), self.at.job),
            DiskState::Ready => self.at.is_published(&disk).await?.is_some(),
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken => false,
        };
        let backing = disk.record.backing.filter(|_| is_done);
        backing.map(result).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(());
        };
        let Some(backing) = &disk.record.backing else {
            return Ok(());
        };
        let Some(mut top) = self.at.held_before(&disk.id).await? else {
            self.own(&disk, backing).await?;
            return self.give_back(backing, false).await;
        };
        let is_half = top.fence.mark().is_some();
        if is_half && self.at.facts(&top.root, &top.disk).await?.is_none() {
            // It can't be undone any more, so it's done.
            tracing::debug!(%backing, "a commit that ended badly was done");
            drop(top);
            return match self.pair_before().await? {
                Some(pair) => self.go_on(pair).await.map(|_| ()),
                None => Ok(()),
            };
        }
        self.give_back(backing, is_half).await?;
        top.fence.forget().await?;
        self.at.give_back(&top.disk).await
    }
}
