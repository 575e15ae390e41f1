//! `move_disk`: a disk, or the whole tree it's in, to another pool.
//!
//! Files keep their names, and overlays name their backings without a folder, so nothing inside of
//! them changes. Every copy is compared before the first gets its name; when all have theirs, the
//! catalogue says of one after the other where it is, and only then the files in the old pool go.
//! From the moment all copies have their names, every later claim goes forward.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Disk,
    draft::Draft,
    fence::Fence,
    pool::{Name, Pool, PoolError, Root},
    task::{
        Checked, Context, Pace, Steps, context, done,
        homes::{taken, with_below},
        is_own, now,
        relay::relayed,
        stage::Stage,
    },
    trash::Home,
};
use std::collections::BTreeSet;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::storage as params,
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct MoveDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::MoveDisk,
}

pub(crate) struct Plan {
    from: Root,
    to: Root,
    moves: Vec<Moving>,
    fences: Vec<Fence>,
}

/// A disk that moves; with its intent once that is written.
struct Moving {
    disk: Disk,
    /// Its copy, until it has its name. None if an earlier claim gave it its name.
    draft: Option<Draft>,
}

impl MoveDisk<'_> {
    fn target(&self) -> Result<&Pool, JobError> {
        self.at.store.pool(&self.params.pool)
    }

    fn is_ours(&self, disk: &Disk) -> bool {
        is_own(disk.record.owner_job.as_ref(), self.at.job)
    }

    /// Whether a disk is where the job brings it.
    fn is_moved(&self, disk: &Disk) -> bool {
        disk.record.pool == self.params.pool
    }

    /// Whether this job is moving a disk.
    fn is_moving(&self, disk: &Disk) -> bool {
        self.is_ours(disk) && !self.is_moved(disk) && disk.record.state == DiskState::Changing
    }

    /// That the tree may move.
    async fn admit(&self, tree: &[Disk], to: &Root) -> Result<(), Stop> {
        for (disk, below) in with_below(tree) {
            let (pool, job) = (&self.at.pool.name, &self.at.job.id);
            catalog::admit(&disk.id, Some(&disk.record), pool, job, Purpose::Use)?;
            self.at.admit_use(disk, UseMode::Exclusive)?;
            if disk.record.backing.is_some() != below.is_some() {
                let text = "the catalogue doesn't know all disks of the tree";
                return Err(JobError::new(Code::DiskWrongState, text).into());
            }
            let there = self.at.facts_of(to, &context::file_of(disk)).await?;
            if there.is_some() && !self.is_moving(disk) {
                return Err(taken(&disk.id, "the other pool").into());
            }
        }
        Ok(())
    }

    /// Copies one disk, or finds that an earlier claim has: both are in the stages of this one.
    async fn copy(
        &self,
        (from, to): (&Root, &Root),
        disk: &Disk,
        (copying, verifying): (Stage, Stage),
        pace: &Pace<'_>,
    ) -> Result<Option<Draft>, Stop> {
        let file = context::file_of(disk);
        if self.at.facts_of(to, &file).await?.is_some() {
            let is_whole = self.is_same((from, to), (&file, &file), verifying, pace);
            return if is_whole.await? {
                Ok(None)
            } else {
                Err(taken(&disk.id, "the other pool").into())
            };
        }
        let facts = self.at.facts_of(from, &file).await?;
        let room = facts.map_or(0, |facts| facts.allocated);
        let draft = self.at.draft_in(self.target()?, to, &disk.id, room).await?;
        let (source, copy, name) = (from.clone(), to.clone(), file.clone());
        let part = draft.part().clone();
        relayed(pace, copying, move |tell| {
            source.copy(&name, (&copy, &part), tell).map(|_| ())
        })
        .await?;
        let is_whole = self.is_same((from, to), (&file, draft.part()), verifying, pace);
        if is_whole.await? {
            return Ok(Some(draft));
        }
        let text = "the disk changed while it was copied";
        Err(JobError::new(Code::DiskBusy, text)
            .with("disk", disk.id.as_str())
            .into())
    }

    async fn is_same(
        &self,
        (from, to): (&Root, &Root),
        (file, copy): (&Name, &Name),
        stage: Stage,
        pace: &Pace<'_>,
    ) -> Result<bool, Stop> {
        let (from, to, file, copy) = (from.clone(), to.clone(), file.clone(), copy.clone());
        relayed(pace, stage, move |tell| {
            from.is_same(&file, (&to, &copy), tell)
        })
        .await
    }

    /// In one order for everybody, as with all locks.
    async fn fences(&self, from: &Root, disks: &[&Disk]) -> Result<Vec<Fence>, Stop> {
        let ids: BTreeSet<&DiskId> = disks.iter().map(|disk| &disk.id).collect();
        let mut fences = Vec::new();
        for id in ids {
            fences.push(self.at.fence(from, id).await?);
        }
        Ok(fences)
    }

    /// Says of all where they are, then removes what is left in the old pool.
    async fn forward(&self, (from, to): (&Root, &Root), tree: &[&Disk]) -> Result<Done, Stop> {
        let (mut moved, mut bytes) = (Vec::new(), 0);
        for disk in tree {
            let measured = self.at.facts_of(to, &context::file_of(disk)).await?;
            let record = if self.is_moved(disk) {
                disk.record.clone()
            } else {
                self.repoint(disk, measured.map(|facts| facts.allocated))
                    .await?
            };
            moved.push(disk.id.clone());
            bytes += record.actual_size.unwrap_or_default();
        }
        for disk in tree {
            let home = Home {
                root: from.clone(),
                file: context::file_of(disk),
            };
            let (of, claim) = ((&disk.id).into(), (&self.at.job.id, self.at.job.claim));
            home.discard(&of, claim).await?;
            home.remove(&of).await?;
        }
        done(&params::Moved { moved, bytes })
    }

    async fn repoint(&self, intent: &Disk, bytes: Option<u64>) -> Result<DiskRecord, Stop> {
        let there = |record: &DiskRecord| DiskRecord {
            pool: self.params.pool.clone(),
            actual_size: bytes.or(record.actual_size),
            ..catalog::given_back(record, now())
        };
        let finished = self.at.store.disks.finish(intent, there).await?;
        finished.map(|disk| disk.record).ok_or(Stop::Lost)
    }

    /// What an earlier claim of this job began with.
    async fn begun(&self) -> Result<Vec<Disk>, Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(Vec::new());
        };
        let mut tree = self.at.whole_tree(&disk).await?;
        tree.retain(|disk| self.is_moving(disk) || self.is_moved(disk) && self.is_ours(disk));
        Ok(tree)
    }

    /// Whether there's no way back: a disk is said to be in the new pool, or all copies have their
    /// names there.
    async fn is_forward(&self, (from, to): (&Root, &Root), tree: &[Disk]) -> Result<bool, Stop> {
        if tree.iter().any(|disk| self.is_moved(disk)) {
            return Ok(true);
        }
        for disk in tree {
            if !self.is_copied((from, to), disk).await? {
                return Ok(false);
            }
        }
        Ok(!tree.is_empty())
    }

    /// Whether a copy of a disk has its name.
    async fn is_copied(&self, (from, to): (&Root, &Root), disk: &Disk) -> Result<bool, Stop> {
        let file = context::file_of(disk);
        for root in [from, to] {
            if self.at.facts_of(root, &file).await?.is_none() {
                return Ok(false);
            }
        }
        let never = process::Stop::new();
        let (stage, pace) = (Stage::only("verify", 0), Pace::endless(&never));
        self.is_same((from, to), (&file, &file), stage, &pace).await
    }

    async fn roots(&self) -> Result<(Root, Root), Stop> {
        let to = self.at.reach(self.target()?).await?;
        Ok((self.at.root().await?, to))
    }
}

