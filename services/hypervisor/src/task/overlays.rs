//! `create_snapshot` with overlays: the domain goes on with new disks on top of its own, which are
//! frozen. Without memory.

use super::{Checked, Context, Steps};
use crate::{
    catalog::{Disk, not_found},
    overlay_file::OverlayFile,
    place::disk_file,
    xml::Element,
};
use std::collections::BTreeMap;
use tokio::sync::OwnedMutexGuard;
use virt::sys;
use virtbus_bus::{WriteError, locks::LockSet};
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
            part: format!(".{}.{}.{new}.part", job.id, job.claim),
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

    /// The new disk's id must be free, or taken by this very job.
    async fn admit_new(&self, new: &DiskId) -> Result<(), JobError> {
        let found = self.at.domains.catalog.disks.get_latest(new.as_str()).await;
        let found = found.map_err(|error| JobError::internal(error.to_string()))?;
        match found.map(|entry| entry.value) {
            None => Ok(()),
            Some(record) if self.is_begun(&record) => Ok(()),
            Some(_) => Err(JobError::new(Code::DiskExists, "the disk's id is taken")
                .with("disk", new.as_str())),
        }
    }

    fn is_begun(&self, record: &DiskRecord) -> bool {
        record.owner_job.as_ref() == Some(&self.at.job.id) && record.state == DiskState::Creating
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

    fn xml(&self, plan: &Plan) -> String {
        let e = Element::new;
        let disks = plan.targets.iter().map(|(target, layer)| {
            let disk = e("disk").with("name", target);
            match layer.and_then(|at| plan.layers.get(at)) {
                None => disk.with("snapshot", "no"),
                Some(layer) => disk
                    .with("snapshot", "external")
                    .with("type", "file")
                    .containing(e("driver").with("type", "qcow2"))
                    .containing(e("source").with("file", &layer.file.path)),
            }
        });
        let mut all = e("disks");
        all.children.extend(disks);
        e("domainsnapshot").containing(all).to_string()
    }

    /// Writes that the domain has the new disks, and the old ones are frozen below them.
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
            let made = |record: &DiskRecord| {
                let mut next = record.clone();
                (next.state, next.updated_at) = (DiskState::Ready, Timestamp::now());
                Ok((record.state != DiskState::Ready).then_some(next))
            };
            domains.catalog.change_disk(new, made).await?;
        }
        let other = |disk: &DiskId| self.overlays.get(disk).cloned();
        let repoint = |record: &DomainRecord| {
            let mut next = record.clone();
            for disk in &mut next.disks {
                *disk = other(disk).unwrap_or_else(|| disk.clone());
            }
            let blueprint = domains.last_blueprint(domain, record)?;
            let blueprint = blueprint.repointed(domain, &domains.settings.policy, other)?;
            next.xml = Some(blueprint.portable(domain, record.uuid));
            next.updated_at = Timestamp::now();
            Ok((next != *record).then_some(next))
        };
        domains.catalog.change_domain(domain, repoint).await?;
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

    /// Whether the running domain writes the new files.
    async fn is_applied(&self, layers: &[Layer]) -> Result<bool, JobError> {
        let Some(seen) = self.at.seen().await? else {
            return Ok(false);
        };
        let files: Vec<&str> = seen.disks.iter().map(|(_, file)| file.as_str()).collect();
        let has = |layer: &Layer| files.contains(&layer.file.path.as_str());
        Ok(!layers.is_empty() && layers.iter().all(has))
    }
}

impl Steps for Overlays<'_> {
    type Plan = Plan;

    async fn locks(&self) -> Result<LockSet, JobError> {
        let new = self.overlays.values();
        Ok(new
            .map(|disk| (format!("disk.{disk}"), Mode::Exclusive))
            .collect())
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
        let layers = self.layers().await?;
        for layer in &layers {
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
        if !plan.is_active || self.is_applied(&plan.layers).await? {
            return Ok(());
        }
        let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT;
        if self.quiesce {
            flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE;
        }
        let (host, xml) = (&self.at.domains.host, self.xml(plan));
        let made = host.make_snapshot(self.at.domain, xml, flags).await;
        Ok(made.map_err(JobError::from)?)
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
        let Some(record) = self.at.slot().await?.value else {
            return Ok(None);
        };
        if self.is_done(&record) {
            return self.result().map(Some);
        }
        let layers = self.layers().await?;
        if self.is_applied(&layers).await? {
            return self.written(&layers).await.map(Some);
        }
        Ok(None)
    }

    async fn abandon(&self) -> Result<(), JobError> {
        self.at.settled().await?;
        let _guard = self.at.domains.guard(self.at.domain).await;
        let layers = match self.layers().await {
            Ok(layers) => layers,
            // A disk that isn't there: nothing was begun.
            Err(error) if error.code == Code::DiskNotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.is_applied(&layers).await? {
            return self.written(&layers).await.map(|_| ());
        }
        let disks = &self.at.domains.catalog.disks;
        for layer in layers {
            let found = disks.get_latest(layer.new.as_str()).await;
            let found = found.map_err(|error| JobError::internal(error.to_string()))?;
            if let Some(entry) = found.filter(|entry| self.is_begun(&entry.value)) {
                layer.file.unmake().await?;
                let removed = disks.remove(layer.new.as_str(), entry.revision).await;
                removed.map_err(|error| JobError::internal(error.to_string()))?;
            }
        }
        Ok(())
    }
}
