//! What jobs that are over have begun in the catalogue: put back within seconds, or a disk would be
//! busy, or held, for good.
//!
//! A claim that was cut off while it wrote what it was about to do may have it written when its job
//! has ended. Such an intent has no effect, as the claim doesn't come past its fence any more; what
//! it names is put back by the end of the job's own task. What changed in the catalogue is read
//! every few seconds, from where the last look ended.
//!
//! The host of the job's domain does so, as nobody else can ask about it; of a host that was fenced
//! any other one. No job of this service is at work on the domain meanwhile, and job and record are
//! looked at once more then: somebody may have retried the job.

mod begun;

use crate::{
    catalog::Hold,
    domains::Domains,
    follow::free_unused,
    foreign,
    perform::domain_of,
    task::{Steps as _, each_with_steps, known},
};
use begun::{Begun, Known, Next};
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bucket, Bus, BusError, Entry, Jobs, jobs::KEEP, lease::Leases};
use virtbus_daemon::Beat;
use virtbus_wire::{
    Class, DomainId, JobError, Object, Record, Task, Timestamp, WorkerId, catalog::HypervisorState,
    protocol::leftover::Intent,
};
use virtbus_worker::Assignment;

/// Between two looks. The first comes that long after the start: by then the process has its lease.
const LOOK: Duration = Duration::from_secs(10);
/// After how many looks everything is read from the beginning: a bucket that was restored counts
/// anew.
const LOOKS_MAX: u32 = 360;

/// Why something wasn't put back.
#[derive(Debug, thiserror::Error)]
enum LeftoverError {
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// It can't be put back now.
    #[error(transparent)]
    Busy(#[from] JobError),
}

/// Looks after what jobs of this host's domains have begun.
#[derive(Debug)]
pub(crate) struct Leftovers {
    domains: Domains,
    jobs: Jobs,
    leases: Leases,
    worker: WorkerId,
    looks: u32,
    known: Known,
}

impl Leftovers {
    /// Nothing is looked at yet. What is put back is put back in this worker's name.
    pub(crate) fn new(domains: Domains, bus: &Bus, worker: WorkerId) -> Self {
        Self {
            domains,
            jobs: Jobs::new(bus, KEEP),
            leases: Leases::new(bus),
            worker,
            looks: 0,
            known: Known::default(),
        }
    }

