//! What the tasks share: pools, catalogue, tools.

use crate::{
    cage::Rules,
    config::StorageConfig,
    disks::{CatalogError, Disks, Media},
    pool::{Folder, Pool, PoolError, Root},
    qemu_img::QemuImg,
    space::Space,
    virt_sparsify::VirtSparsify,
};
use std::{collections::BTreeMap, io};
use virtbus_bus::{Bucket, Bus, BusError, Jobs, lease::Leases};
use virtbus_wire::{Code, JobError, Label, catalog::DiskState, catalog::PoolRecord, task::Target};

/// The bucket of the pools' records.
const POOLS: &str = "pools";

/// A storage service's means.
#[derive(Debug)]
pub struct Store {
    pools: BTreeMap<Label, Pool>,
    pub(crate) disks: Disks,
    pub(crate) media: Media,
    pub(crate) pool_records: Bucket<PoolRecord>,
    pub(crate) leases: Leases,
    pub(crate) tool: QemuImg,
    pub(crate) sparsify: VirtSparsify,
    pub(crate) space: Space,
}

impl Store {
    /// The means of a service that is so configured. Nothing is looked at yet.
    #[must_use]
    pub fn new(bus: &Bus, config: &StorageConfig) -> Self {
        let pools = config.pools.iter().map(|(name, pool)| {
            let pool = Pool::new(name.clone(), pool.clone());
            (name.clone(), pool)
        });
        let rules = Rules::new(config.cage.clone(), config.polite.clone());
        Self {
            pools: pools.collect(),
            disks: Disks::new(bus),
            media: Media::new(bus),
            pool_records: Bucket::new(bus, POOLS),
            leases: Leases::new(bus),
            tool: QemuImg::find(config.tools_dir.as_ref(), rules.clone()),
            sparsify: VirtSparsify::find(config.tools_dir.as_ref(), config.kvm, rules),
            space: Space::default(),
        }
    }

    /// Makes the pools that are to be made at start.
    ///
    /// # Errors
    /// The pool that couldn't be made, and what the system said.
    pub fn prepare(&self) -> Result<(), (Label, io::Error)> {
        self.pools
            .values()
            .try_for_each(|pool| pool.prepare().map_err(|error| (pool.name.clone(), error)))
    }

    /// The pools, by name.
    #[must_use]
    pub fn pools(&self) -> &BTreeMap<Label, Pool> {
        &self.pools
    }

    /// A pool of this service.
    ///
    /// # Errors
    /// `pool.not_found`.
    pub(crate) fn pool(&self, name: &Label) -> Result<&Pool, JobError> {
        let missing = || JobError::new(Code::PoolNotFound, "this service doesn't have the pool");
        self.pools.get(name).ok_or_else(missing)
    }

    /// Removes what dead claims left in all pools: temporary files whose job is over, or has a
    /// newer claim, and deleted files that were to be removed. What can't be told stays.
    ///
    /// # Errors
    /// When the server doesn't answer. A pool that can't be reached is left for the next start.
    pub async fn sweep(&self, jobs: &Jobs) -> Result<(), BusError> {
        for pool in self.pools.values() {
            self.sweep_pool(jobs, pool).await?;
        }
        Ok(())
    }

    /// The same of one pool, and of its archive.
    pub(crate) async fn sweep_pool(&self, jobs: &Jobs, pool: &Pool) -> Result<(), BusError> {
        for place in [Some(pool.clone()), pool.archive()].into_iter().flatten() {
            let root = match place.reach() {
                Ok(root) => root,
                Err(error) => {
                    warn(pool, &error);
                    continue;
                }
            };
            self.sweep_drafts(jobs, pool, &root).await?;
            self.sweep_trash(pool, &root).await?;
        }
        Ok(())
    }

    /// What the catalogue says of something.
    async fn state(&self, of: &Target) -> Result<Option<DiskState>, CatalogError> {
        Ok(match of {
            Target::Disk(id) => self.disks.get(id).await?.map(|disk| disk.record.state),
            Target::Media(id) => self.media.get(id).await?.map(|medium| medium.record.state),
        })
    }

    async fn sweep_drafts(&self, jobs: &Jobs, pool: &Pool, root: &Root) -> Result<(), BusError> {
        let folders = [Folder::Disks, Folder::Media].map(|folder| listed(pool, root, folder));
        for name in folders.into_iter().flatten() {
            let Some((job, claim)) = name.as_part() else {
                continue;
            };
            let record = jobs.get_latest(&job).await?;
            let lives = record.is_some_and(|entry| {
                !entry.value.state.name().is_final() && entry.value.claim <= claim
            });
            if !lives {
                tracing::info!(pool = %pool.name, %job, claim, "a left-over file is removed");
                root.unlink(&name)
                    .map_or_else(|error| warn(pool, &error), |_| ());
            }
        }
        Ok(())
    }

    /// A deleted disk's file may still be there if its worker died in the moment between.
    async fn sweep_trash(&self, pool: &Pool, root: &Root) -> Result<(), BusError> {
        for name in listed(pool, root, Folder::Trash) {
            let Some((of, job, _)) = name.as_trash() else {
                continue;
            };
            let state = match self.state(&of).await {
                Ok(state) => state,
                Err(error) => {
                    let chain: &dyn std::error::Error = &error;
                    tracing::warn!(error = chain, "the trash isn't swept");
                    return Ok(());
                }
            };
            let is_over = state == Some(DiskState::Deleted);
            if is_over {
                tracing::info!(pool = %pool.name, %job, "a deleted disk's file is removed");
                root.unlink(&name)
                    .map_or_else(|error| warn(pool, &error), |_| ());
            }
        }
        Ok(())
    }
}

fn listed(pool: &Pool, root: &Root, folder: Folder) -> Vec<crate::pool::Name> {
    root.list(folder).unwrap_or_else(|error| {
        warn(pool, &error);
        Vec::new()
    })
}

fn warn(pool: &Pool, error: &PoolError) {
    let chain: &dyn std::error::Error = error;
    tracing::warn!(pool = %pool.name, error = chain, "a pool isn't swept");
}
