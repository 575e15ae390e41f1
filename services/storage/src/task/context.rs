//! What the tasks read before they act: the pool, disks with all below them, and their files.

pub(crate) use super::ends::{out_of_order, tool};
use crate::{
    blocking,
    catalog::{self, Held, Purpose},
    config::Cache,
    disks::{Disk, Kept},
    fence::Fence,
    gate::{Expected, Known},
    pool::{Facts, Name, Pool, PoolError, Root},
    store::Store,
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError, Label, Place, Queue, Task,
    catalog::{DiskRecord, DiskState, PoolRecord, PoolState, UseMode},
    protocol::lock::Mode,
    task::{
        StorageTask, Target,
        image::{ImageFormat, Qcow2Options},
    },
};
use virtbus_worker::perform::{Assignment, Confirm, Stop};

/// The largest disk where a pool's record sets no limit: 64 TiB, which all formats can hold.
pub(crate) const DISK_BYTES_MAX: u64 = 64 << 40;

/// A job in its pool.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) store: &'a Store,
    pub(crate) job: &'a Assignment,
    pub(crate) pool: &'a Pool,
    /// Whom to ask before what was begun is put back.
    pub(crate) own: Option<&'a dyn Confirm>,
}

impl<'a> Context<'a> {
    /// The job in the pool that its queue names; between two pools, in the one that it takes from.
    ///
    /// # Errors
    /// `pool.not_found` when this service doesn't have it, `pool.unsupported` for a task that works
    /// within one pool on the queue of two, or the other way round.
    pub(crate) fn new(
        store: &'a Store,
        job: &'a Assignment,
        own: Option<&'a dyn Confirm>,
    ) -> Result<Self, JobError> {
        let refuse = |text: &str| Err(JobError::new(Code::PoolUnsupported, text));
        let target = match &job.task {
            Task::Storage(StorageTask::MoveDisk(params)) => Some(&params.pool),
            Task::Storage(_) | Task::Hypervisor(_) | Task::Core(_) => None,
        };
        let name = match (job.record.queue.queue(), target) {
            (Some(Queue::Storage(Place::Pool(name), _)), None) => name,
            (Some(Queue::Storage(pair @ Place::Pair(_), _)), Some(target)) => {
                let [one, other] = pair.pools()[..] else {
                    return refuse("this task works between two pools");
                };
                match (one == target, other == target) {
                    (true, _) => other,
                    (_, true) => one,
                    (false, false) => {
                        let text = "isn't one of the two pools of the queue";
                        return Err(JobError::invalid_params("pool", text));
                    }
                }
            }
            (_, Some(_)) => return refuse("this task works between two pools"),
            (_, None) => return refuse("this task works within one pool"),
        };
        let pool = store.pool(name)?;
        Ok(Self {
            store,
            job,
            pool,
            own,
        })
    }

    /// The pool's folder.
    pub(crate) async fn root(&self) -> Result<Root, Stop> {
        self.reach(self.pool).await
    }

    /// The folder of a pool.
    pub(crate) async fn reach(&self, pool: &Pool) -> Result<Root, Stop> {
        let pool = pool.clone();
        let root: Result<Root, PoolError> = blocking::look(move || pool.reach()).await;
        Ok(root?)
    }

    /// How a tool's copies in a pool go through the host's cache.
    pub(crate) async fn cache(&self, root: &Root) -> Result<Cache, Stop> {
        let root = root.clone();
        Ok(blocking::look(move || root.cache()).await?)
    }

    /// The pool's record, if it takes jobs: `more` says that the job adds a disk.
    pub(crate) async fn admit_pool(&self, more: bool) -> Result<PoolRecord, Stop> {
        self.admit_other_pool(&self.pool.name, more).await
    }

