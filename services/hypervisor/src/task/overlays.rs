//! `create_snapshot` with overlays: the domain goes on with new disks on top of its own, which are
//! frozen. Without memory.
//!
//! ```text
//! intend    each new disk is `creating`
//! effect    their files are made │ libvirt's domain has them: the running one, or its definition
//! publish   those below are frozen │ the domain's record has the new ones │ they are ready
//! ```
//! Whoever takes over asks libvirt which disks its domain has. With the new ones it's done, and
//! what the catalogue doesn't say yet is written; with the old ones nothing was done, and nobody
//! was told of the new ones. Where libvirt doesn't know the domain, its record tells instead.

use super::{Checked, Context, Steps};
use crate::{
    admit::admit_state,
    catalog::{Disk, not_found},
    overlay_file::{OverlayFile, part},
    place::disk_file,
    xml::Blueprint,
};
use std::collections::BTreeMap;
use tokio::sync::OwnedMutexGuard;
use virtbus_bus::{Entry, WriteError, locks::LockSet};
use virtbus_wire::{
    Code, DiskId, JobError, Timestamp,
    catalog::{DiskRecord, DiskState, DomainRecord, InUseBy, UseMode, admit_depth},
    protocol::lock::Mode,
    task::{hypervisor::NewSnapshot, image::ImageFormat},
};
use virtbus_worker::{Done, Run, Stop, done};

pub(crate) struct Overlays<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) overlays: &'a BTreeMap<DiskId, DiskId>,
    pub(crate) quiesce: bool,
}

pub(crate) struct Plan {
    guard: OwnedMutexGuard<()>,
    record: DomainRecord,
    layers: Vec<Layer>,
    is_active: bool,
    /// Every disk of the running domain: its name in the guest, and the layer that goes on it.
    targets: Vec<(String, Option<usize>)>,
}

/// One disk and what goes on top of it.
#[derive(Clone)]
pub(crate) struct Layer {
    below: Disk,
    /// How many disks there are with it.
    depth: usize,
    new: DiskId,
    file: OverlayFile,
}

