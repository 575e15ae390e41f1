//! `check_disk`: measures a disk, looks for damage, and puts right what it's asked to.
//!
//! Looking takes no lock on the file and no intent: others may read the disk meanwhile, and the
//! catalogue is only told what was found. Repairing is done in place, under the lock on the file,
//! which is marked before; whoever comes next repairs once more, which changes nothing that is
//! right. The result says what is there now: after a repair, what couldn't be put right.
//!
//! This is also how a disk becomes `broken`, `missing`, or `ready` again. But what a job left
//! `broken`, half written, half overwritten or unknown, looks whole as easily as not: looking at it
//! says nothing, and it stays so. A person who takes it as it is says `repair: all`; not of what a
//! commit of the disk above left, which that commit makes whole when it's run again.

use crate::{
    catalog::{self, Purpose},
    disks::Disk,
    fence::{Fence, Mark},
    gate::{Measured, PassedChain},
    pool::Root,
    qemu_img::Health,
    task::{Checked, Context, Pace, Steps, context, done, is_own, now, stage::Stage},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState, UseMode},
    protocol::lock::Mode,
    task::storage::{self as params, Repair},
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct CheckDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::CheckDisk,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk and all below it.
    chain: Vec<Disk>,
    /// Whether the disk stays broken, whatever is found.
    stays: bool,
    fence: Option<Fence>,
    /// The disk, as the intent to repair it is written.
    intent: Option<Disk>,
    found: Option<Found>,
}

/// What there is of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No file.
    Nothing,
    /// A file that a tool has marked as damaged, so that none opens it but to repair it.
    Marked,
    /// A file.
    File { measured: Measured, health: Health },
}