    /// The same of another pool.
    pub(crate) async fn admit_other_pool(
        &self,
        name: &Label,
        more: bool,
    ) -> Result<PoolRecord, Stop> {
        let name = name.as_str();
        let found = self.store.pool_records.get(name).await;
        let entry = found.map_err(|error| JobError::internal(error.to_string()))?;
        let refuse = |code, text: &str| JobError::new(code, text).with("pool", name);
        let Some(entry) = entry else {
            return Err(refuse(Code::PoolNotFound, "the pool isn't registered").into());
        };
        match entry.value.state {
            PoolState::Enabled => Ok(entry.value),
            PoolState::Draining if !more => Ok(entry.value),
            PoolState::Draining => {
                Err(refuse(Code::PoolDisabled, "the pool takes no new disks").into())
            }
            PoolState::Disabled => Err(refuse(Code::PoolDisabled, "the pool is disabled").into()),
        }
    }

    /// A disk that the job may have.
    pub(crate) async fn admitted(&self, id: &DiskId, purpose: Purpose) -> Result<Disk, Stop> {
        let disk = self.store.disks.get(id).await?;
        Ok(self.had(id, disk, purpose)?)
    }

    /// What was read, if the job may have it.
    pub(crate) fn had<R: Held>(
        &self,
        id: &R::Id,
        found: Option<Kept<R>>,
        purpose: Purpose,
    ) -> Result<Kept<R>, JobError> {
        let record = found.as_ref().map(|kept| &kept.record);
        catalog::admit(id, record, &self.pool.name, &self.job.id, purpose)?;
        found.ok_or_else(|| JobError::internal("what isn't there was admitted"))
    }

    /// What was read, if it's in this state, in this pool: then what the job asks for is so already.
    pub(crate) fn is_so<'r, R: Held>(
        &self,
        found: Option<&'r Kept<R>>,
        state: DiskState,
    ) -> Option<&'r Kept<R>> {
        let pool = &self.pool.name;
        found.filter(|kept| kept.record.head().state == state && kept.record.pool() == pool)
    }

    /// That nobody uses something in a way that goes not with what the job wants.
    pub(crate) fn admit_use<R: Held>(&self, kept: &Kept<R>, wants: UseMode) -> Result<(), Stop> {
        let if_in_use = self.job.record.if_in_use;
        catalog::admit_use(&kept.id, &kept.record, wants, if_in_use, super::now())
    }

    /// A disk that the job reads, with all below it.
    pub(crate) async fn readable_chain(&self, id: &DiskId) -> Result<Vec<Disk>, Stop> {
        let mut chain = vec![self.admitted(id, Purpose::Use).await?];
        chain.extend(self.readable_below(&chain[0]).await?);
        self.admit_use(&chain[0], UseMode::Shared)?;
        Ok(chain)
    }

    /// All disks below one, each of which the job may read.
    pub(crate) async fn readable_below(&self, disk: &Disk) -> Result<Vec<Disk>, Stop> {
        let mut chain = self.store.disks.below(disk).await?;
        let last = chain.last().unwrap_or(disk);
        if let Some(missing) = &last.record.backing {
            self.admitted(missing, Purpose::Use).await?;
        }
        for below in &mut chain {
            let (pool, job) = (&self.pool.name, &self.job.id);
            catalog::admit(&below.id, Some(&below.record), pool, job, Purpose::Use)?;
            self.admit_use(below, UseMode::Shared)?;
        }
        Ok(chain)
    }

    /// What is known of a file; none if there is no such file.
    pub(crate) async fn facts_of(&self, root: &Root, name: &Name) -> Result<Option<Facts>, Stop> {
        let (root, name) = (root.clone(), name.clone());
        let facts: Result<_, PoolError> = blocking::look(move || root.facts(&name)).await;
        Ok(facts?)
    }

    /// Whether there's anything under a name, also what isn't a plain file.
    pub(crate) async fn is_taken(&self, root: &Root, name: &Name) -> Result<bool, Stop> {
        match self.facts_of(root, name).await {
            Err(Stop::Failed(error)) if error.code == Code::ImageUnsafeFeature => Ok(true),
            facts => Ok(facts?.is_some()),
        }
    }

    /// The lock on the file of a disk or a medium.
    pub(crate) async fn fence(
        &self,
        root: &Root,
        of: impl Into<Target> + Send,
    ) -> Result<Fence, Stop> {
        let claim = (&self.job.id, self.job.claim);
        let owner = &self.job.owner;
        let mut fence = Fence::take(root, of, owner, claim, &self.store.leases).await?;
        if let Err(stop) = self.confirm().await {
            // A claim of the job may need it.
            fence.leave_mark();
            return Err(stop);
        }
        Ok(fence)
    }

    /// That what is put back is nobody else's by now. The work itself has its fence instead.
    pub(crate) async fn confirm(&self) -> Result<(), Stop> {
        match self.own {
            Some(own) => own.confirm().await,
            None => Ok(()),
        }
    }

    /// Removes the temporary files that older claims of this job left for a disk or a medium.
    pub(crate) async fn clean(&self, of: impl Into<Target> + Send) -> Result<(), Stop> {
        self.clean_in(self.pool, of).await
    }

    /// The same in another place than the pool: in another one, or in the archive.
    pub(crate) async fn clean_in(
        &self,
        pool: &Pool,
        of: impl Into<Target> + Send,
    ) -> Result<(), Stop> {
        let (job, claim, of) = (self.job.id.clone(), self.job.claim, of.into());
        if claim <= 1 {
            return Ok(());
        }
        let root = self.reach(pool).await?;
        let cleaned: Result<(), PoolError> = blocking::act(move || {
            (1..claim).try_for_each(|older| root.unlink(&Name::part(&job, older, &of)).map(|_| ()))
        })
        .await;
        Ok(cleaned?)
    }

    /// A disk's lock, and shared ones on all below it.
    pub(crate) async fn locks_below(&self, id: &DiskId, mode: Mode) -> Result<LockSet, JobError> {
        let mut locks = LockSet::from([(lock_name(id), mode)]);
        if let Some(disk) = self.store.disks.get(id).await? {
            for below in self.store.disks.below(&disk).await? {
                locks.entry(lock_name(&below.id)).or_insert(Mode::Shared);
            }
        }
        Ok(locks)
    }
}