impl Overlays<'_> {
    fn is_done(&self, record: &DomainRecord) -> bool {
        self.overlays
            .iter()
            .all(|(below, new)| record.disks.contains(new) && !record.disks.contains(below))
    }

    fn result(&self) -> Result<Done, JobError> {
        let made = done(&NewSnapshot::Overlays(self.overlays.clone()));
        made.map_err(|_| JobError::internal("a result that is no object"))
    }

    async fn layer(&self, below: &DiskId, new: &DiskId) -> Result<Layer, JobError> {
        let catalog = &self.at.domains.catalog;
        let chain = catalog.chain(below).await?;
        let depth = chain.len() + 1;
        let missing = || not_found(Code::DiskNotFound, "disk", below.as_str());
        let below = chain.into_iter().next().ok_or_else(missing)?;
        let file = disk_file(&self.at.domains.settings.roots, &below.0, &below.1)?;
        let unsized_ = || JobError::internal("the catalogue doesn't know the disk's size");
        let job = &self.at.job;
        let layer = OverlayFile {
            path: file.path.with_file_name(format!("{new}.qcow2")),
            part: part(&job.id, job.claim, new),
            below: file.path.file_name().unwrap_or_default().to_owned(),
            below_format: file.format,
            virtual_size: below.1.virtual_size.ok_or_else(unsized_)?,
        };
        Ok(Layer {
            below,
            depth,
            new: new.clone(),
            file: layer,
        })
    }

    async fn layers(&self) -> Result<Vec<Layer>, JobError> {
        let mut layers = Vec::new();
        for (below, new) in self.overlays {
            layers.push(self.layer(below, new).await?);
        }
        Ok(layers)
    }

    async fn new_disk(&self, new: &DiskId) -> Result<Option<Entry<DiskRecord>>, JobError> {
        let found = self.at.domains.catalog.disks.get_latest(new.as_str()).await;
        found.map_err(|error| JobError::internal(error.to_string()))
    }

    /// The new disk's id must be free, or taken by this very job.
    async fn admit_new(&self, new: &DiskId) -> Result<(), JobError> {
        match self.new_disk(new).await?.map(|entry| entry.value) {
            None => Ok(()),
            Some(record) if self.is_begun(&record) => Ok(()),
            Some(_) => Err(JobError::new(Code::DiskExists, "the disk's id is taken")
                .with("disk", new.as_str())),
        }
    }

    fn is_own(&self, record: &DiskRecord) -> bool {
        record.owner_job.as_ref() == Some(&self.at.job.id)
    }

    fn is_begun(&self, record: &DiskRecord) -> bool {
        self.is_own(record) && record.state == DiskState::Creating
    }

    /// What the domain is with the new disks.
    fn repointed(&self, record: &DomainRecord) -> Result<Blueprint, JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let other = |disk: &DiskId| self.overlays.get(disk).cloned();
        let blueprint = domains.last_blueprint(domain, record)?;
        blueprint.repointed(domain, &domains.settings.policy, other)
    }

    fn intended(&self, layer: &Layer) -> DiskRecord {
        let below = &layer.below.1;
        let user = InUseBy::Domain {
            domain: self.at.domain.clone(),
            hypervisor: self.at.domains.settings.hypervisor.clone(),
            mode: UseMode::Exclusive,
        };
        DiskRecord {
            pool: below.pool.clone(),
            format: ImageFormat::Qcow2,
            virtual_size: below.virtual_size,
            actual_size: None,
            backing: Some(layer.below.0.clone()),
            children: Vec::new(),
            state: DiskState::Creating,
            snapshots: Vec::new(),
            in_use_by: vec![user],
            owner_job: Some(self.at.job.id.clone()),
            epoch: 1,
            tenant: below.tenant.clone(),
            user: below.user.clone(),
            sha256: None,
            last_used_at: None,
            updated_at: Timestamp::now(),
        }
    }

    /// Writes that the old disks are frozen, and then that the domain has the new ones. Nobody gets
    /// those before they are ready, which is written last.
    async fn written(&self, layers: &[Layer]) -> Result<Done, JobError> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        for layer in layers {
            let (id, new) = (&layer.below.0, &layer.new);
            let frozen = |record: &DiskRecord| {
                let known = record.children.contains(new);
                let mut next = record.clone();
                next.children.push(new.clone());
                next.updated_at = Timestamp::now();
                Ok((!known).then_some(next))
            };
            domains.catalog.change_disk(id, frozen).await?;
        }
        let repoint = |record: &DomainRecord| {
            if self.is_done(record) {
                return Ok(None);
            }
            let blueprint = self.repointed(record)?;
            Ok(Some(DomainRecord {
                disks: blueprint.disks(),
                xml: Some(blueprint.portable(domain, record.uuid)),
                updated_at: Timestamp::now(),
                ..record.clone()
            }))
        };
        domains.catalog.change_domain(domain, repoint).await?;
        for layer in layers {
            let made = |record: &DiskRecord| {
                let mut next = record.clone();
                (next.state, next.updated_at) = (DiskState::Ready, Timestamp::now());
                Ok(self.is_begun(record).then_some(next))
            };
            domains.catalog.change_disk(&layer.new, made).await?;
        }
        // Held as what is below from now on; or free, when the domain is off.
        let seen = self.at.seen().await?.is_some_and(|seen| seen.is_active);
        if let Some(record) = self.at.slot().await?.value {
            if seen {
                domains.hold_all(domain, &record).await?;
            } else {
                domains.free(domain, &record).await?;
            }
        }
        self.result()
    }

    /// Whether libvirt's domain has the new files.
    async fn is_applied(&self, layers: &[Layer]) -> Result<bool, JobError> {
        let Some(seen) = self.at.seen().await? else {
            return Ok(false);
        };
        let files: Vec<&str> = seen.disks.iter().map(|(_, file)| file.as_str()).collect();
        let has = |layer: &Layer| files.contains(&layer.file.path.as_str());
        Ok(!layers.is_empty() && layers.iter().all(has))
    }

    /// What an earlier claim did, whole; none if it didn't.
    async fn found(&self) -> Result<Option<Done>, JobError> {
        let Some(record) = self.at.slot().await?.value else {
            return Ok(None);
        };
        for new in self.overlays.values() {
            let found = self.new_disk(new).await?;
            if !found.is_some_and(|entry| self.is_own(&entry.value)) {
                return Ok(None);
            }
        }
        let layers = self.layers().await?;
        if self.is_done(&record) || self.is_applied(&layers).await? {
            return self.written(&layers).await.map(Some);
        }
        Ok(None)
    }

    /// Takes away a new disk that nobody has.
    async fn unmade(&self, layer: &Layer) -> Result<(), JobError> {
        let catalog = &self.at.domains.catalog;
        let found = self.new_disk(&layer.new).await?;
        let Some(entry) = found.filter(|entry| self.is_begun(&entry.value)) else {
            return Ok(());
        };
        let without = |record: &DiskRecord| {
            let mut next = record.clone();
            next.children.retain(|child| *child != layer.new);
            let was_there = next.children.len() < record.children.len();
            next.updated_at = Timestamp::now();
            Ok(was_there.then_some(next))
        };
        catalog.change_disk(&layer.below.0, without).await?;
        layer.file.unmake().await?;
        // Last: as long as it's there, this is done once more.
        let removed = catalog
            .disks
            .remove(layer.new.as_str(), entry.revision)
            .await;
        removed.map_err(|error| JobError::internal(error.to_string()))
    }
}