impl Steps for MoveDisk<'_> {
    type Plan = Plan;

    /// Alone on every disk of the tree.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = LockSet::from([(context::lock_name(&self.params.disk), Mode::Exclusive)]);
        if let Some(disk) = self.at.store.disks.get(&self.params.disk).await? {
            let tree = self.at.whole_tree(&disk).await;
            let tree = tree.map_err(|_| JobError::internal("the catalogue doesn't answer"))?;
            let names = tree.iter().map(|disk| context::lock_name(&disk.id));
            locks.extend(names.map(|name| (name, Mode::Exclusive)));
        }
        Ok(locks)
    }

    /// Removes the temporary files of older claims.
    async fn clean(&self) -> Result<(), Stop> {
        let Some(disk) = self.at.store.disks.get(&self.params.disk).await? else {
            return Ok(());
        };
        for disk in self.at.whole_tree(&disk).await? {
            self.at.clean_in(self.target()?, &disk.id).await?;
        }
        Ok(())
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let target = self.at.admit_other_pool(&self.params.pool, true).await?;
        let found = self.at.store.disks.get(&self.params.disk).await?;
        let is_there = |disk: &&Disk| self.is_moved(disk) && disk.record.state == DiskState::Ready;
        if found.as_ref().is_some_and(|disk| is_there(&disk)) {
            let (moved, bytes) = (Vec::new(), 0);
            return done(&params::Moved { moved, bytes }).map(Checked::Done);
        }
        let disk = self.at.had(&self.params.disk, found, Purpose::Use)?;
        if !self.params.tree {
            catalog::admit_change(&disk.id, &disk.record)?;
            if disk.record.backing.is_some() {
                let text = "must be true for a disk that lies on top of another";
                return Err(JobError::invalid_params("tree", text).into());
            }
        }
        let (from, to) = self.roots().await?;
        let tree = self.at.whole_tree(&disk).await?;
        self.admit(&tree, &to).await?;
        for disk in &tree {
            let size = context::virtual_size(&disk.record)?;
            let fits = context::admit_size(size, &target);
            fits.map_err(|error| error.with("disk", disk.id.as_str()))?;
        }
        let moves = tree.into_iter().map(|disk| Moving { disk, draft: None });
        Ok(Checked::Plan(Plan {
            from,
            to,
            moves: moves.collect(),
            fences: Vec::new(),
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let tree: Vec<Disk> = plan
            .moves
            .iter()
            .map(|moving| moving.disk.clone())
            .collect();
        let mut total = 0;
        for (disk, below) in with_below(&tree) {
            let image = self.at.pass_disk(&plan.from, disk, below).await?;
            total += image.measured().actual_size;
        }
        // Each byte is read for the copy, and once more to compare.
        let mut stage = Stage::first("copy", 0, total.saturating_mul(2));
        for (moving, (disk, below)) in plan.moves.iter_mut().zip(with_below(&tree)) {
            let image = self.at.pass_disk(&plan.from, disk, below).await?;
            let bytes = image.measured().actual_size;
            let idle = self.at.idle(&plan.from, [disk], UseMode::Exclusive);
            idle.await?;
            let roots = (&plan.from, &plan.to);
            let copying = stage.then("copy", bytes);
            stage = copying.then("verify", bytes);
            moving.draft = self.copy(roots, disk, (copying, stage), pace).await?;
        }
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let disks: Vec<&Disk> = plan.moves.iter().map(|moving| &moving.disk).collect();
        plan.fences = self.fences(&plan.from, &disks).await?;
        let idle = self.at.idle(&plan.from, disks, UseMode::Exclusive);
        idle.await?;
        for moving in &mut plan.moves {
            moving.disk = self
                .at
                .store
                .disks
                .take(&moving.disk, &self.at.job.id)
                .await?;
        }
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        for moving in &mut plan.moves {
            if let Some(draft) = &mut moving.draft {
                draft.place(&context::file_of(&moving.disk)).await?;
            }
        }
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let disks: Vec<&Disk> = plan.moves.iter().map(|moving| &moving.disk).collect();
        let done = self.forward((&plan.from, &plan.to), &disks).await?;
        plan.fences.drain(..).for_each(Fence::retire);
        Ok(done)
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let tree = self.begun().await?;
        if tree.is_empty() {
            return Ok(None);
        }
        let (from, to) = self.roots().await?;
        let disks: Vec<&Disk> = tree.iter().collect();
        let fences = self.fences(&from, &disks).await?;
        if !self.is_forward((&from, &to), &tree).await? {
            return Ok(None);
        }
        let done = self.forward((&from, &to), &disks).await?;
        fences.into_iter().for_each(Fence::retire);
        Ok(Some(done))
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let tree = self.begun().await?;
        if tree.is_empty() {
            return Ok(());
        }
        let (from, to) = self.roots().await?;
        let disks: Vec<&Disk> = tree.iter().collect();
        let _fences = self.fences(&from, &disks).await?;
        if tree.iter().any(|disk| self.is_moved(disk)) {
            return self.forward((&from, &to), &disks).await.map(|_| ());
        }
        for disk in &tree {
            // What isn't the same isn't this job's.
            if self.is_copied((&from, &to), disk).await? {
                let (root, file) = (to.clone(), context::file_of(disk));
                let removed: Result<bool, PoolError> =
                    blocking::act(move || root.unlink(&file)).await;
                removed?;
            }
            let back = |record: &DiskRecord| catalog::given_back(record, now());
            let finished = self.at.store.disks.finish(disk, back).await?;
            finished.ok_or(Stop::Lost)?;
        }
        Ok(())
    }
}
