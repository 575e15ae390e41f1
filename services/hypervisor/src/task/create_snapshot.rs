//! `create_snapshot` inside the disks' files, with memory while the domain runs.

use super::{Checked, Context, Steps};
use crate::{catalog::Hold, xml::Element};
use tokio::sync::OwnedMutexGuard;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError, SnapshotId, Timestamp,
    catalog::{DiskRecord, DomainRecord},
    task::hypervisor::NewSnapshot,
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct CreateSnapshot<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) snapshot: &'a SnapshotId,
}

pub(crate) struct Plan {
    guard: OwnedMutexGuard<()>,
    record: DomainRecord,
    /// What is to be held meanwhile: as long as the domain runs, it holds it itself.
    holds: Vec<Hold>,
}

impl CreateSnapshot<'_> {
    fn xml(&self) -> String {
        let e = Element::new;
        // By this it's recognised as this job's.
        e("domainsnapshot")
            .containing(e("name").saying(self.snapshot))
            .containing(e("description").saying(self.description()))
            .to_string()
    }

    fn description(&self) -> String {
        format!("virtbus {}", self.at.job.id)
    }

    /// Whether the snapshot is there: this job's, or somebody else's, which is an error.
    async fn is_made(&self, names: &[String]) -> Result<bool, JobError> {
        if !names.iter().any(|name| name == self.snapshot.as_str()) {
            return Ok(false);
        }
        let host = &self.at.domains.host;
        let xml = host.snapshot_xml(self.at.domain, self.snapshot).await?;
        let own = format!("<description>{}</description>", self.description());
        if xml.contains(&own) {
            return Ok(true);
        }
        let text = "the domain has another snapshot of this id";
        Err(JobError::new(Code::SnapshotExists, text)
            .with("domain", self.at.domain.as_str())
            .with("snapshot", self.snapshot.as_str()))
    }

    /// The catalogue's word for what is in the files.
    async fn written(&self, record: &DomainRecord) -> Result<Done, JobError> {
        let domains = self.at.domains;
        for disk in &domains.written_disks(self.at.domain, record) {
            let step = |disk: &DiskRecord| {
                if disk.snapshots.contains(self.snapshot) {
                    return Ok(None);
                }
                let mut next = disk.clone();
                next.snapshots.push(self.snapshot.clone());
                next.updated_at = Timestamp::now();
                Ok(Some(next))
            };
            domains.catalog.change_disk(disk, step).await?;
        }
        domains.sync_guarded(self.at.domain).await?;
        let made = done(&NewSnapshot::Snapshot(self.snapshot.clone()));
        made.map_err(|_| JobError::internal("a result that is no object"))
    }
}

impl Steps for CreateSnapshot<'_> {
    type Plan = Plan;

    async fn locks(&self) -> Result<LockSet, JobError> {
        self.at.locks_while_off().await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let guard = self.at.domains.guard(self.at.domain).await;
        let record = self.at.record().await?;
        let Some(seen) = self.at.seen().await? else {
            let text = "the domain was never started on this host: there is nothing to keep";
            return Err(self.at.wrong_state(text, record.state).into());
        };
        if self.is_made(&seen.snapshots).await? {
            return Ok(Checked::Done(self.written(&record).await?));
        }
        let holds = if seen.is_active {
            Vec::new()
        } else {
            self.at.place_kept(&record).await?
        };
        Ok(Checked::Plan(Plan {
            guard,
            record,
            holds,
        }))
    }

    /// The files of a domain that is off are nobody's: they are held while they are changed.
    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.at.intend(|_| {}).await?;
        let holder = self.at.domains.holder(self.at.domain);
        Ok(self.at.domains.catalog.hold(&holder, &plan.holds).await?)
    }

    async fn effect(&self, _: &mut Plan, _: &Run) -> Result<(), Stop> {
        let made = self
            .at
            .domains
            .host
            .make_snapshot(self.at.domain, self.xml(), 0)
            .await;
        Ok(made.map_err(JobError::from)?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let written = self.written(&plan.record).await;
        drop(plan.guard);
        Ok(written?)
    }

    async fn recover(&self) -> Result<Option<Done>, JobError> {
        self.at.settled().await?;
        let _guard = self.at.domains.guard(self.at.domain).await;
        let Some(record) = self.at.slot().await?.value else {
            return Ok(None);
        };
        match self.at.seen().await? {
            Some(seen) if self.is_made(&seen.snapshots).await? => {
                self.written(&record).await.map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    async fn abandon(&self) -> Result<(), JobError> {
        self.at.settled().await?;
        self.at.domains.sync(self.at.domain).await
    }
}
