//! `delete_snapshot`: what a snapshot keeps inside the disks' files is given up.

use super::{Checked, Context, Steps};
use crate::catalog::Hold;
use tokio::sync::OwnedMutexGuard;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    JobError, Timestamp,
    catalog::{DiskRecord, DomainRecord},
    task::hypervisor::{OfSnapshot, snapshot as params},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct DeleteSnapshot<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::DeleteSnapshot,
}

pub(crate) struct Plan {
    guard: OwnedMutexGuard<()>,
    record: DomainRecord,
    is_there: bool,
    /// What is to be held meanwhile: as long as the domain runs, it holds it itself.
    holds: Vec<Hold>,
}

impl Steps for DeleteSnapshot<'_> {
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
        // One that isn't there is deleted already; what the catalogue says of it goes all the same.
        let is_there = names
            .iter()
            .any(|name| name == self.params.snapshot.as_str());
        let holds = if is_there && !is_active {
            self.at.place_kept(&record).await?
        } else {
            Vec::new()
        };
        Ok(Checked::Plan(Plan {
            guard,
            record,
            is_there,
            holds,
        }))
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.at.intend(|_| {}).await?;
        let holder = self.at.domains.holder(self.at.domain);
        Ok(self.at.domains.catalog.hold(&holder, &plan.holds).await?)
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        if !plan.is_there {
            return Ok(());
        }
        let host = &self.at.domains.host;
        match host
            .drop_snapshot(self.at.domain, &self.params.snapshot)
            .await
        {
            Err(error) if !error.is_no_snapshot() => Err(JobError::from(error).into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let domains = self.at.domains;
        for disk in &plan.record.disks {
            let step = |disk: &DiskRecord| {
                if !disk.snapshots.contains(&self.params.snapshot) {
                    return Ok(None);
                }
                let mut next = disk.clone();
                next.snapshots
                    .retain(|other| *other != self.params.snapshot);
                next.updated_at = Timestamp::now();
                Ok(Some(next))
            };
            domains.catalog.change_disk(disk, step).await?;
        }
        domains.sync_guarded(self.at.domain).await?;
        drop(plan.guard);
        done(&OfSnapshot {
            snapshot: self.params.snapshot.clone(),
        })
    }

    async fn abandon(&self) -> Result<(), JobError> {
        self.at.settled().await?;
        self.at.domains.sync(self.at.domain).await
    }
}
