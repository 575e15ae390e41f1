//! `delete_media`: to the trash, or for good.

use crate::{
    blocking, catalog,
    catalog::Purpose,
    disks::Medium,
    fence::Fence,
    pool::{Name, PoolError},
    task::{Checked, Context, Pace, Steps, context, done, is_own, now, stage::Stage},
    trash::{Found, Home, purge},
};
use std::slice;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    JobError,
    catalog::{DiskState, MediaRecord, UseMode},
    protocol::lock::Mode,
    task::{
        Target,
        storage::{self as params, DeleteMode},
    },
};
use virtbus_worker::{
    perform::{Done, Stop},
    process,
};

pub(crate) struct DeleteMedia<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::DeleteMedia,
}

pub(crate) struct Plan {
    /// With its intent once that is written.
    medium: Medium,
    home: Home,
    fence: Option<Fence>,
    /// Bytes that are free again.
    freed: u64,
}

impl DeleteMedia<'_> {
    fn target(&self) -> Target {
        (&self.params.media).into()
    }

    fn result(&self, freed: u64) -> Result<Done, Stop> {
        done(&params::Freed { freed })
    }

    async fn home(&self, medium: &Medium) -> Result<Home, Stop> {
        Ok(Home {
            root: self.at.root().await?,
            file: Name::media(&medium.id, medium.record.format),
        })
    }

    async fn plan(&self, medium: Medium) -> Result<Plan, Stop> {
        Ok(Plan {
            home: self.home(&medium).await?,
            medium,
            fence: None,
            freed: 0,
        })
    }

    /// What is written of a medium that is gone.
    async fn bury(&self, medium: &Medium, freed: u64) -> Result<(), Stop> {
        let gone = |record: &MediaRecord| match self.params.mode {
            DeleteMode::Trash => catalog::trashed(record, now()),
            DeleteMode::Unlink | DeleteMode::Wipe => catalog::deleted(record, freed, now()),
        };
        let finished = self.at.store.media.finish(medium, gone).await?;
        finished.map(|_| ()).ok_or(Stop::Lost)
    }

    /// Writes that the medium goes, and what its end gives free.
    async fn take(&self, plan: &mut Plan) -> Result<(), Stop> {
        let is_ours = is_own(plan.medium.record.owner_job.as_ref(), self.at.job);
        let mut intent = catalog::taken(&plan.medium.record, &self.at.job.id, now());
        if self.params.mode != DeleteMode::Trash {
            // An earlier claim that wrote what is freed has perhaps removed it already.
            if !is_ours {
                let (home, of) = (plan.home.clone(), self.target());
                let allocated: Result<u64, PoolError> =
                    blocking::look(move || home.allocated(&of)).await;
                intent.actual_size = Some(allocated?);
            }
            plan.freed = intent.actual_size.unwrap_or_default();
        }
        plan.medium = self.at.store.media.update(&plan.medium, intent).await?;
        Ok(())
    }

    /// The medium, if this job has begun with it.
    async fn begun(&self) -> Result<Option<Medium>, Stop> {
        let medium = self.at.store.media.get(&self.params.media).await?;
        Ok(medium.filter(|medium| is_own(medium.record.owner_job.as_ref(), self.at.job)))
    }
}

impl Steps for DeleteMedia<'_> {
    type Plan = Plan;

    /// Alone on the medium.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let name = context::lock_name(&self.params.media);
        Ok(LockSet::from([(name, Mode::Exclusive)]))
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        self.at.admit_pool(false).await?;
        let medium = self.at.store.media.get(&self.params.media).await?;
        let state = medium.as_ref().map(|medium| medium.record.state);
        let is_trashed = self.at.is_so(medium.as_ref(), DiskState::Trashed).is_some();
        let is_enough = state == Some(DiskState::Deleted)
            || is_trashed && self.params.mode == DeleteMode::Trash;
        if is_enough {
            return self.result(0).map(Checked::Done);
        }
        let medium = self.at.had(&self.params.media, medium, Purpose::Delete)?;
        self.at.admit_use(&medium, UseMode::Exclusive)?;
        self.plan(medium).await.map(Checked::Plan)
    }

    async fn work(&self, _: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        plan.fence = Some(self.at.fence(&plan.home.root, &plan.medium.id).await?);
        plan.home.idle(&self.target()).await?;
        self.take(plan).await
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let claim = (&self.at.job.id, self.at.job.claim);
        plan.home.discard(&self.target(), claim).await?;
        let (home, stage) = (slice::from_ref(&plan.home), Stage::only("wipe", plan.freed));
        purge(home, &self.target(), self.params.mode, stage, pace).await
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        self.bury(&plan.medium, plan.freed).await?;
        if self.params.mode != DeleteMode::Trash
            && let Some(fence) = plan.fence.take()
        {
            fence.retire();
        }
        self.result(plan.freed)
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some(medium) = self.begun().await? else {
            return Ok(None);
        };
        let freed = medium.record.actual_size.unwrap_or_default();
        match (medium.record.state, self.params.mode) {
            (DiskState::Deleted, _) => return self.result(freed).map(Some),
            (DiskState::Trashed, DeleteMode::Trash) => return self.result(0).map(Some),
            (_, _) => {}
        }
        let mut plan = self.plan(medium).await?;
        let (home, of, job) = (plan.home.clone(), self.target(), self.at.job.id.clone());
        let removes = self.params.mode != DeleteMode::Trash;
        let begun: Result<bool, PoolError> =
            blocking::look(
                move || Ok(home.is_left_by(&of, &job)? || removes && home.is_gone(&of)?),
            )
            .await;
        if !begun? {
            return Ok(None);
        }
        let never = process::Stop::new();
        plan.fence = Some(self.at.fence(&plan.home.root, &plan.medium.id).await?);
        self.take(&mut plan).await?;
        self.effect(&mut plan, &Pace::endless(&never)).await?;
        self.publish(&mut plan).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), Stop> {
        let Some(medium) = self.begun().await? else {
            return Ok(());
        };
        match medium.record.state {
            DiskState::Changing | DiskState::Missing | DiskState::Broken => {}
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Ready
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Deleted => return Ok(()),
        }
        let home = self.home(&medium).await?;
        let _fence = self.at.fence(&home.root, &medium.id).await?;
        let (of, job) = (self.target(), self.at.job.id.clone());
        let found: Result<Found, PoolError> = blocking::act(move || home.put_back(&of, &job)).await;
        let state = match (found?, self.params.mode) {
            // It can't be undone any more, so it's done.
            (Found::Nowhere, DeleteMode::Unlink | DeleteMode::Wipe) => {
                let freed = medium.record.actual_size.unwrap_or_default();
                return self.bury(&medium, freed).await;
            }
            // Nobody knows how far the overwriting came.
            (Found::InTrash, DeleteMode::Wipe) => Some(DiskState::Broken),
            (Found::InPlace | Found::InTrash | Found::Nowhere, _) => None,
        };
        let back = |record: &MediaRecord| match state {
            Some(state) => catalog::in_state(record, state, now()),
            None => catalog::given_back(record, now()),
        };
        let finished = self.at.store.media.finish(&medium, back).await?;
        finished.map(|_| ()).ok_or(Stop::Lost)
    }
}
