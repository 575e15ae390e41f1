//! `revert_snapshot`: a domain is put back to what it was, running if it ran then.

use super::{Checked, Context, Steps};
use crate::{catalog::Hold, place};
use tokio::sync::OwnedMutexGuard;
use virtbus_wire::{
    Code, JobError,
    catalog::{DomainRecord, UseMode},
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
}

impl RevertSnapshot<'_> {
    /// A snapshot has its disks' sizes in it, which they have again.
    async fn written(&self, record: &DomainRecord) -> Result<(), JobError> {
        let domains = self.at.domains;
        for disk in &record.disks {
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
            // It may run afterwards, from these files.
            let (catalog, roots) = (&self.at.domains.catalog, &self.at.domains.settings.roots);
            place::gate(catalog, roots, &record.disks).await?;
        }
        Ok(Checked::Plan(Plan { guard, record }))
    }

    /// It may run afterwards, so its disks are held before.
    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.at.intend(|_| {}).await?;
        let disks = plan.record.disks.iter();
        let holds: Vec<Hold> = disks
            .map(|disk| Hold::Disk(disk.clone(), UseMode::Exclusive))
            .collect();
        let holder = self.at.domains.holder(self.at.domain);
        Ok(self.at.domains.catalog.hold(&holder, &holds).await?)
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
