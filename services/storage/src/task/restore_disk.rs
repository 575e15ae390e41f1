//! `restore_disk`: out of the trash, to where it was.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Disk,
    fence::Fence,
    pool::{Name, PoolError},
    task::{Checked, Context, Pace, Steps, context, done, homes::taken, is_own, now},
    trash::{Home, in_trash},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
    task::{Target, storage as params},
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct RestoreDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::RestoreDisk,
}

pub(crate) struct Plan {
    /// With its intent once that is written.
    disk: Disk,
    /// Where it goes back to: the pool, or its archive.
    home: Home,
    state: DiskState,
    /// Where it lies.
    trash: Name,
    fence: Option<Fence>,
}

impl RestoreDisk<'_> {
    fn result(&self, record: &DiskRecord) -> Result<Done, Stop> {
        done(&params::Restored {
            actual_size: record.actual_size.unwrap_or_default(),
        })
    }

    /// Where a disk was, and what it is there.
    async fn homes(&self, disk: &Disk) -> Result<Vec<(Home, DiskState)>, Stop> {
        let homes = self.at.homes(disk).await?;
        // The pool itself comes first.
        Ok(homes
            .into_iter()
            .zip([DiskState::Ready, DiskState::Archived])
            .collect())
    }

    /// Where a disk lies in the trash.
    async fn found(&self, disk: &Disk) -> Result<(Home, DiskState, Name), Stop> {
        let of = Target::from(&disk.id);
        for (home, state) in self.homes(disk).await? {
            let (root, of) = (home.root.clone(), of.clone());
            let names: Result<Vec<Name>, PoolError> =
                blocking::look(move || in_trash(&root, &of)).await;
            if let Some(name) = names?.pop() {
                return Ok((home, state, name));
            }
        }
        let text = "the disk's file isn't in the trash";
        let refused = JobError::new(Code::DiskWrongState, text);
        Err(refused.with("disk", disk.id.as_str()).into())
    }

    /// Writes that it's back, as it's measured there.
    async fn write(&self, intent: &Disk, home: &Home, state: DiskState) -> Result<Done, Stop> {
        let home = home.clone();
        let facts: Result<_, PoolError> = blocking::look(move || home.root.facts(&home.file)).await;
        let allocated = facts?.map(|facts| facts.allocated);
        let back = |record: &DiskRecord| DiskRecord {
            actual_size: allocated.or(record.actual_size),
            ..catalog::in_state(record, state, now())
        };
        let finished = self.at.store.disks.finish(intent, back).await?;
        self.result(&finished.ok_or(Stop::Lost)?.record)
    }

    /// The intent of an earlier claim, and where the disk's file is if it's back.
    async fn begun(&self) -> Result<Option<(Disk, Option<(Home, DiskState)>)>, Stop> {
        let disk = self.at.store.disks.get(&self.params.disk).await?;
        let is_ours = |disk: &Disk| is_own(disk.record.owner_job.as_ref(), self.at.job);
        let Some(disk) = disk.filter(is_ours) else {
            return Ok(None);
        };
        if disk.record.state != DiskState::Trashed {
            return Ok(Some((disk, None)));
        }
        for (home, state) in self.homes(&disk).await? {
            let (at, of) = (home.clone(), Target::from(&disk.id));
            let is_back: Result<bool, PoolError> = blocking::look(move || {
                // With one in the trash still, the other is somebody else's.
                Ok(at.root.facts(&at.file)?.is_some() && in_trash(&at.root, &of)?.is_empty())
            })
            .await;
            if is_back? {
                return Ok(Some((disk, Some((home, state)))));
            }
        }
        Ok(Some((disk, None)))
    }
}

impl Steps for RestoreDisk<'_> {
    type Plan = Plan;

    /// Alone on the disk, shared on all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at
            .locks_below(&self.params.disk, Mode::Exclusive)
            .await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let disks = &self.at.store.disks;
        let found = disks.get(&self.params.disk).await?;
        if let Some(disk) = self.at.is_so(found.as_ref(), DiskState::Ready) {
            return self.result(&disk.record).map(Checked::Done);
        }
        let disk = self.at.had(&self.params.disk, found, Purpose::Restore)?;
        // What it's on top of comes back first.
        let below = self.at.readable_below(&disk).await?;
        let (home, state, trash) = self.found(&disk).await?;
        let (at, file) = (home.root.clone(), home.file.clone());
        let facts: Result<_, PoolError> = blocking::look(move || at.facts(&file)).await;
        if facts?.is_some() {
            return Err(taken(&disk.id, "the pool").into());
        }
        home.idle(&(&disk.id).into()).await?;
        if state == DiskState::Ready {
            let expected = context::expected(&disk, below.first());
            self.at.pass_file(&home.root, &trash, expected).await?;
        }
        Ok(Checked::Plan(Plan {
            disk,
            home,
            state,
            trash,
            fence: None,
        }))
    }

    async fn work(&self, _: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        // Against the sweep that empties the trash.
        plan.fence = Some(self.at.fence(&self.at.root().await?, &plan.disk.id).await?);
        plan.home.idle(&(&plan.disk.id).into()).await?;
        plan.disk = self
            .at
            .store
            .disks
            .take(&plan.disk, &self.at.job.id)
            .await?;
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let (home, trash) = (plan.home.clone(), plan.trash.clone());
        let moved: Result<(), PoolError> =
            blocking::act(move || home.root.rename_new(&trash, &home.file)).await;
        Ok(moved?)
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        self.write(&plan.disk, &plan.home, plan.state).await
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some((disk, back)) = self.begun().await? else {
            return Ok(None);
        };
        match (disk.record.state, back) {
            (DiskState::Ready | DiskState::Archived, _) => self.result(&disk.record).map(Some),
            (DiskState::Trashed, Some((home, state))) => {
                self.write(&disk, &home, state).await.map(Some)
            }
            (_, _) => Ok(None),
        }
    }

    /// What is trashed keeps its state, so there's only the file to see to.
    async fn abandon(&self) -> Result<(), Stop> {
        let Some((disk, Some((home, _)))) = self.begun().await? else {
            return Ok(());
        };
        let _fence = self.at.fence(&self.at.root().await?, &disk.id).await?;
        let trash = Name::trash(&disk.id, &self.at.job.id, self.at.job.claim);
        let moved: Result<(), PoolError> =
            blocking::act(move || home.root.rename_new(&home.file, &trash)).await;
        Ok(moved?)
    }
}
