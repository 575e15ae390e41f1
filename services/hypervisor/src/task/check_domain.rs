//! `check_domain`: a domain is started paused, looked at and taken away. Nothing stays defined.

use super::{Checked, Context, Steps};
use crate::{
    catalog::Hold,
    domains::trial_name,
    libvirt::Power,
    place::{self, Placed},
    xml::Blueprint,
};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::{DomainRecord, UseMode},
    task::hypervisor::{DomainState, domain as params},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct CheckDomain<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::CheckDomain,
}

pub(crate) struct Plan {
    guard: OwnedMutexGuard<()>,
    blueprint: Blueprint,
    placed: Placed,
    warnings: Vec<String>,
    is_ok: bool,
}

impl CheckDomain<'_> {
    fn blueprint(&self, record: Option<&DomainRecord>) -> Result<Blueprint, JobError> {
        let last = record.and_then(|record| record.xml.as_deref());
        let definition = self.params.definition();
        self.at.domains.blueprint(definition, last, self.at.domain)
    }

    /// Ends the trial, if there is one, and frees what it had.
    async fn end(&self, holds: &[Hold]) -> Result<(), JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let name = trial_name(domain);
        if domains.host.domain(&name).await?.is_some() {
            match domains.host.power(domain, &name, Power::Destroy).await {
                Err(error) if !error.is_no_domain() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        let holder = domains.holder(domain);
        for hold in holds {
            match hold {
                Hold::Disk(id, _) => domains.catalog.free_disk(&holder, id).await?,
                Hold::Media(id) => domains.catalog.free_media(&holder, id).await?,
            }
        }
        Ok(())
    }

    /// What the job may hold, as its parameters say.
    async fn holds(&self) -> Result<Vec<Hold>, JobError> {
        let record = self.at.slot().await?.value;
        let Ok(blueprint) = self.blueprint(record.as_ref()) else {
            // What can't be read was never held.
            return Ok(Vec::new());
        };
        let mut holds: Vec<Hold> = blueprint.media().into_iter().map(Hold::Media).collect();
        for disk in blueprint.disks() {
            for (id, _) in self.at.domains.catalog.chain(&disk).await? {
                holds.push(Hold::Disk(id, UseMode::Shared));
            }
        }
        Ok(holds)
    }

    async fn is_active(&self) -> Result<Option<DomainState>, JobError> {
        let seen = self.at.seen().await?.filter(|seen| seen.is_active);
        Ok(seen.map(|seen| seen.state))
    }
}

impl Steps for CheckDomain<'_> {
    type Plan = Plan;

    async fn locks(&self) -> Result<LockSet, JobError> {
        let record = self.at.slot().await?.value;
        place::locks(&self.at.domains.catalog, &self.blueprint(record.as_ref())?).await
    }

    async fn clean(&self) -> Result<(), JobError> {
        self.abandon().await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let guard = domains.guard(domain).await;
        if let Some(state) = self.is_active().await? {
            let text = "a domain that runs can't be tried out";
            return Err(self.at.wrong_state(text, state).into());
        }
        let record = self.at.slot().await?.value;
        let blueprint = self.blueprint(record.as_ref())?;
        self.at.claim_room(&blueprint).await?;
        let (holder, roots) = (domains.holder(domain), &domains.settings.roots);
        let job = &self.at.job.record;
        let placed = place::place(&domains.catalog, roots, &blueprint, &holder, job).await?;
        let (warnings, is_ok) = (Vec::new(), false);
        Ok(Checked::Plan(Plan {
            guard,
            blueprint,
            placed,
            warnings,
            is_ok,
        }))
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let holder = self.at.domains.holder(self.at.domain);
        Ok(self
            .at
            .domains
            .catalog
            .hold(&holder, &plan.placed.holds)
            .await?)
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let (name, mark) = (trial_name(domain), self.at.mark());
        let blueprint = (&plan.blueprint, Uuid::now_v7());
        let xml = domains.host_xml(&name, blueprint, &mark, &plan.placed.files);
        match domains.host.try_out(domain, xml).await {
            Ok(()) => {
                let seen = domains.host.domain(&name).await.map_err(JobError::from)?;
                plan.is_ok = seen.is_some_and(|seen| seen.state == DomainState::Paused);
                if !plan.is_ok {
                    plan.warnings.push("it did not stay up".to_owned());
                }
            }
            Err(error) if error.is_in_doubt() => return Err(JobError::from(error).into()),
            Err(error) => {
                let error = JobError::from(error);
                if error.code == Code::DomainInvalidXml {
                    return Err(error.into());
                }
                plan.warnings.push(error.message);
            }
        }
        Ok(self.end(&plan.placed.holds).await?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        self.at.domains.capacity.release(&self.at.job.id);
        drop(plan.guard);
        done(&params::CheckedDomain {
            ok: plan.is_ok,
            warnings: plan.warnings,
        })
    }

    async fn abandon(&self) -> Result<(), JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        domains.capacity.release(&self.at.job.id);
        self.at.settled().await?;
        let _guard = domains.guard(domain).await;
        if self.is_active().await?.is_some() {
            // What it holds is its own.
            return Ok(());
        }
        self.end(&self.holds().await?).await
    }
}
