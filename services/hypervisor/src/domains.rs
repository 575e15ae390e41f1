//! The domains of this host: what all tasks and the observer share.

use crate::{
    capacity::Capacity,
    catalog::{Catalog, CatalogError, Hold, Holder},
    libvirt::{Host, Mark, Seen},
    observe::{Verdict, observed},
    place::{self, Files, Roots},
    watch::Watch,
    xml::{Accelerator, Blueprint, HostFacts, Policy, Volume},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use uuid::Uuid;
use virtbus_wire::{
    DiskId, DomainId, JobError, Label, Timestamp,
    catalog::{DomainRecord, UseMode},
    task::hypervisor::Definition,
};

/// What libvirt calls a domain that is only tried out. No domain's id begins like this.
const TRIAL: &str = "_check.";

/// The domains of one host.
#[derive(Debug, Clone)]
pub(crate) struct Domains {
    pub(crate) host: Host,
    pub(crate) catalog: Catalog,
    pub(crate) settings: Arc<HostSettings>,
    pub(crate) capacity: Capacity,
    pub(crate) watch: Watch,
    guards: Guards<tokio::sync::Mutex<()>>,
    at_work: Guards<RwLock<()>>,
}

/// What is the same as long as the service runs.
#[derive(Debug)]
pub(crate) struct HostSettings {
    pub(crate) hypervisor: Label,
    pub(crate) pool: Label,
    pub(crate) roots: Roots,
    pub(crate) policy: Policy,
    pub(crate) accelerator: Accelerator,
    /// The address that screens listen on.
    pub(crate) listen: String,
}

/// The name under which a domain is tried out.
pub(crate) fn trial_name(domain: &DomainId) -> String {
    format!("{TRIAL}{domain}")
}

/// The domain that libvirt means by a name, whether it's only tried out or not.
pub(crate) fn domain_of(name: &str) -> Option<DomainId> {
    name.strip_prefix(TRIAL).unwrap_or(name).parse().ok()
}

impl Domains {
    pub(crate) fn new(
        host: Host,
        catalog: Catalog,
        settings: HostSettings,
        capacity: Capacity,
    ) -> Self {
        Self {
            host,
            catalog,
            settings: Arc::new(settings),
            capacity,
            watch: Watch::default(),
            guards: Guards::default(),
            at_work: Guards::default(),
        }
    }

    /// The same, with calls that get through when all others hang.
    pub(crate) fn for_stops(&self) -> Self {
        Self {
            host: self.host.for_stops(),
            ..self.clone()
        }
    }

    /// The same, with calls of its own for looks at what happened.
    pub(crate) fn for_looks(&self) -> Self {
        Self {
            host: self.host.for_looks(),
            ..self.clone()
        }
    }

    /// The same, with somebody who hears of each step.
    pub(crate) fn watched(self, watch: Watch) -> Self {
        Self { watch, ..self }
    }

    /// A domain on this host, as who holds disks.
    pub(crate) fn holder(&self, domain: &DomainId) -> Holder {
        Holder {
            domain: domain.clone(),
            hypervisor: self.settings.hypervisor.clone(),
        }
    }

    /// Keeps everybody else of this process from changing a domain's record and holds meanwhile:
    /// what the observer sees between two steps of a task isn't meant for it.
    pub(crate) async fn guard(&self, domain: &DomainId) -> OwnedMutexGuard<()> {
        self.guards.of(domain).lock_owned().await
    }

    /// As [`Domains::guard`]; none while somebody else has it.
    pub(crate) fn try_guard(&self, domain: &DomainId) -> Option<OwnedMutexGuard<()>> {
        self.guards.of(domain).try_lock_owned().ok()
    }

    /// Says that a job is at work on a domain, as long as this is kept.
    pub(crate) async fn at_work(&self, domain: &DomainId) -> OwnedRwLockReadGuard<()> {
        self.at_work.of(domain).read_owned().await
    }

    /// Keeps all jobs from a domain, as long as this is kept; none while one is at work on it.
    pub(crate) fn alone(&self, domain: &DomainId) -> Option<OwnedRwLockWriteGuard<()>> {
        self.at_work.of(domain).try_write_owned().ok()
    }

    /// Makes the record say what libvirt says, and the disks be held or free as that is.
    pub(crate) async fn sync(&self, domain: &DomainId) -> Result<(), JobError> {
        let _guard = self.guard(domain).await;
        self.sync_guarded(domain).await.map(|_| ())
    }

    /// As [`Domains::sync`], by whoever has the guard. The record as it is then.
    pub(crate) async fn sync_guarded(
        &self,
        domain: &DomainId,
    ) -> Result<Option<DomainRecord>, JobError> {
        let slot = self.catalog.domain(domain).await?;
        let Some(record) = slot.value else {
            return Ok(None);
        };
        let seen = self.host.domain(domain.as_str()).await?;
        let here = &self.settings.hypervisor;
        match observed(&record, here, seen.as_ref(), Timestamp::now()) {
            Verdict::NotOurs => Ok(Some(record)),
            Verdict::Intruder => {
                self.end_intruder(domain, &record).await?;
                Ok(Some(record))
            }
            Verdict::Ours(next) => {
                // Held before the record says that it runs; free before it says that it doesn't.
                self.settle(domain, &next, seen.as_ref()).await?;
                if *next == record {
                    return Ok(Some(record));
                }
                let next = DomainRecord {
                    updated_at: Timestamp::now(),
                    ..*next
                };
                let was = record.state;
                let written = self
                    .catalog
                    .write_domain(domain, next, slot.revision)
                    .await?;
                let is_now = written.value.as_ref().map(|record| record.state);
                tracing::info!(%domain, ?was, ?is_now, "seen");
                Ok(written.value)
            }
        }
    }

    /// A domain may run on one host only. That this one runs here was done behind our back.
    async fn end_intruder(&self, domain: &DomainId, record: &DomainRecord) -> Result<(), JobError> {
        let elsewhere = record.hypervisor.as_ref().map(Label::as_str);
        tracing::error!(%domain, elsewhere, "runs here too, and is ended");
        let power = crate::libvirt::Power::Destroy;
        Ok(self.host.power(domain, domain.as_str(), power).await?)
    }

    /// Holds what a domain that runs uses, and frees what one that doesn't had.
    async fn settle(
        &self,
        domain: &DomainId,
        record: &DomainRecord,
        seen: Option<&Seen>,
    ) -> Result<(), JobError> {
        let is_active = seen.is_some_and(|seen| seen.is_active);
        if is_active {
            return self.hold_all(domain, record).await;
        }
        if self.host.domain(&trial_name(domain)).await?.is_some() {
            return Ok(());
        }
        self.free(domain, record).await
    }

    /// Holds what a domain that runs uses.
    pub(crate) async fn hold_all(
        &self,
        domain: &DomainId,
        record: &DomainRecord,
    ) -> Result<(), JobError> {
        let holder = self.holder(domain);
        let holds = self.holds_of(domain, record).await?;
        match self.catalog.hold(&holder, &holds).await {
            // It runs: nothing is mended by saying that it doesn't.
            Err(CatalogError::Refused(error)) => {
                tracing::error!(%domain, %error, "runs with what isn't its own");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Frees what a domain that doesn't run had.
    pub(crate) async fn free(
        &self,
        domain: &DomainId,
        record: &DomainRecord,
    ) -> Result<(), JobError> {
        let holder = self.holder(domain);
        for disk in &record.disks {
            for id in self.chain_of(disk).await? {
                self.catalog.free_disk(&holder, &id).await?;
            }
        }
        for media in &record.media {
            self.catalog.free_media(&holder, media).await?;
        }
        Ok(())
    }

    /// What a domain uses while it runs, as its record says.
    pub(crate) async fn holds_of(
        &self,
        domain: &DomainId,
        record: &DomainRecord,
    ) -> Result<Vec<Hold>, JobError> {
        let mut holds: Vec<Hold> = record.media.iter().cloned().map(Hold::Media).collect();
        let readonly = self.readonly_disks(domain, record);
        for disk in &record.disks {
            for (at, id) in self.chain_of(disk).await?.into_iter().enumerate() {
                let writes = at == 0 && !readonly.contains(&id);
                let mode = if writes {
                    UseMode::Exclusive
                } else {
                    UseMode::Shared
                };
                holds.push(Hold::Disk(id, mode));
            }
        }
        Ok(holds)
    }

    /// A disk and those below it; it alone where the chain can't be followed.
    pub(crate) async fn chain_of(&self, disk: &DiskId) -> Result<Vec<DiskId>, JobError> {
        match self.catalog.chain(disk).await {
            Ok(chain) => Ok(chain.into_iter().map(|(id, _)| id).collect()),
            Err(CatalogError::Refused(error)) => {
                tracing::warn!(%disk, %error, "the disks below aren't known");
                Ok(vec![disk.clone()])
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Those of a domain's disks that its guest can't write.
    fn readonly_disks(&self, domain: &DomainId, record: &DomainRecord) -> Vec<DiskId> {
        let Ok(blueprint) = self.last_blueprint(domain, record) else {
            return Vec::new();
        };
        let disks = blueprint
            .volumes
            .into_iter()
            .filter_map(|volume| match volume {
                Volume::Disk {
                    disk,
                    readonly: true,
                    ..
                } => Some(disk),
                Volume::Disk { .. } | Volume::Media { .. } => None,
            });
        disks.collect()
    }

    /// Those that it can: libvirt keeps snapshots in these.
    pub(crate) fn written_disks(&self, domain: &DomainId, record: &DomainRecord) -> Vec<DiskId> {
        let readonly = self.readonly_disks(domain, record);
        let disks = record.disks.iter();
        let written = disks.filter(|disk| !readonly.contains(disk));
        written.cloned().collect()
    }

    /// Makes libvirt's own definition of a domain that is off say what its record says: the next
    /// start may be somebody else's. Nothing where libvirt doesn't know the domain.
    pub(crate) async fn redefine(
        &self,
        domain: &DomainId,
        (blueprint, uuid): (&Blueprint, Uuid),
        mark: &Mark,
    ) -> Result<(), JobError> {
        if self.host.domain(domain.as_str()).await?.is_none() {
            return Ok(());
        }
        let settings = &self.settings;
        let files = place::files(&self.catalog, &settings.roots, blueprint).await?;
        let xml = self.host_xml(domain.as_str(), (blueprint, uuid), mark, &files);
        Ok(self.host.define(domain, xml).await?)
    }

    /// This host's XML of a blueprint, for a domain of this name.
    pub(crate) fn host_xml(
        &self,
        name: &str,
        (blueprint, uuid): (&Blueprint, Uuid),
        mark: &Mark,
        files: &Files,
    ) -> String {
        let settings = &self.settings;
        let facts = HostFacts {
            accelerator: settings.accelerator,
            listen: &settings.listen,
            files,
            folders: &settings.policy.folders,
        };
        blueprint.for_host(name, uuid, mark, &facts)
    }

    /// What a domain was defined as last.
    pub(crate) fn last_blueprint(
        &self,
        domain: &DomainId,
        record: &DomainRecord,
    ) -> Result<Blueprint, JobError> {
        self.blueprint(Definition::Last, record.xml.as_deref(), domain)
    }

    /// What a job makes a domain from, held against this host's policy.
    pub(crate) fn blueprint(
        &self,
        definition: Definition<'_>,
        last: Option<&str>,
        domain: &DomainId,
    ) -> Result<Blueprint, JobError> {
        let settings = &self.settings;
        Blueprint::new(definition, last, domain, &settings.pool, &settings.policy)
    }
}

/// A lock per domain, within this process.
#[derive(Debug)]
struct Guards<L>(Arc<Mutex<HashMap<DomainId, Arc<L>>>>);

impl<L> Clone for Guards<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L> Default for Guards<L> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<L: Default> Guards<L> {
    fn of(&self, domain: &DomainId) -> Arc<L> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has or waits for are only in this map.
        all.retain(|_, guard| Arc::strong_count(guard) > 1);
        Arc::clone(all.entry(domain.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_wants_a_domain_alone_waits_for_no_job_and_keeps_them_out() {
        let at_work: Guards<RwLock<()>> = Guards::default();
        let web1: DomainId = "web1".parse().unwrap();
        let web2: DomainId = "web2".parse().unwrap();
        // Two claims of one job, of which the first hangs.
        let jobs = (
            at_work.of(&web1).read_owned().await,
            at_work.of(&web1).read_owned().await,
        );
        assert!(at_work.of(&web1).try_write_owned().is_err());
        assert!(at_work.of(&web2).try_write_owned().is_ok());
        drop(jobs);
        let alone = at_work.of(&web1).try_write_owned().unwrap();
        assert!(at_work.of(&web1).try_read_owned().is_err());
        drop(alone);
        assert!(at_work.of(&web1).try_read_owned().is_ok());
    }
}