/// The name of the lock of a disk or a medium between jobs.
pub(crate) fn lock_name(of: impl Into<Target>) -> String {
    of.into().to_string()
}

/// A disk's file.
pub(crate) fn file_of(disk: &Disk) -> Name {
    Name::disk(&disk.id, disk.record.format)
}

/// What a disk's file must be, on top of the one below.
pub(crate) fn expected(disk: &Disk, below: Option<&Disk>) -> Expected {
    Expected {
        format: disk.record.format,
        backing: below.map(backing_of),
        known: Known::of(&disk.record),
    }
}

/// What an overlay calls its backing.
pub(crate) fn backing_of(disk: &Disk) -> (String, ImageFormat) {
    (file_of(disk).file().to_owned(), disk.record.format)
}

/// What the catalogue says of a disk's virtual size.
pub(crate) fn virtual_size(record: &DiskRecord) -> Result<u64, JobError> {
    let unknown = || JobError::internal("the catalogue doesn't know the disk's size");
    record.virtual_size.ok_or_else(unknown)
}

/// The largest that a disk of a pool may be, in bytes.
pub(crate) fn size_max(pool: &PoolRecord) -> u64 {
    let limit = pool.size_max.map_or(DISK_BYTES_MAX, |max| max.bytes());
    limit.min(DISK_BYTES_MAX)
}

/// That a disk isn't larger than the pool allows.
pub(crate) fn admit_size(size: u64, pool: &PoolRecord) -> Result<(), JobError> {
    let limit = size_max(pool);
    if size <= limit {
        return Ok(());
    }
    let text = "the disk would be larger than the pool allows";
    Err(JobError::new(Code::ImageTooLarge, text)
        .with("size", size)
        .with("size_max", limit))
}

/// The options of a new qcow2: the job's, and where it says nothing the pool's.
pub(crate) fn qcow2_options(
    job: Option<&Qcow2Options>,
    pool: &Qcow2Options,
) -> Result<Qcow2Options, JobError> {
    let job = job.cloned().unwrap_or_default();
    let options = Qcow2Options {
        cluster_size: job.cluster_size.or(pool.cluster_size),
        extended_l2: job.extended_l2.or(pool.extended_l2),
        lazy_refcounts: job.lazy_refcounts.or(pool.lazy_refcounts),
        compat: job.compat.or(pool.compat),
    };
    options.check("qcow2")?;
    Ok(options)
}