impl Steps for Overlays<'_> {
    type Plan = Plan;

    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = self.at.locks_while_off().await?;
        let new = self.overlays.values();
        locks.extend(new.map(|disk| (format!("disk.{disk}"), Mode::Exclusive)));
        Ok(locks)
    }

    async fn clean(&self) -> Result<(), JobError> {
        for (below, new) in self.overlays {
            self.at.remove_parts(below, new).await?;
        }
        Ok(())
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let guard = self.at.domains.guard(self.at.domain).await;
        let record = self.at.record().await?;
        if self.is_done(&record) {
            return Ok(Checked::Done(self.result()?));
        }
        for (below, new) in self.overlays {
            if !record.disks.contains(below) {
                let error = self
                    .at
                    .wrong_state("the domain doesn't have the disk", record.state);
                return Err(error.with("disk", below.as_str()).into());
            }
            self.admit_new(new).await?;
        }
        // What can't be said of the domain with them is said before anything is done.
        self.repointed(&record)?;
        let layers = self.layers().await?;
        for layer in &layers {
            let (id, below) = &layer.below;
            admit_state("disk", id.as_str(), below.state)?;
            admit_depth(&layer.new, layer.depth)?;
        }
        let seen = self.at.seen().await?.filter(|seen| seen.is_active);
        let disks = seen.iter().flat_map(|seen| &seen.disks);
        let mut targets = Vec::new();
        for (target, file) in disks {
            let on = |layer: &Layer| {
                let below = layer.file.path.with_file_name(&layer.file.below);
                below == file.as_str()
            };
            targets.push((target.clone(), layers.iter().position(on)));
        }
        let is_active = seen.is_some();
        let found = targets.iter().filter(|(_, layer)| layer.is_some()).count();
        if is_active && found != layers.len() {
            let text = "the running domain has other disks than its record says";
            return Err(self.at.wrong_state(text, record.state).into());
        }
        Ok(Checked::Plan(Plan {
            guard,
            record,
            layers,
            is_active,
            targets,
        }))
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.at.intend(|_| {}).await?;
        for layer in &plan.layers {
            let record = self.intended(layer);
            let disks = &self.at.domains.catalog.disks;
            match disks.create(layer.new.as_str(), &record).await {
                Ok(_) => {}
                // This job's own, or one that came between: the check says which.
                Err(WriteError::Conflict(_)) => self.admit_new(&layer.new).await?,
                Err(WriteError::Bus(error)) => {
                    return Err(JobError::internal(error.to_string()).into());
                }
            }
        }
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        for layer in &plan.layers {
            layer.file.make(false).await?;
        }
        if self.is_applied(&plan.layers).await? {
            return Ok(());
        }
        if !plan.is_active {
            let blueprint = self.repointed(&plan.record)?;
            let (mark, uuid) = (self.at.mark(), plan.record.uuid);
            let domains = self.at.domains;
            let redefined = domains.redefine(self.at.domain, (&blueprint, uuid), &mark);
            return Ok(redefined.await?);
        }
        let disks = plan.targets.iter().map(|(target, layer)| {
            let layer = layer.and_then(|at| plan.layers.get(at));
            (
                target.as_str(),
                layer.map(|layer| layer.file.path.as_path()),
            )
        });
        let disks: Vec<_> = disks.collect();
        Ok(self.at.go_on_with(&disks, self.quiesce).await?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let written = self.written(&plan.layers).await;
        tracing::debug!(domain = %self.at.domain, epoch = plan.record.epoch, "repointed");
        drop(plan.guard);
        Ok(written?)
    }

    async fn recover(&self) -> Result<Option<Done>, JobError> {
        self.at.settled().await?;
        let _guard = self.at.domains.guard(self.at.domain).await;
        self.found().await
    }

    async fn abandon(&self) -> Result<(), JobError> {
        self.at.settled().await?;
        let _guard = self.at.domains.guard(self.at.domain).await;
        if self.found().await?.is_some() {
            return Ok(());
        }
        let layers = match self.layers().await {
            Ok(layers) => layers,
            // A disk that isn't there: nothing was begun.
            Err(error) if error.code == Code::DiskNotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for layer in &layers {
            self.unmade(layer).await?;
        }
        Ok(())
    }
}
