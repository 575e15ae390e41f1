//! `resize` of a disk while its domain runs.

use super::{Checked, Context, Steps};
use crate::place::disk_file;
use virtbus_wire::{
    Code, JobError,
    task::hypervisor::{Resized, disk as params},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct Resize<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Resize,
}

/// The disk's name in the guest.
pub(crate) struct Plan {
    target: String,
    is_so: bool,
}

impl Resize<'_> {
    async fn target(&self) -> Result<String, JobError> {
        let (_, seen) = self.at.active().await?;
        let domains = self.at.domains;
        let chain = domains.catalog.chain(&self.params.disk).await?;
        let missing = || {
            let id = self.params.disk.as_str();
            crate::catalog::not_found(Code::DiskNotFound, "disk", id)
        };
        let (id, record) = chain.first().ok_or_else(missing)?;
        let file = disk_file(&domains.settings.roots, id, record)?;
        let mut disks = seen.disks.into_iter();
        let found = disks.find(|(_, path)| *path == file.path.as_str());
        found.map(|(target, _)| target).ok_or_else(|| {
            let text = "the domain doesn't have the disk";
            JobError::new(Code::DomainWrongState, text)
                .with("domain", self.at.domain.as_str())
                .with("disk", id.as_str())
        })
    }
}

impl Steps for Resize<'_> {
    type Plan = Plan;

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let target = self.target().await?;
        let host = &self.at.domains.host;
        let is_now = host.disk_size(self.at.domain, target.clone()).await;
        let (is_now, size) = (is_now.map_err(JobError::from)?, self.params.size.bytes());
        if is_now > size {
            let text = "is below the disk's size: a running domain's disk never shrinks";
            let error = JobError::invalid_params("size", text);
            return Err(error.with("virtual_size", is_now).into());
        }
        Ok(Checked::Plan(Plan {
            target,
            is_so: is_now == size,
        }))
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        if plan.is_so {
            return Ok(());
        }
        let (host, size) = (&self.at.domains.host, self.params.size.bytes());
        let resized = host.resize(self.at.domain, plan.target.clone(), size).await;
        Ok(resized.map_err(JobError::from)?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let host = &self.at.domains.host;
        let size = host.disk_size(self.at.domain, plan.target).await;
        let virtual_size = size.map_err(JobError::from)?;
        let catalog = &self.at.domains.catalog;
        catalog.resized(&self.params.disk, virtual_size).await?;
        done(&Resized { virtual_size })
    }
}
