//! `sparsify`: gives back the room of blocks that the guest's file systems don't use.
//!
//! The tool works on a copy of the file beside it, by reference where the file system can, so it
//! can be stopped at any time and fails without a trace; what it does to the copy is what a guest
//! does that trims. The effect is one rename over the disk's file, under the lock on it. Before, the
//! lock is marked with the copy's inode and what the file took: by these a later claim knows that
//! the effect is there, and says the same of it.

use crate::{
    blocking,
    catalog::{self, Purpose},
    disks::Disk,
    draft::Draft,
    fence::{Mark, kill_users},
    pool::{Facts, Root},
    task::{Checked, Context, Pace, Steps, context, done, in_place::Alone, is_own, stage::Stage},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    JobError,
    protocol::lock::Mode,
    task::{image::ImageFormat, storage as params},
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct Sparsify<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Sparsify,
}

pub(crate) struct Plan {
    root: Root,
    /// The disk and all below it.
    chain: Vec<Disk>,
    /// What the disk's file takes now, in bytes.
    before: u64,
    draft: Option<Draft>,
    held: Option<Alone>,
}

impl Sparsify<'_> {
    fn admit(&self, disk: &Disk) -> Result<(), Stop> {
        catalog::admit_change(&disk.id, &disk.record)?;
        match disk.record.format {
            ImageFormat::Qcow2 | ImageFormat::Raw => self.at.admit_alone(disk),
            ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhdx | ImageFormat::Vpc => {
                let text = "only a qcow2 or a raw disk can be made sparse";
                Err(JobError::invalid_params("disk", text).into())
            }
        }
    }

    /// A copy of the file, made sparse.
    async fn copy(&self, plan: &Plan, facts: Facts, pace: &Pace<'_>) -> Result<Draft, Stop> {
        let (root, disk) = (&plan.root, &plan.chain[0]);
        let size = context::virtual_size(&disk.record)?;
        let all = facts.allocated.saturating_add(size);
        let copy = Stage::first("copy", facts.allocated, all);
        let draft = self.at.copied(root, disk, 0, copy, pace).await?;
        let (expected, below) = (context::expected(disk, plan.chain.get(1)), &plan.chain[1..]);
        let image = self.at.pass_on(root, draft.part(), expected.clone(), below);
        let image = image.await?;
        let stage = copy.then("sparsify", size);
        let rise = |percent| stage.tell(pace, percent);
        let tool = &self.at.store.sparsify;
        let ran = tool.in_place(image, facts.length.max(size), pace.stop, rise);
        if let Err(error) = ran.await {
            // The tool's machine is in a process group of its own.
            let identity = draft.identity().await?;
            blocking::act(move || kill_users(identity)).await;
            return Err(context::tool(error));
        }
        stage.tell(pace, 100.0);
        draft.sync().await?;
        self.at.verify(root, draft.part(), expected, size).await?;
        Ok(draft)
    }

    async fn write(&self, held: &Alone, before: u64) -> Result<Done, Stop> {
        self.at.settle_measured(&held.root, &held.disk).await?;
        self.result(&held.root, &held.disk, before).await
    }

    async fn result(&self, root: &Root, disk: &Disk, before: u64) -> Result<Done, Stop> {
        let after = self.at.facts_there(root, disk).await?.allocated;
        done(&params::Sparsified { before, after })
    }
}

/// What the file took before it was replaced, if the mark is of that.
fn replaced(mark: Option<Mark>, facts: Facts) -> Option<u64> {
    let mark = mark.filter(|mark| mark.inode == Some(facts.identity.1))?;
    mark.before
}

impl Steps for Sparsify<'_> {
    type Plan = Plan;

    // Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let disk = &self.params.disk;
        self.at.locks_below(disk, Mode::Exclusive).await
    }

    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(&self.params.disk).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let disk = self.at.admitted(&self.params.disk, Purpose::Use).await?;
        self.admit(&disk)?;
        let below = self.at.readable_below(&disk).await?;
        Ok(Checked::Plan(Plan {
            root: self.at.root().await?,
            chain: std::iter::once(disk).chain(below).collect(),
            before: 0,
            draft: None,
            held: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let idle = self.at.gate_idle(&plan.root, &plan.chain, pace.stop);
        idle.await?;
        let facts = self.at.facts_there(&plan.root, &plan.chain[0]).await?;
        plan.before = facts.allocated;
        plan.draft = Some(self.copy(plan, facts, pace).await?);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let held = self.at.hold(&plan.root, &plan.chain[0]);
        plan.held = Some(held.await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let (Some(draft), Some(held)) = (&mut plan.draft, &mut plan.held) else {
            return Err(context::out_of_order());
        };
        let mark = Mark {
            inode: Some(draft.identity().await?.1),
            before: Some(plan.before),
        };
        held.fence.begin(mark).await?;
        Ok(draft.replace(&context::file_of(&held.disk)).await?)
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let held = plan.held.as_ref().ok_or_else(context::out_of_order)?;
        self.write(held, plan.before).await
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        if let Some(held) = self.at.held_before(&self.params.disk).await? {
            let facts = self.at.facts_there(&held.root, &held.disk).await?;
            return match replaced(held.fence.mark(), facts) {
                Some(before) => self.write(&held, before).await.map(Some),
                None => Ok(None),
            };
        }
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let own = disk.filter(|disk| is_own(disk.record.owner_job.as_ref(), self.at.job));
        let Some(disk) = own else { return Ok(None) };
        let mark = self.at.is_published(&disk).await?;
        let Some(before) = mark.and_then(|mark| mark.before) else {
            return Ok(None);
        };
        let root = self.at.root().await?;
        self.result(&root, &disk, before).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(mut held) = self.at.held_before(&self.params.disk).await? else {
            return Ok(());
        };
        held.fence.forget().await?;
        self.at.settle_measured(&held.root, &held.disk).await
    }
}
