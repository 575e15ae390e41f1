//! What the tasks ask before they act: the domain's record, and what libvirt says of it.

use crate::{
    admit::admit_state,
    capacity::Room,
    catalog::Hold,
    domains::Domains,
    libvirt::{Mark, Running, Seen},
    overlay_file::remove_older,
    place,
    xml::{Blueprint, Element},
};
use camino::Utf8Path;
use std::time::Duration;
use virt::sys;
use virtbus_bus::{Slot, locks::LockSet};
use virtbus_wire::{
    Code, DiskId, DomainId, JobError, SnapshotId, Timestamp,
    catalog::{DiskRecord, DiskState, DomainRecord},
    task::hypervisor::{DomainState, InState},
};
use virtbus_worker::{Assignment, Done, Stop, done};

/// How long a call about a domain that hasn't returned is waited for.
const DOUBT_LIMIT: Duration = Duration::from_secs(10);
/// How long a start that goes on is waited for.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often is looked whether it has.
const DOUBT_LOOK: Duration = Duration::from_millis(200);

/// A job about one domain.
pub(crate) struct Context<'a> {
    pub(crate) domains: &'a Domains,
    pub(crate) job: &'a Assignment,
    pub(crate) domain: &'a DomainId,
}

impl Context<'_> {
    /// What libvirt says of the domain, when it isn't just starting it: the call of a service that
    /// died goes on without it.
    pub(crate) async fn seen(&self) -> Result<Option<Seen>, JobError> {
        let settled = async {
            loop {
                let seen = self.domains.host.domain(self.domain.as_str()).await?;
                if !seen.as_ref().is_some_and(|seen| seen.is_starting) {
                    return Ok(seen);
                }
                tokio::time::sleep(DOUBT_LOOK).await;
            }
        };
        tokio::time::timeout(START_LIMIT, settled)
            .await
            .unwrap_or_else(|_| {
                let text = "the host has been starting the domain for too long";
                Err(JobError::new(Code::HypervisorUnreachable, text))
            })
    }

    /// The domain's record, to be written back.
    pub(crate) async fn slot(&self) -> Result<Slot<DomainRecord>, JobError> {
        Ok(self.domains.catalog.domain(self.domain).await?)
    }

    /// The domain's record.
    pub(crate) async fn record(&self) -> Result<DomainRecord, JobError> {
        self.slot().await?.value.ok_or_else(|| self.not_found())
    }

    /// The domain, which must have processes on this host.
    pub(crate) async fn active(&self) -> Result<(DomainRecord, Seen), JobError> {
        let record = self.record().await?;
        match self.seen().await? {
            Some(seen) if seen.is_active => Ok((record, seen)),
            Some(seen) => Err(self.wrong_state("the domain doesn't run", seen.state)),
            None => Err(self.wrong_state("the domain doesn't run", DomainState::Shutoff)),
        }
    }

    /// This claim, for the domain's metadata.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            job: self.job.id.clone(),
            claim: self.job.claim,
        }
    }

    /// Whether a mark is this job's, of whichever claim.
    pub(crate) fn is_job(&self, mark: &Mark) -> bool {
        mark.job == self.job.id
    }

    /// Whether this job wrote the record's last intent.
    pub(crate) fn is_own(&self, record: &DomainRecord) -> bool {
        record.owner_job.as_ref() == Some(&self.job.id)
    }

    /// Room for the domain as it will run. Given back by who says that it runs, or doesn't.
    pub(crate) async fn claim_room(&self, blueprint: &Blueprint) -> Result<(), Stop> {
        let (capacity, host) = (&self.domains.capacity, &self.domains.host);
        let room = Room::of(blueprint);
        capacity.claim(host, &self.job.id, self.domain, room).await
    }

    /// Room for a domain that is off and runs after a revert.
    pub(crate) async fn claim_room_from(&self, snapshot: &SnapshotId) -> Result<(), Stop> {
        let (capacity, host) = (&self.domains.capacity, &self.domains.host);
        let runs = host.runs_from(self.domain, snapshot).await;
        let Some(Running { memory, vcpus }) = runs.map_err(JobError::from)? else {
            return Ok(());
        };
        let room = Room { memory, vcpus };
        capacity.claim(host, &self.job.id, self.domain, room).await
    }

    /// Waits for calls about the domain that haven't returned: as long as there is one, nobody
    /// knows what it is, and nothing may be put back.
    pub(crate) async fn settled(&self) -> Result<(), JobError> {
        let host = &self.domains.host;
        let settled = async {
            while host.is_in_doubt(self.domain) {
                tokio::time::sleep(DOUBT_LOOK).await;
            }
        };
        let settled = tokio::time::timeout(DOUBT_LIMIT, settled).await;
        settled.map_err(|_| {
            let text = "a call of libvirt about the domain hasn't returned";
            JobError::new(Code::HypervisorUnreachable, text)
        })
    }

    /// Writes this job's intent: what `change` makes of the record.
    pub(crate) async fn intend(
        &self,
        change: impl Fn(&mut DomainRecord) + Sync,
    ) -> Result<(), Stop> {
        let step = |record: &DomainRecord| {
            let mut next = record.clone();
            next.owner_job = Some(self.job.id.clone());
            next.epoch += 1;
            next.updated_at = Timestamp::now();
            change(&mut next);
            Ok(Some(next))
        };
        Ok(self
            .domains
            .catalog
            .change_domain(self.domain, step)
            .await?)
    }

    /// The locks on the disks of a domain that is off: as long as it runs it holds them itself.
    pub(crate) async fn locks_while_off(&self) -> Result<LockSet, JobError> {
        let record = self.slot().await?.value;
        let Some(record) = record.filter(|record| !record.state.is_on()) else {
            return Ok(LockSet::new());
        };
        match self.domains.last_blueprint(self.domain, &record) {
            Ok(blueprint) => place::locks(&self.domains.catalog, &blueprint).await,
            // The check says what is wrong with it.
            Err(_) => Ok(LockSet::new()),
        }
    }

    /// What the domain would hold while its files are written for a snapshot, each looked at.
    pub(crate) async fn place_kept(&self, record: &DomainRecord) -> Result<Vec<Hold>, Stop> {
        let domains = self.domains;
        let blueprint = domains.last_blueprint(self.domain, record)?;
        let (holder, roots) = (domains.holder(self.domain), &domains.settings.roots);
        let (catalog, job) = (&domains.catalog, &self.job.record);
        let placed = place::place_kept(catalog, roots, &blueprint, &holder, job).await?;
        Ok(placed.holds)
    }

    /// Takes away what older claims of this job left of a disk's file that they made: it's in the
    /// folder of another disk, which may be the same.
    pub(crate) async fn remove_parts(&self, beside: &DiskId, of: &DiskId) -> Result<(), JobError> {
        let domains = self.domains;
        let found = domains.catalog.disks.get_latest(beside.as_str()).await;
        let found = found.map_err(|error| JobError::internal(error.to_string()))?;
        // Beside a disk that there isn't nothing was made.
        let Some(entry) = found else {
            return Ok(());
        };
        let folder = place::disk_folder(&domains.settings.roots, &entry.value.pool)?;
        remove_older(&folder, (&self.job.id, self.job.claim), of).await
    }

    /// Takes a disk: it's this job's to change, until it's given back. One that is half written
    /// stays `broken`, so that giving it back needs no memory of it.
    pub(crate) async fn take(&self, id: &DiskId) -> Result<(), JobError> {
        let job = &self.job.id;
        let step = |record: &DiskRecord| {
            if self.has_taken(record) {
                return Ok(None);
            }
            let is_broken = record.state == DiskState::Broken;
            if !is_broken {
                admit_state("disk", id.as_str(), record.state)?;
            }
            let state = if is_broken {
                DiskState::Broken
            } else {
                DiskState::Changing
            };
            Ok(Some(DiskRecord {
                state,
                owner_job: Some(job.clone()),
                epoch: record.epoch + 1,
                updated_at: Timestamp::now(),
                ..record.clone()
            }))
        };
        Ok(self.domains.catalog.change_disk(id, step).await?)
    }

    /// Gives back a disk that this job has taken, as what `change` makes of it.
    pub(crate) async fn give(
        &self,
        id: &DiskId,
        state: DiskState,
        change: impl Fn(&mut DiskRecord) + Sync,
    ) -> Result<(), JobError> {
        let step = |record: &DiskRecord| {
            let mut next = record.clone();
            next.state = state;
            change(&mut next);
            let is_taken = self.has_taken(record) && next != *record;
            next.updated_at = Timestamp::now();
            Ok(is_taken.then_some(next))
        };
        Ok(self.domains.catalog.change_disk(id, step).await?)
    }

    /// Whether this job has taken a disk.
    pub(crate) fn has_taken(&self, record: &DiskRecord) -> bool {
        let may_be = matches!(record.state, DiskState::Changing | DiskState::Broken);
        may_be && record.owner_job.as_ref() == Some(&self.job.id)
    }

    /// Has the running domain go on with a file that is there on top of some of its disks, all at
    /// once: of each disk its name in the guest, and that file.
    pub(crate) async fn go_on_with(
        &self,
        disks: &[(&str, Option<&Utf8Path>)],
        quiesce: bool,
    ) -> Result<(), JobError> {
        let e = Element::new;
        let disks = disks.iter().map(|(target, file)| {
            let disk = e("disk").with("name", target);
            match file {
                None => disk.with("snapshot", "no"),
                Some(file) => disk
                    .with("snapshot", "external")
                    .with("type", "file")
                    .containing(e("driver").with("type", "qcow2"))
                    .containing(e("source").with("file", file)),
            }
        });
        let mut all = e("disks");
        all.children.extend(disks);
        let xml = e("domainsnapshot").containing(all).to_string();
        let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT;
        if quiesce {
            flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE;
        }
        let host = &self.domains.host;
        Ok(host.make_snapshot(self.domain, xml, flags).await?)
    }

    /// The domain's state, as its record says after a look.
    pub(crate) async fn in_state(&self) -> Result<Done, Stop> {
        let _guard = self.domains.guard(self.domain).await;
        let record = self.domains.sync_guarded(self.domain).await?;
        let record = record.ok_or_else(|| self.not_found())?;
        done(&InState {
            state: record.state,
        })
    }

    pub(crate) fn not_found(&self) -> JobError {
        crate::catalog::not_found(Code::DomainNotFound, "domain", self.domain.as_str())
    }

    pub(crate) fn wrong_state(&self, text: &str, state: DomainState) -> JobError {
        let state = serde_json::to_value(state).unwrap_or_default();
        JobError::new(Code::DomainWrongState, text)
            .with("domain", self.domain.as_str())
            .with("state", state)
    }
}
