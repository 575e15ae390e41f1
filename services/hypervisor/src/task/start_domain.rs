//! `start_domain`: from XML, from a template, or as it was defined last.

use super::{Checked, Context, Steps};
use crate::{
    libvirt::Seen,
    place::{self, Placed},
    xml::Blueprint,
};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError, Timestamp,
    catalog::{Desired, DomainRecord},
    task::hypervisor::{DomainState, domain as params},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct StartDomain<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::StartDomain,
}

pub(crate) struct Plan {
    /// Nothing observed between the steps is meant for the record.
    guard: OwnedMutexGuard<()>,
    blueprint: Blueprint,
    placed: Placed,
    uuid: Uuid,
    /// Whether libvirt has a definition here that is another life's of the domain.
    is_outdated: bool,
}

impl StartDomain<'_> {
    fn blueprint(&self, record: Option<&DomainRecord>) -> Result<Blueprint, JobError> {
        let last = record.and_then(|record| record.xml.as_deref());
        let definition = self.params.definition();
        self.at.domains.blueprint(definition, last, self.at.domain)
    }

    /// A domain's uuid is given once.
    fn uuid(&self, record: Option<&DomainRecord>, asked: Option<Uuid>) -> Result<Uuid, JobError> {
        match (record, asked) {
            (Some(record), Some(asked)) if record.uuid != asked => {
                let text = "the domain has another uuid";
                Err(JobError::new(Code::DomainInvalidXml, text))
            }
            (Some(record), _) => Ok(record.uuid),
            (None, Some(asked)) => Ok(asked),
            (None, None) => Ok(Uuid::now_v7()),
        }
    }

    /// The domain is defined from now on as this job started it. Not before: a start that fails
    /// leaves it as it was.
    async fn define(&self) -> Result<(), JobError> {
        let (catalog, domain) = (&self.at.domains.catalog, self.at.domain);
        let step = |record: &DomainRecord| {
            let blueprint = self.blueprint(Some(record))?;
            let next = DomainRecord {
                xml: Some(blueprint.portable(domain, record.uuid)),
                disks: blueprint.disks(),
                media: blueprint.media(),
                ..record.clone()
            };
            let updated_at = Timestamp::now();
            Ok((next != *record).then_some(DomainRecord { updated_at, ..next }))
        };
        Ok(catalog.change_domain(domain, step).await?)
    }

    /// As [`Self::running`], of a domain that this claim didn't start. An earlier one may have: that
    /// is told by the domain's mark.
    async fn found(&self, seen: &Seen) -> Result<Done, JobError> {
        let is_marked = seen.mark.as_ref().is_some_and(|mark| self.at.is_job(mark));
        let record = self.at.slot().await?.value;
        if is_marked && record.is_some_and(|record| self.at.is_own(&record)) {
            self.define().await?;
        }
        self.running().await
    }

    /// What is so, with the guard held: the domain runs.
    async fn running(&self) -> Result<Done, JobError> {
        let domains = self.at.domains;
        let record = domains.sync_guarded(self.at.domain).await?;
        let record = record.ok_or_else(|| self.at.not_found())?;
        domains.capacity.release(&self.at.job.id);
        let started = params::Started {
            hypervisor: domains.settings.hypervisor.clone(),
            state: record.state,
            graphics: record.graphics,
        };
        done(&started).map_err(|_| JobError::internal("a result that is no object"))
    }

    async fn active(&self) -> Result<Option<Seen>, JobError> {
        Ok(self.at.seen().await?.filter(|seen| seen.is_active))
    }

    /// Whether libvirt knows the domain as it was before it was started elsewhere, or before it was
    /// deleted there: that isn't it any more. What nobody made over the bus is nobody's to remove.
    fn is_outdated(
        &self,
        seen: &Seen,
        record: Option<&DomainRecord>,
        uuid: Uuid,
    ) -> Result<bool, JobError> {
        let here = &self.at.domains.settings.hypervisor;
        let was_here = record.is_some_and(|record| record.hypervisor.as_ref() == Some(here));
        let is_it = seen.uuid == Some(uuid);
        if seen.mark.is_some() {
            return Ok(!(is_it && was_here));
        }
        if is_it {
            return Ok(false);
        }
        let text = "the host has another domain of this name, which wasn't made over the bus";
        Err(JobError::new(Code::Conflict, text).with("domain", self.at.domain.as_str()))
    }

    /// Has libvirt define the domain as it was before this job, if the job got as far as to change
    /// that: what is done to a domain that is off is done to what libvirt knows of it.
    async fn redefine(&self, former: &Blueprint, record: &DomainRecord) -> Result<(), JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let mark = self.at.seen().await?.and_then(|seen| seen.mark);
        if !mark.is_some_and(|mark| self.at.is_job(&mark)) {
            return Ok(());
        }
        let roots = &domains.settings.roots;
        let files = match place::files(&domains.catalog, roots, former).await {
            Ok(files) => files,
            Err(error) if error.code.is_retryable() => return Err(error),
            Err(error) => {
                tracing::warn!(%domain, %error, "libvirt isn't told what it was before");
                return Ok(());
            }
        };
        let (name, mark) = (domain.as_str(), self.at.mark());
        let xml = domains.host_xml(name, (former, record.uuid), &mark, &files);
        match domains.host.define(domain, xml).await {
            Err(error) if error.is_in_doubt() => Err(error.into()),
            Err(error) => {
                tracing::warn!(%domain, %error, "libvirt doesn't take what it was before");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The record of a domain that is about to be started here.
    fn intended(&self, plan: &Plan, before: Option<DomainRecord>) -> DomainRecord {
        let (domains, job, now) = (self.at.domains, &self.at.job.record, Timestamp::now());
        let before = before.unwrap_or_else(|| DomainRecord {
            uuid: plan.uuid,
            pool: domains.settings.pool.clone(),
            hypervisor: None,
            state: DomainState::Shutoff,
            desired: Desired::Shutoff,
            xml: None,
            graphics: None,
            disks: Vec::new(),
            media: Vec::new(),
            snapshots: Vec::new(),
            tenant: job.tenant.clone(),
            user: job.user.clone(),
            owner_job: None,
            epoch: 0,
            last_started_at: None,
            updated_at: now,
        });
        DomainRecord {
            hypervisor: Some(domains.settings.hypervisor.clone()),
            desired: Desired::Running,
            disks: plan.blueprint.disks(),
            media: plan.blueprint.media(),
            owner_job: Some(self.at.job.id.clone()),
            epoch: before.epoch + 1,
            updated_at: now,
            ..before
        }
    }
}

impl Steps for StartDomain<'_> {
    type Plan = Plan;

    /// Alone on what the guest writes, shared on all below and on media.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let record = self.at.slot().await?.value;
        place::locks(&self.at.domains.catalog, &self.blueprint(record.as_ref())?).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let domains = self.at.domains;
        let guard = domains.guard(self.at.domain).await;
        let seen = self.at.seen().await?;
        let record = self.at.slot().await?.value;
        if let Some(seen) = seen.as_ref().filter(|seen| seen.is_active) {
            return Ok(Checked::Done(self.found(seen).await?));
        }
        let blueprint = self.blueprint(record.as_ref())?;
        self.at.claim_room(&blueprint).await?;
        let uuid = self.uuid(record.as_ref(), blueprint.uuid)?;
        let is_outdated = match &seen {
            Some(seen) => self.is_outdated(seen, record.as_ref(), uuid)?,
            None => false,
        };
        let holder = domains.holder(self.at.domain);
        let roots = &domains.settings.roots;
        let job = &self.at.job.record;
        let placed = place::place(&domains.catalog, roots, &blueprint, &holder, job).await?;
        Ok(Checked::Plan(Plan {
            guard,
            blueprint,
            placed,
            uuid,
            is_outdated,
        }))
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let (catalog, domain) = (&self.at.domains.catalog, self.at.domain);
        if plan.is_outdated {
            // Before the record says that the domain is here: then it would pass for its own.
            let undefined = self.at.domains.host.undefine(domain).await;
            undefined.map_err(JobError::from)?;
        }
        let slot = self.at.slot().await?;
        let record = self.intended(plan, slot.value);
        catalog.write_domain(domain, record, slot.revision).await?;
        let holder = self.at.domains.holder(domain);
        Ok(catalog.hold(&holder, &plan.placed.holds).await?)
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let (name, mark) = (domain.as_str(), self.at.mark());
        let blueprint = (&plan.blueprint, plan.uuid);
        let xml = domains.host_xml(name, blueprint, &mark, &plan.placed.files);
        domains
            .host
            .define(domain, xml)
            .await
            .map_err(JobError::from)?;
        match domains.host.start(domain, self.params.paused).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_in_doubt() => Err(JobError::from(error).into()),
            // It was started behind our back, between two steps.
            Err(_) if self.active().await?.is_some() => Ok(()),
            Err(error) => Err(JobError::from(error).into()),
        }
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        self.define().await?;
        let running = self.running().await;
        drop(plan.guard);
        Ok(running?)
    }

    /// libvirt is asked first: what runs was started, by this job or before it.
    async fn recover(&self) -> Result<Option<Done>, JobError> {
        self.at.settled().await?;
        let _guard = self.at.domains.guard(self.at.domain).await;
        match self.active().await? {
            Some(seen) => self.found(&seen).await.map(Some),
            None => Ok(None),
        }
    }

    /// A domain that doesn't run is as it was before: off, or not there at all.
    async fn abandon(&self) -> Result<(), JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        domains.capacity.release(&self.at.job.id);
        self.at.settled().await?;
        let _guard = domains.guard(domain).await;
        let slot = self.at.slot().await?;
        let Some(mut record) = slot.value.filter(|record| self.at.is_own(record)) else {
            return Ok(());
        };
        if let Some(seen) = self.active().await? {
            return self.found(&seen).await.map(|_| ());
        }
        domains.free(domain, &record).await?;
        if record.xml.is_some() {
            // One that this host allows no longer can't be started, but stays what it was.
            if let Ok(former) = domains.last_blueprint(domain, &record) {
                self.redefine(&former, &record).await?;
                record.disks = former.disks();
                record.media = former.media();
            }
            let next = DomainRecord {
                desired: Desired::Shutoff,
                owner_job: None,
                updated_at: Timestamp::now(),
                ..record
            };
            domains
                .catalog
                .write_domain(domain, next, slot.revision)
                .await?;
            return Ok(());
        }
        // It was never defined, so this job brought it: nothing of it stays.
        if self.at.seen().await?.is_some() {
            domains.host.undefine(domain).await?;
        }
        let removed = domains
            .catalog
            .domains
            .remove(domain.as_str(), slot.revision)
            .await;
        removed.map_err(|error| JobError::internal(error.to_string()))
    }
}
