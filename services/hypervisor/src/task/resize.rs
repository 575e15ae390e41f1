//! `resize` of a disk while its domain runs. The disk is `changing` meanwhile: whoever comes next
//! reads its size from its file, whether the domain runs by then or not.

use super::{Checked, Context, Steps};
use crate::{
    admit::admit_states,
    place::{self, disk_file},
};
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState},
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
        if !self.at.has_taken(record) {
            admit_states(&chain)?;
        }
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

    /// What the file says, if this job has begun to change it.
    async fn begun(&self) -> Result<Option<u64>, JobError> {
        self.at.settled().await?;
        let (disk, domains) = (&self.params.disk, self.at.domains);
        let chain = domains.catalog.chain(disk).await?;
        let top = chain.first();
        if !top.is_some_and(|(_, record)| self.at.has_taken(record)) {
            return Ok(None);
        }
        let roots = &domains.settings.roots;
        place::virtual_size(&domains.catalog, roots, disk).await
    }

    /// Gives back the disk, with its size.
    async fn written(&self, virtual_size: u64) -> Result<Done, JobError> {
        let sized = |record: &mut DiskRecord| record.virtual_size = Some(virtual_size);
        let disk = &self.params.disk;
        self.at.give(disk, DiskState::Ready, sized).await?;
        let resized = done(&Resized { virtual_size });
        resized.map_err(|_| JobError::internal("a result that is no object"))
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

    async fn intend(&self, _: &mut Plan) -> Result<(), Stop> {
        Ok(self.at.take(&self.params.disk).await?)
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
        Ok(self.written(size.map_err(JobError::from)?).await?)
    }

    async fn recover(&self) -> Result<Option<Done>, JobError> {
        match self.begun().await? {
            // It never shrinks, and libvirt rounds up.
            Some(size) if size >= self.params.size.bytes() => self.written(size).await.map(Some),
            Some(_) | None => Ok(None),
        }
    }

    async fn abandon(&self) -> Result<(), JobError> {
        match self.begun().await? {
            Some(size) => self.written(size).await.map(|_| ()),
            None => Ok(()),
        }
    }
}