impl CheckDisk<'_> {
    fn repairs(&self) -> bool {
        self.params.repair != Repair::None
    }

    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        // What those above read may change, unless it's damaged anyway.
        let is_broken = disk.record.state == DiskState::Broken;
        if self.params.repair == Repair::All && !is_broken {
            catalog::admit_change(&disk.id, &disk.record)?;
        }
        let wants = match self.params.repair {
            Repair::None => UseMode::Shared,
            Repair::Leaks | Repair::All => UseMode::Exclusive,
        };
        self.at.admit_use(disk, wants)
    }

    /// Lets nobody repair what a commit left half written: what makes it whole is in the disk above.
    async fn admit_repair(&self, disk: &Disk) -> Result<(), Stop> {
        let [child] = disk.record.children.as_slice() else {
            return Ok(());
        };
        let above = self.at.store.disks.get(child).await?;
        let hides = |above: &Disk| disk.record.is_half_written_from((child, &above.record));
        if !self.repairs() || !above.as_ref().is_some_and(hides) {
            return Ok(());
        }
        let text = "a commit of the disk above left it half written, and has to be run again";
        let error = JobError::new(Code::DiskWrongState, text).with("disk", disk.id.as_str());
        let state = DiskState::Broken.as_str();
        Err(error
            .with("state", state)
            .with("above", child.as_str())
            .into())
    }

    /// Whether a disk stays broken, whatever is found.
    fn stays(&self, record: &DiskRecord) -> bool {
        match self.params.repair {
            Repair::None | Repair::Leaks => record.is_left_by_a_job(),
            Repair::All => false,
        }
    }

    /// The files, if they are what the catalogue says; none if the disk has no file. A mark of
    /// damage on the first is what a repair takes away, so it's looked beyond, and nothing else is.
    async fn pass(&self, root: &Root, chain: &[Disk]) -> Result<Option<PassedChain>, Stop> {
        let (disk, below) = chain.split_first().ok_or_else(context::out_of_order)?;
        if self.at.facts(root, disk).await?.is_none() {
            if !below.is_empty() {
                self.at.pass(root, below).await?;
            }
            return Ok(None);
        }
        let passed = match self.params.repair {
            Repair::None | Repair::Leaks => self.at.pass(root, chain).await,
            Repair::All => self.at.pass_marked(root, chain).await,
        };
        passed.map(Some)
    }

    /// That what seems damaged is the disk's own file, and not only one of those below.
    async fn not_below(&self, plan: &Plan) -> Result<(), Stop> {
        let (disk, below) = plan.chain.split_first().ok_or_else(context::out_of_order)?;
        let own = self.at.pass_disk(&plan.root, disk, below.first()).await;
        if own.is_ok() && !below.is_empty() {
            self.at.pass(&plan.root, below).await?;
        }
        Ok(())
    }

    /// Looks at what was let through, and repairs it with the lock that is given. After a repair the
    /// files must be what `chain` says.
    async fn look(
        &self,
        image: Option<PassedChain>,
        (root, chain): (&Root, &[Disk]),
        lock: Option<&Fence>,
        stop: &process::Stop,
    ) -> Result<Found, Stop> {
        let disk = chain.first().ok_or_else(context::out_of_order)?;
        let Some(image) = image else {
            return Ok(Found::Nothing);
        };
        let before = image.first().measured();
        let tool = &self.at.store.tool;
        let repair = if lock.is_some() {
            self.params.repair
        } else {
            Repair::None
        };
        let lock = lock.map(Fence::share).transpose()?;
        let checked = tool.check(image, repair, lock, stop).await;
        let health = checked.map_err(context::tool)?;
        if repair == Repair::None {
            let measured = before;
            return Ok(Found::File { measured, health });
        }
        self.at.sync(root, disk).await?;
        let measured = match self.pass(root, chain).await? {
            Some(image) => image.first().measured(),
            None => before,
        };
        Ok(Found::File { measured, health })
    }

    /// The disk with the intent of an earlier claim whose repair had begun, and its lock.
    async fn begun(&self) -> Result<Option<(Root, Fence, Disk)>, Stop> {
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let own = disk.filter(|disk| is_own(disk.record.owner_job.as_ref(), self.at.job));
        let Some(disk) = own.filter(|_| self.repairs()) else {
            return Ok(None);
        };
        let is_open = match disk.record.state {
            DiskState::Changing | DiskState::Broken | DiskState::Missing | DiskState::Ready => true,
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Deleted => false,
        };
        if !is_open {
            return Ok(None);
        }
        let root = self.at.root().await?;
        let fence = self.at.fence(&root, &disk.id).await?;
        Ok(Some((root, fence, disk)))
    }

    async fn write(&self, intent: &Disk, found: Found, stays: bool) -> Result<Done, Stop> {
        let step = |record: &DiskRecord| match stays {
            true => measured(record, found),
            false => told(record, found),
        };
        if self.repairs() {
            self.at.settle(intent, step).await?;
        } else {
            // Of a disk that was changed since it was looked at, nothing is known.
            let same = |record: &DiskRecord| catalog::is_same_intent(record, &intent.record);
            let disks = &self.at.store.disks;
            let changed = |record: &DiskRecord| same(record).then(|| step(record));
            disks.change(&intent.id, changed).await?;
        }
        self.result(found)
    }

    fn result(&self, found: Found) -> Result<Done, Stop> {
        match found {
            Found::Nothing => {
                let text = "the disk's file isn't in the pool";
                let error = JobError::new(Code::DiskWrongState, text);
                Err(error.with("state", DiskState::Missing.as_str()).into())
            }
            Found::Marked => {
                let text = "the disk's file is marked as damaged";
                Err(JobError::new(Code::ImageCorrupt, text).into())
            }
            Found::File { measured, health } => done(&params::Checked {
                virtual_size: measured.virtual_size,
                actual_size: measured.actual_size,
                leaks: health.leaks,
                corruptions: health.corruptions,
            }),
        }
    }
}