    /// Looks until it's told to stop.
    pub(crate) async fn watch(mut self, stop: CancellationToken) {
        let mut looks = Beat::after(LOOK, stop);
        while looks.next().await {
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "what ended jobs began is put back later");
            }
        }
    }

    /// One look: what is to be put back now, is. What can't be is tried again by the next one.
    async fn look(&mut self) -> Result<(), LeftoverError> {
        if self.looks.is_multiple_of(LOOKS_MAX) {
            self.known = Known::default();
        }
        self.looks = self.looks.wrapping_add(1);
        self.known.read(&self.domains).await?;
        for (of, begun) in self.known.begun.clone() {
            match self.put_back(&of, &begun).await {
                Ok(true) => {}
                Ok(false) => drop(self.known.begun.remove(&of)),
                Err(error) => {
                    tracing::warn!(%of, job = %begun.job, %error,
                        "what an ended job began isn't put back now");
                }
            }
        }
        for (domain, holds) in std::mem::take(&mut self.known.held) {
            // A job may be about to start the domain, or to give it another disk, and takes long.
            let (alone, guard) = (self.domains.alone(&domain), self.domains.try_guard(&domain));
            if alone.is_some() && guard.is_some() {
                match self.free_spare(&domain, holds.clone()).await {
                    Ok(()) => continue,
                    Err(error) => tracing::warn!(%domain, %error, "what it held stays for now"),
                }
            }
            self.known.held.insert(domain, holds);
        }
        Ok(())
    }

    /// Frees what of this is held in a domain's name although it isn't its own: all, unless it
    /// runs; else what neither its record nor libvirt knows.
    async fn free_spare(&self, domain: &DomainId, holds: Vec<Hold>) -> Result<(), LeftoverError> {
        let domains = &self.domains;
        let seen = domains.host.domain(domain.as_str()).await;
        let seen = seen.map_err(JobError::from)?;
        let Some(seen) = seen.filter(|seen| seen.is_active) else {
            return Ok(free_unused(domains, domain, holds).await?);
        };
        let slot = domains.catalog.domain(domain).await;
        // Of one without a record nothing else is known.
        let Some(record) = slot.map_err(JobError::from)?.value else {
            return Ok(());
        };
        let mut own = domains.holds_of(domain, &record).await?;
        own.extend(foreign::used_by(domains, &seen).await?);
        let own: BTreeSet<Object> = own.iter().map(Hold::of).collect();
        let mut spare = Vec::new();
        for hold in holds {
            if !own.contains(&hold.of()) && !self.is_begun(&hold).await? {
                spare.push(hold);
            }
        }
        let freed = domains.catalog.free(&domains.holder(domain), &spare).await;
        Ok(freed.map_err(JobError::from)?)
    }

    /// Whether some job has begun something with what is held: it's looked at again when that is
    /// over.
    async fn is_begun(&self, hold: &Hold) -> Result<bool, BusError> {
        let Hold::Disk(id, _) = hold else {
            return Ok(false);
        };
        let disk = self.domains.catalog.disks.get_latest(id.as_str()).await?;
        Ok(disk.is_some_and(|disk| Intent::is_begun(disk.value.state)))
    }

    /// Puts one back, if its job is over. Whether it's to be looked at again.
    async fn put_back(&self, of: &Object, begun: &Begun) -> Result<bool, LeftoverError> {
        let Some(entry) = self.jobs.get_latest(&begun.job).await? else {
            // Of a disk a storage service sees to it.
            return Ok(false);
        };
        let record = &entry.value;
        let age = Timestamp::now().since(begun.written_at);
        match begun.verdict(record, age) {
            Next::PutBack => {}
            Next::Later => return Ok(true),
            Next::Leave => return Ok(false),
        }
        let Ok(task) = Task::restore(Class::Hypervisor, &record.task, &record.params) else {
            // Another version's, which knows what to do.
            return Ok(false);
        };
        let Some(domain) = domain_of(&task) else {
            return Ok(false);
        };
        if !self.is_ours(&domain).await? {
            return Ok(true);
        }
        let (Some(_alone), Some(owner)) = (
            self.domains.alone(&domain),
            // Who has no lease changes nothing.
            self.leases.owner(&self.worker).await?,
        ) else {
            return Ok(true);
        };
        if !self.is_so_still(of, begun, &entry).await? {
            return Ok(true);
        }
        let job = Assignment {
            id: record.id.clone(),
            claim: record.claim,
            owner,
            task,
            record: record.clone(),
        };
        each_with_steps!(known(&self.domains, &job)?,
            _ping => return Ok(false), steps => steps.abandon().await?);
        tracing::info!(%of, job = %job.id, "what a job that is over had begun was put back");
        Ok(false)
    }

    /// Whether a domain is this host's to see to.
    async fn is_ours(&self, domain: &DomainId) -> Result<bool, BusError> {
        let catalog = &self.domains.catalog;
        let record = catalog.domains.get_latest(domain.as_str()).await?;
        let Some(host) = record.and_then(|entry| entry.value.hypervisor) else {
            return Ok(true);
        };
        if host == self.domains.settings.hypervisor {
            return Ok(true);
        }
        let host = catalog.hypervisors.get_latest(host.as_str()).await?;
        Ok(host.is_none_or(|host| host.value.state == HypervisorState::Fenced))
    }

    /// Whether nobody has written the job's record, nor that of what it began.
    async fn is_so_still(
        &self,
        of: &Object,
        begun: &Begun,
        job: &Entry<Record>,
    ) -> Result<bool, BusError> {
        let catalog = &self.domains.catalog;
        let now = self.jobs.get_latest(&begun.job).await?;
        if now.map(|entry| entry.revision) != Some(job.revision) {
            return Ok(false);
        }
        let revision = match of {
            Object::Disk(id) => revision(&catalog.disks, id.as_str()).await?,
            Object::Media(id) => revision(&catalog.media, id.as_str()).await?,
            Object::Domain(id) => revision(&catalog.domains, id.as_str()).await?,
        };
        Ok(revision == Some(begun.revision))
    }
}

async fn revision<T>(bucket: &Bucket<T>, key: &str) -> Result<Option<u64>, BusError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    Ok(bucket.get_latest(key).await?.map(|entry| entry.revision))
}
