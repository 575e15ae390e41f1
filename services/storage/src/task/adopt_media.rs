//! `adopt_media`: a file that lies in the pool becomes a medium.

use crate::{
    blocking, catalog,
    disks::Medium,
    fence::Fence,
    pool::{Facts, Name, PoolError, Root},
    task::{Checked, Context, Pace, Steps, context, done, is_own, now},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskState, MediaRecord},
    protocol::lock::Mode,
    task::storage as params,
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct AdoptMedia<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::AdoptMedia,
}

pub(crate) struct Plan {
    root: Root,
    facts: Facts,
    fence: Option<Fence>,
    intent: Option<Medium>,
}

impl AdoptMedia<'_> {
    fn target(&self) -> Name {
        Name::media(&self.params.media, self.params.format)
    }

    /// Where the file lies before.
    fn source(&self) -> Name {
        let file = self.params.file.as_ref();
        file.map_or_else(|| self.target(), Name::adopted)
    }

    fn result(&self, record: &MediaRecord) -> Result<Done, Stop> {
        done(&params::Adopted {
            virtual_size: record.virtual_size.unwrap_or_default(),
            format: self.params.format,
        })
    }

    /// Writes the result on top of the intent.
    async fn write(&self, intent: &Medium, facts: Facts) -> Result<Done, Stop> {
        let made = |record: &MediaRecord| MediaRecord {
            virtual_size: Some(facts.length),
            actual_size: Some(facts.allocated),
            ..catalog::in_state(record, DiskState::Ready, now())
        };
        let finished = self.at.store.media.finish(intent, made).await?;
        self.result(&finished.ok_or(Stop::Lost)?.record)
    }

    /// The intent of an earlier claim, and the file if it's at its place.
    async fn begun(&self) -> Result<Option<(Medium, Root, Option<Facts>)>, Stop> {
        let medium = self.at.store.media.get(&self.params.media).await?;
        let is_ours = |medium: &Medium| is_own(medium.record.owner_job.as_ref(), self.at.job);
        let Some(medium) = medium.filter(is_ours) else {
            return Ok(None);
        };
        let root = self.at.root().await?;
        let facts = self.at.facts_of(&root, &self.target()).await?;
        // With the source there still, the target is somebody else's.
        let is_moved = match &self.params.file {
            Some(_) => !self.at.is_taken(&root, &self.source()).await?,
            None => true,
        };
        Ok(Some((medium, root, facts.filter(|_| is_moved))))
    }
}

impl Steps for AdoptMedia<'_> {
    type Plan = Plan;

    /// Alone on the medium.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let name = context::lock_name(&self.params.media);
        Ok(LockSet::from([(name, Mode::Exclusive)]))
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(true).await?;
        let root = self.at.root().await?;
        let there = self.at.store.media.get(&self.params.media).await?;
        let record = there.as_ref().map(|medium| &medium.record);
        catalog::admit_new(&self.params.media, record, &self.at.job.id)?;
        let target = self.target();
        if self.params.file.is_some() && self.at.facts_of(&root, &target).await?.is_some() {
            let text = "a file of that name is in the pool already";
            let refused = JobError::new(Code::MediaExists, text);
            return Err(refused.with("media", self.params.media.as_str()).into());
        }
        let gone = || JobError::invalid_params("file", "isn't in the pool");
        let facts = self.at.facts_of(&root, &self.source()).await?;
        let facts = facts.ok_or_else(gone)?;
        context::admit_size(facts.length, &pool)?;
        Ok(Checked::Plan(Plan {
            root,
            facts,
            fence: None,
            intent: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let format = self.params.format.into();
        let gone = || JobError::invalid_params("file", "isn't in the pool");
        let source = self.source();
        let found = self
            .at
            .foreign(&plan.root, &source, format, plan.facts.length);
        found.await?.ok_or_else(gone)?;
        self.at.idle_foreign(&plan.root, &source).await
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let (media, id) = (&self.at.store.media, &self.params.media);
        plan.fence = Some(self.at.fence(&plan.root, id).await?);
        self.at.idle_foreign(&plan.root, &self.source()).await?;
        let (pool, format) = (self.at.pool.name.clone(), self.params.format);
        let job = &self.at.job.record;
        let mut record = catalog::new_medium(pool, format, plan.facts.length, job, now());
        plan.intent = Some(match media.get(id).await? {
            None => media.create(id, record).await?,
            Some(there) => {
                catalog::admit_new(id, Some(&there.record), &self.at.job.id)?;
                record.epoch = there.record.epoch + 1;
                media.update(&there, record).await?
            }
        });
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let (root, source, target) = (plan.root.clone(), self.source(), self.target());
        let moved: Result<(), PoolError> = blocking::act(move || {
            root.sync(&source)?;
            if source == target {
                return root.sync_names(&source, &target);
            }
            root.rename_new(&source, &target)
        })
        .await;
        Ok(moved?)
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        let intent = plan.intent.as_ref().ok_or_else(context::out_of_order)?;
        self.write(intent, plan.facts).await
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let Some((intent, root, placed)) = self.begun().await? else {
            return Ok(None);
        };
        match (intent.record.state, placed) {
            (DiskState::Creating, Some(facts)) => {
                let _fence = self.at.fence(&root, &intent.id).await?;
                self.write(&intent, facts).await.map(Some)
            }
            (DiskState::Creating | DiskState::Deleted, _) => Ok(None),
            (_, _) => self.result(&intent.record).map(Some),
        }
    }

    /// The file goes back to where it lay.
    async fn abandon(&self) -> Result<(), Stop> {
        let Some((intent, root, placed)) = self.begun().await? else {
            return Ok(());
        };
        if intent.record.state != DiskState::Creating {
            return Ok(());
        }
        let _fence = self.at.fence(&root, &intent.id).await?;
        if placed.is_some() && self.params.file.is_some() {
            let (source, target) = (self.source(), self.target());
            let moved: Result<(), PoolError> =
                blocking::act(move || root.rename_new(&target, &source)).await;
            moved?;
        }
        Ok(self.at.store.media.remove(&intent).await?)
    }
}