/// What is written of a disk that stays what it is.
fn measured(record: &DiskRecord, found: Found) -> DiskRecord {
    match found {
        Found::Nothing | Found::Marked => record.clone(),
        Found::File { measured, .. } => {
            let state = record.state;
            catalog::in_state(&catalog::made(record, measured, now()), state, now())
        }
    }
}

/// What is written of a disk of which this was found.
fn told(record: &DiskRecord, found: Found) -> DiskRecord {
    match found {
        Found::Nothing => catalog::missing(record, now()),
        Found::Marked => catalog::damaged(record, now()),
        Found::File { measured, health } => {
            let record = catalog::made(record, measured, now());
            match health.corruptions {
                0 => record,
                _ => catalog::damaged(&record, now()),
            }
        }
    }
}

impl Steps for CheckDisk<'_> {
    type Plan = Plan;

    // Shared on the disk and all below it; alone on the disk to repair it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mode = if self.repairs() {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        self.at.locks_below(&self.params.disk, mode).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let purpose = Purpose::Check;
        let disk = self.at.admitted(&self.params.disk, purpose).await?;
        self.admit(&disk)?;
        self.admit_repair(&disk).await?;
        let below = self.at.readable_below(&disk).await?;
        Ok(Checked::Plan(Plan {
            root: self.at.root().await?,
            stays: self.stays(&disk.record),
            chain: std::iter::once(disk).chain(below).collect(),
            fence: None,
            intent: None,
            found: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (root, disk) = (&plan.root, &plan.chain[0]);
        let size = disk.record.virtual_size.unwrap_or_default();
        let stage = Stage::only("check", size);
        stage.tell(pace, 0.0);
        if self.repairs() {
            return self.pass(root, &plan.chain).await.map(|_| ());
        }
        let looked = match self.pass(root, &plan.chain).await {
            Ok(image) => self.look(image, (root, &plan.chain), None, pace.stop).await,
            Err(refused) => Err(refused),
        };
        plan.found = Some(match looked {
            Err(Stop::Failed(error)) if error.code == Code::ImageCorrupt => {
                self.not_below(plan).await?;
                Found::Marked
            }
            looked => looked?,
        });
        stage.tell(pace, 100.0);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        if self.repairs() {
            let held = self.at.hold(&plan.root, &plan.chain[0]).await?;
            plan.fence = Some(held.fence);
            plan.intent = Some(held.disk);
        }
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        if let Some(fence) = &mut plan.fence {
            let image = self.pass(&plan.root, &plan.chain).await?;
            fence.begin(Mark::default()).await?;
            // As the intent is written: nothing is known any more of what is being changed.
            let intent = plan.intent.as_ref().ok_or_else(context::out_of_order)?;
            plan.chain[0] = intent.clone();
            let files = (&plan.root, &plan.chain[..]);
            plan.found = Some(self.look(image, files, Some(fence), pace.lost).await?);
            let size = plan.chain[0].record.virtual_size.unwrap_or_default();
            Stage::only("repair", size).tell(pace, 100.0);
        }
        Ok(())
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let found = plan.found.ok_or_else(context::out_of_order)?;
        let intent = plan.intent.as_ref().unwrap_or(&plan.chain[0]);
        self.write(intent, found, plan.stays).await
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some((root, fence, disk)) = self.begun().await? else {
            return Ok(None);
        };
        if fence.mark().is_none() {
            return Ok(None);
        }
        let chain = self.at.chain_of(&disk).await?;
        let never = process::Stop::new();
        let (image, files) = (self.pass(&root, &chain).await?, (&root, &chain[..]));
        let found = self.look(image, files, Some(&fence), &never).await?;
        let stays = self.stays(&chain[0].record);
        self.write(&chain[0], found, stays).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some((_, mut fence, disk)) = self.begun().await? else {
            return Ok(());
        };
        fence.forget().await?;
        if disk.record.state != DiskState::Changing {
            return Ok(());
        }
        self.at.give_back(&disk).await
    }
}
