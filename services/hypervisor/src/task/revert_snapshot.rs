//! `revert_snapshot`: a domain is put back to what it was, running if it ran then.

use super::{Checked, Context, Steps};
use crate::{
    catalog::Hold,
    place::{self, Placed},
};
use std::collections::BTreeSet;
use tokio::sync::OwnedMutexGuard;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    catalog::DomainRecord,
    task::hypervisor::{OfSnapshot, snapshot as params},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct RevertSnapshot<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::RevertSnapshot,
}

pub(crate) struct Plan {
    guard: OwnedMutexGuard<()>,
    record: DomainRecord,
    holds: Vec<Hold>,
}

impl RevertSnapshot<'_> {
    /// libvirt goes on with the disks and media that the domain had then: the same that it has now,
    /// or nobody would hold them.
    async fn is_of(&self, record: &DomainRecord, placed: &Placed) -> Result<(), JobError> {
        let host = &self.at.domains.host;
        let snapshot = &self.params.snapshot;
        let then = host.snapshot_files(self.at.domain, snapshot).await?;
        let then: BTreeSet<&str> = then.iter().map(String::as_str).collect();
        let tops = placed.files.values().filter_map(|files| files.first());
        let now: BTreeSet<&str> = tops.map(|file| file.path.as_str()).collect();
        if then == now {
            return Ok(());
        }
        let text = "the domain had other disks or media when the snapshot was made: \
                    start it with those first";
        let error = self.at.wrong_state(text, record.state);
        Err(error.with("snapshot", snapshot.as_str()))
    }

    /// A snapshot has its disks' sizes in it, which they have again.
    async fn written(&self, record: &DomainRecord) -> Result<(), JobError> {
        let domains = self.at.domains;
        for disk in &domains.written_disks(self.at.domain, record) {
            let roots = &domains.settings.roots;
            if let Some(size) = place::virtual_size(&domains.catalog, roots, disk).await? {
                domains.catalog.resized(disk, size).await?;
            }
        }
        domains.sync_guarded(self.at.domain).await?;
        Ok(())
    }
}

impl Steps for RevertSnapshot<'_> {
    type Plan = Plan;

    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at.locks_while_off().await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let guard = self.at.domains.guard(self.at.domain).await;
        let record = self.at.record().await?;
        let seen = self.at.seen().await?;
        let is_active = seen.as_ref().is_some_and(|seen| seen.is_active);
        let names = seen.map(|seen| seen.snapshots).unwrap_or_default();
        if !names
            .iter()
            .any(|name| name == self.params.snapshot.as_str())
        {
            let text = "the domain has no snapshot of this id";
            return Err(JobError::new(Code::SnapshotNotFound, text)
                .with("domain", self.at.domain.as_str())
                .with("snapshot", self.params.snapshot.as_str())
                .into());
        }
        if !is_active {
            self.at.claim_room_from(&self.params.snapshot).await?;
        }
        // A new QEMU goes on from these files, or a tool of libvirt's writes them.
        let domains = self.at.domains;
        let blueprint = domains.last_blueprint(self.at.domain, &record)?;
        let (holder, roots) = (domains.holder(self.at.domain), &domains.settings.roots);
        let job = &self.at.job.record;
        let placed = place::place(&domains.catalog, roots, &blueprint, &holder, job).await?;
        self.is_of(&record, &placed).await?;
        let holds = placed.holds;
        Ok(Checked::Plan(Plan {
            guard,
            record,
            holds,
        }))
    }

    /// It may run afterwards, so all that it uses is held before.
    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.at.intend(|_| {}).await?;
        let holder = self.at.domains.holder(self.at.domain);
        Ok(self.at.domains.catalog.hold(&holder, &plan.holds).await?)
    }

    async fn effect(&self, _: &mut Plan, _: &Run) -> Result<(), Stop> {
        let host = &self.at.domains.host;
        let reverted = host.revert(self.at.domain, &self.params.snapshot).await;
        Ok(reverted.map_err(JobError::from)?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let written = self.written(&plan.record).await;
        self.at.domains.capacity.release(&self.at.job.id);
        drop(plan.guard);
        written?;
        done(&OfSnapshot {
            snapshot: self.params.snapshot.clone(),
        })
    }

    async fn abandon(&self) -> Result<(), JobError> {
        self.at.domains.capacity.release(&self.at.job.id);
        self.at.settled().await?;
        self.at.domains.sync(self.at.domain).await
    }
}
