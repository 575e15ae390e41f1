//! What changes a disk's file in place: the lock on it, the intent, and what an earlier claim left
//! of both.

use crate::{
    blocking, catalog,
    disks::Disk,
    draft::Draft,
    fence::{Fence, Mark},
    gate::{Expected, Measured},
    pool::{Facts, Name, PoolError, Root},
    qemu_img::Info,
    task::{Context, Pace, context, is_own, now, relay::relayed, stage::Stage},
    trash::used,
};
use virtbus_wire::{
    Code, DiskId, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
};
use virtbus_worker::{perform::Stop, process};

/// A disk that this claim has alone, and may change.
pub(crate) struct Alone {
    pub(crate) root: Root,
    pub(crate) fence: Fence,
    /// The disk, as the intent is written.
    pub(crate) disk: Disk,
    /// What the file is to be when a tool is let at it: the disk as it was before the intent. Of
    /// one that an earlier claim was changing nothing is known, so that's the intent.
    pub(crate) was: Disk,
}

impl Context<'_> {
    /// Takes the lock on a disk's file, and writes the intent, if no other program uses the file.
    pub(crate) async fn hold(&self, root: &Root, disk: &Disk) -> Result<Alone, Stop> {
        let fence = self.fence(root, &disk.id).await?;
        self.idle(root, [disk], UseMode::Exclusive).await?;
        let intent = self.store.disks.take(disk, &self.job.id).await?;
        Ok(Alone {
            root: root.clone(),
            fence,
            disk: intent,
            was: disk.clone(),
        })
    }

    /// A disk with the intent of an earlier claim of this job, and its lock.
    pub(crate) async fn held_before(&self, id: &DiskId) -> Result<Option<Alone>, Stop> {
        let Some(disk) = self.store.disks.get(id).await? else {
            return Ok(None);
        };
        let is_own = is_own(disk.record.owner_job.as_ref(), self.job);
        if !is_own || disk.record.state != DiskState::Changing {
            return Ok(None);
        }
        let root = self.root().await?;
        let fence = self.fence(&root, id).await?;
        let was = disk.clone();
        Ok(Some(Alone {
            root,
            fence,
            disk,
            was,
        }))
    }

    /// Whether an earlier claim of this job died between the result in the catalogue and its
    /// final record: the disk is ready, and the mark of the effect is still on its lock.
    pub(crate) async fn is_published(&self, disk: &Disk) -> Result<Option<Mark>, Stop> {
        let is_own = is_own(disk.record.owner_job.as_ref(), self.job);
        if !is_own || disk.record.state != DiskState::Ready {
            return Ok(None);
        }
        let root = self.root().await?;
        Ok(self.fence(&root, &disk.id).await?.mark())
    }

    /// That each file of a chain is what the catalogue says, and no other program uses the first.
    /// What the first one's header says, to a tool.
    pub(crate) async fn gate_idle(
        &self,
        root: &Root,
        chain: &[Disk],
        stop: &process::Stop,
    ) -> Result<Info, Stop> {
        let image = self.pass(root, chain).await?.alone();
        let first = chain.iter().take(1);
        self.idle(root, first, UseMode::Exclusive).await?;
        let info = self.store.tool.info(image, stop).await;
        info.map_err(context::tool)
    }

    /// A disk with all below it, the first as it was read.
    pub(crate) async fn chain_of(&self, disk: &Disk) -> Result<Vec<Disk>, Stop> {
        let mut chain = vec![disk.clone()];
        chain.extend(self.store.disks.below(disk).await?);
        Ok(chain)
    }

    /// What a disk's file is to be, by its record and that of the one below it.
    pub(crate) async fn expected(&self, disk: &Disk) -> Result<Expected, Stop> {
        let below = match &disk.record.backing {
            Some(backing) => self.store.disks.get(backing).await?,
            None => None,
        };
        Ok(context::expected(disk, below.as_ref()))
    }

    /// How large a disk's file is, which is what the catalogue says of it.
    pub(crate) async fn measured(&self, root: &Root, disk: &Disk) -> Result<Measured, Stop> {
        let (file, expected) = (context::file_of(disk), self.expected(disk).await?);
        let passed = self.pass_file(root, &file, expected).await?;
        Ok(passed.measured())
    }

    /// What the header of a disk's file says to a tool, now that nothing stops any more.
    pub(crate) async fn info(&self, root: &Root, disk: &Disk) -> Result<Info, Stop> {
        let (file, expected) = (context::file_of(disk), self.expected(disk).await?);
        let image = self.pass_file(root, &file, expected).await?;
        let info = self.store.tool.info(image, &process::Stop::new()).await;
        info.map_err(context::tool)
    }

    /// What is known of a disk's file; none if it isn't there.
    pub(crate) async fn facts(&self, root: &Root, disk: &Disk) -> Result<Option<Facts>, Stop> {
        let (root, file) = (root.clone(), context::file_of(disk));
        let facts: Result<_, PoolError> = blocking::look(move || root.facts(&file)).await;
        Ok(facts?)
    }

    /// What is known of a disk's file, which must be there.
    pub(crate) async fn facts_there(&self, root: &Root, disk: &Disk) -> Result<Facts, Stop> {
        let text = "the disk's file isn't in the pool";
        let gone = || JobError::new(Code::DiskWrongState, text).with("disk", disk.id.as_str());
        Ok(self.facts(root, disk).await?.ok_or_else(gone)?)
    }

    /// Brings what was written to a disk's file to the disk.
    pub(crate) async fn sync(&self, root: &Root, disk: &Disk) -> Result<(), Stop> {
        let (root, file) = (root.clone(), context::file_of(disk));
        let synced: Result<(), PoolError> = blocking::act(move || root.sync(&file)).await;
        Ok(synced?)
    }

    /// Writes the result on top of the intent.
    pub(crate) async fn settle(
        &self,
        intent: &Disk,
        step: impl Fn(&DiskRecord) -> DiskRecord,
    ) -> Result<(), Stop> {
        let finished = self.store.disks.finish(intent, step).await?;
        finished.map(|_| ()).ok_or(Stop::Lost)
    }

    /// Takes an intent back whose effect never began: of the file, which may be anybody's by now,
    /// nothing is believed.
    pub(crate) async fn give_back(&self, intent: &Disk) -> Result<(), Stop> {
        let back = |record: &DiskRecord| catalog::given_back(record, now());
        self.settle(intent, back).await
    }

    /// Writes how large the file is now on top of the intent.
    pub(crate) async fn settle_measured(&self, root: &Root, intent: &Disk) -> Result<(), Stop> {
        let measured = self.measured(root, intent).await?;
        let step = |record: &DiskRecord| catalog::made(record, measured, now());
        self.settle(intent, step).await
    }

    /// That a disk is nobody's but the job's: to be changed, or to be what goes on below another.
    pub(crate) fn admit_alone(&self, disk: &Disk) -> Result<(), Stop> {
        self.admit_use(disk, UseMode::Exclusive)
    }

    /// A copy of a disk's file under a temporary name, in room that was set aside for it and for
    /// what it grows by then, in bytes.
    pub(crate) async fn copied(
        &self,
        root: &Root,
        disk: &Disk,
        growth: u64,
        stage: Stage,
        pace: &Pace<'_>,
    ) -> Result<Draft, Stop> {
        let facts = self.facts_there(root, disk).await?;
        let room = facts.allocated.saturating_add(growth);
        let draft = self.draft(root, &disk.id, room).await?;
        let (from, file, part) = (root.clone(), context::file_of(disk), draft.part().clone());
        relayed(pace, stage, move |tell| {
            from.copy(&file, (&from, &part), tell)
        })
        .await?;
        Ok(draft)
    }

    /// That no other program has the files of these disks open in a way that goes not with what the
    /// job wants of them. It's asked when the work begins, and again when the effect is about to.
    pub(crate) async fn idle<'d>(
        &self,
        root: &Root,
        disks: impl IntoIterator<Item = &'d Disk>,
        wants: UseMode,
    ) -> Result<(), Stop> {
        let disks = disks.into_iter();
        let files: Vec<_> = disks
            .map(|disk| (disk.id.clone(), context::file_of(disk)))
            .collect();
        let root = root.clone();
        let looked: Result<(), JobError> = blocking::look(move || {
            let mut files = files.iter();
            files.try_for_each(|(id, file)| {
                let idle = root.idle(file, wants);
                idle.map_err(|error| used(error, &id.into()))
            })
        })
        .await;
        Ok(looked?)
    }

    /// The same of a file that isn't anything of ours yet: that no other program writes it.
    pub(crate) async fn idle_foreign(&self, root: &Root, file: &Name) -> Result<(), Stop> {
        let (root, file) = (root.clone(), file.clone());
        let looked: Result<(), PoolError> =
            blocking::look(move || root.idle(&file, UseMode::Shared)).await;
        Ok(looked?)
    }
}
