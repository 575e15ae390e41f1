//! Where a submitted job goes: a pure function of the task, of what its submitter wishes, and of
//! what is registered and alive.
//!
//! What exists decides first: a disk's pool, a domain's host. What is new goes to a pool of its
//! flavour, or to the default one, among those that can take it and that somebody serves, those with
//! room for it first; of several each gets its share by weight, by the job's id alone: the same
//! submission always goes to the same pool.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};
use virtbus_wire::{
    Class, Code, JobError, JobId, Label, Object, Place, PoolPair, Priority, Queue, Task,
    catalog::{PoolRecord, PoolState, WorkerRecord},
    control::Placement,
    protocol::arrival::unknown_queue,
    record::Address,
    task::{Home, StorageTask, image::DiskFormat},
};

/// What is registered, and who is alive.
#[derive(Debug, Default)]
pub(super) struct Site {
    /// Registered pools.
    pub(super) pools: Vec<PoolRecord>,
    /// Registered hosts.
    pub(super) hosts: Vec<Label>,
    /// Workers whose lease is there.
    pub(super) workers: Vec<WorkerRecord>,
}

/// Where a disk, a medium or a domain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    /// Its pool.
    pub(super) pool: Label,
    /// A domain's host.
    pub(super) host: Option<Label>,
}

/// Where the things are that tasks name.
pub(super) type Spots = BTreeMap<Object, Spot>;

/// The class of a task. Names that two classes know go by whether a domain is named, or a host
/// wished for.
pub(super) fn class(
    task: &str,
    params: &serde_json::Value,
    wish: &Placement,
) -> Result<Class, JobError> {
    let names_a_domain = params.get("domain").is_some() || wish.hypervisor.is_some();
    let first = match names_a_domain {
        true => Class::Hypervisor,
        false => Class::Storage,
    };
    let mut classes = std::iter::once(first).chain(Class::ALL);
    classes
        .find(|class| Task::names(*class).contains(&task))
        .ok_or_else(|| {
            let message = "no class has a task of this name";
            JobError::new(Code::JobUnknownTask, message).with("task", task)
        })
}

/// The queue of a job. What the queue names is registered, and a worker that lives serves it.
pub(super) fn place(
    id: &JobId,
    task: &Task,
    wish: &Placement,
    spots: &Spots,
    site: &Site,
) -> Result<Queue, JobError> {
    let priority = wish.priority.unwrap_or_else(|| task.home_priority());
    let queue = match task {
        Task::Core(_) => Queue::Core,
        Task::Hypervisor(_) => {
            let name = host(id, task, wish, spots, site, priority)?;
            let is_known = site.hosts.contains(&name) || site.pool(&name).is_some();
            let queue = Queue::Hypervisor(name, priority);
            if !is_known {
                return Err(unknown_queue(&Address::Queue(queue)));
            }
            queue
        }
        Task::Storage(storage) => {
            let new = New::of(storage);
            let pool = pool(id, task, new.as_ref(), wish, spots, site, priority)?;
            site.check_pool(&pool, new.is_some())?;
            let place = if let StorageTask::MoveDisk(moving) = storage {
                site.check_pool(&moving.pool, true)?;
                let there = || JobError::invalid_params("pool", "is where the disk is already");
                Place::Pair(PoolPair::new(pool, moving.pool.clone()).ok_or_else(there)?)
            } else {
                Place::Pool(pool)
            };
            Queue::Storage(place, priority)
        }
    };
    match site.is_served(&queue) {
        true => Ok(queue),
        false => Err(no_worker(&queue)),
    }
}

/// What matters of a disk or a medium that a task makes out of nothing.
struct New {
    /// The format of a disk.
    format: Option<DiskFormat>,
    /// Its virtual size in bytes, if it's known.
    size: Option<u64>,
}

impl New {
    fn of(task: &StorageTask) -> Option<Self> {
        let any = Self {
            format: None,
            size: None,
        };
        match task {
            StorageTask::CreateDisk(disk) => Some(Self {
                format: Some(disk.format),
                size: disk.size.map(|size| size.bytes()),
            }),
            StorageTask::Upload(upload) => Some(Self {
                format: upload.convert_to,
                ..any
            }),
            StorageTask::ImportUrl(import) => Some(Self {
                format: import.convert_to,
                ..any
            }),
            StorageTask::AdoptDisk(_) | StorageTask::AdoptMedia(_) => Some(any),
            StorageTask::Ping(_)
            | StorageTask::CreateSnapshot(_)
            | StorageTask::RevertSnapshot(_)
            | StorageTask::DeleteSnapshot(_)
            | StorageTask::Resize(_)
            | StorageTask::Convert(_)
            | StorageTask::Commit(_)
            | StorageTask::Rebase(_)
            | StorageTask::Sparsify(_)
            | StorageTask::ArchiveDisk(_)
            | StorageTask::UnarchiveDisk(_)
            | StorageTask::DeleteDisk(_)
            | StorageTask::RestoreDisk(_)
            | StorageTask::DeleteMedia(_)
            | StorageTask::CheckDisk(_)
            | StorageTask::MoveDisk(_)
            | StorageTask::FinishUpload(_)
            | StorageTask::Download(_) => None,
        }
    }
}

/// The pool of a storage task.
fn pool(
    id: &JobId,
    task: &Task,
    new: Option<&New>,
    wish: &Placement,
    spots: &Spots,
    site: &Site,
    priority: Priority,
) -> Result<Label, JobError> {
    let objects = task.objects();
    let known = objects.iter().find_map(|object| spots.get(object));
    match (&wish.pool, known) {
        (Some(wished), Some(spot)) if *wished != spot.pool => {
            let message = format!("it is in pool {}", spot.pool);
            Err(JobError::new(Code::DiskWrongPool, message).with("pool", spot.pool.as_str()))
        }
        (Some(wished), _) => Ok(wished.clone()),
        (None, Some(spot)) => Ok(spot.pool.clone()),
        (None, None) => match objects.first() {
            Some(object) if new.is_none() => Err(not_found(object)),
            Some(_) | None => {
                let queue = |pool: &Label| Queue::Storage(Place::Pool(pool.clone()), priority);
                site.choose(id, new, wish, queue)
            }
        },
    }
}

/// The host of a hypervisor task, or the pool whose hosts may take it.
fn host(
    id: &JobId,
    task: &Task,
    wish: &Placement,
    spots: &Spots,
    site: &Site,
    priority: Priority,
) -> Result<Label, JobError> {
    if let Some(host) = &wish.hypervisor {
        return Ok(host.clone());
    }
    let objects = task.objects();
    let known = objects.iter().find_map(|object| spots.get(object));
    let is_bound = task.home() == Home::Host;
    if let Some(host) = known
        .and_then(|spot| spot.host.as_ref())
        .filter(|_| is_bound)
    {
        return Ok(host.clone());
    }
    if let Some(pool) = &wish.pool {
        return Ok(pool.clone());
    }
    if let Some(spot) = known {
        return Ok(spot.pool.clone());
    }
    match objects.first() {
        Some(domain) if is_bound => Err(not_found(domain)),
        Some(_) | None => {
            let queue = |pool: &Label| Queue::Hypervisor(pool.clone(), priority);
            site.choose(id, None, wish, queue)
        }
    }
}

impl Site {
    fn pool(&self, name: &Label) -> Option<&PoolRecord> {
        self.pools.iter().find(|pool| pool.pool == *name)
    }

    fn check_pool(&self, name: &Label, gets_more: bool) -> Result<(), JobError> {
        let refused = |code, message| JobError::new(code, message).with("pool", name.as_str());
        let Some(pool) = self.pool(name) else {
            let message = format!("nobody registered the pool {name}");
            return Err(refused(Code::QueueUnknown, message));
        };
        let takes = match pool.state {
            PoolState::Enabled => true,
            PoolState::Draining => !gets_more,
            PoolState::Disabled => false,
        };
        match takes {
            true => Ok(()),
            false => Err(refused(
                Code::PoolDisabled,
                format!("the pool {name} takes no such job"),
            )),
        }
    }

    fn is_served(&self, queue: &Queue) -> bool {
        let has_pools = |worker: &WorkerRecord| match queue {
            Queue::Storage(Place::Pair(pair), _) => {
                let has = |pool: &Label| worker.pools.contains(pool);
                worker.class == Class::Storage && pair.pools().into_iter().all(has)
            }
            Queue::Storage(Place::Pool(_), _) | Queue::Hypervisor(..) | Queue::Core => false,
        };
        let serves = |worker: &&WorkerRecord| worker.queues.contains(queue) || has_pools(worker);
        let mut takers = self.workers.iter().filter(|worker| !worker.draining);
        takers.any(|worker| serves(&worker))
    }

    /// How many bytes are free in a pool, by those who have it; none when nobody knows.
    fn free(&self, pool: &Label) -> Option<u64> {
        let takers = self.workers.iter().filter(|worker| !worker.draining);
        takers
            .filter_map(|worker| worker.free.get(pool))
            .max()
            .copied()
    }

    /// Leaves out the pools with less room than all of a new disk takes, unless there are no
    /// others: a disk may never be written whole. That it fits is looked at again when it's made.
    fn prefer_roomy(&self, pools: &mut Vec<&PoolRecord>, size: u64) {
        let is_roomy = |pool: &PoolRecord| self.free(&pool.pool).is_none_or(|free| size <= free);
        if pools.iter().any(|pool| is_roomy(pool)) {
            pools.retain(|pool| is_roomy(pool));
        }
    }

    /// A pool for what isn't anywhere yet.
    fn choose(
        &self,
        id: &JobId,
        new: Option<&New>,
        wish: &Placement,
        queue: impl Fn(&Label) -> Queue,
    ) -> Result<Label, JobError> {
        let enabled = |pool: &&PoolRecord| pool.state == PoolState::Enabled;
        let mut left: Vec<&PoolRecord> = self.pools.iter().filter(enabled).collect();
        let refused = |code, message: &str| Err(JobError::new(code, message));
        match &wish.flavour {
            Some(flavour) => left.retain(|pool| pool.flavours.contains(flavour)),
            None if left.iter().any(|pool| pool.default) => left.retain(|pool| pool.default),
            None => {}
        }
        if left.is_empty() {
            return match &wish.flavour {
                Some(_) => refused(Code::PoolUnsupported, "no pool is for this flavour"),
                None => refused(Code::PoolNotFound, "no pool takes what is new"),
            };
        }
        left.retain(|pool| {
            new.and_then(|new| new.format)
                .is_none_or(|f| can_hold(pool, f))
        });
        if left.is_empty() {
            return refused(Code::PoolUnsupported, "no such pool is for this format");
        }
        let size = new.and_then(|new| new.size).unwrap_or(0);
        left.retain(|pool| pool.size_max.is_none_or(|max| size <= max.bytes()));
        if left.is_empty() {
            return refused(
                Code::ImageTooLarge,
                "no such pool takes a disk of this size",
            );
        }
        let Some(unserved) = left.first().map(|pool| queue(&pool.pool)) else {
            return refused(Code::PoolNotFound, "no pool takes what is new");
        };
        left.retain(|pool| self.is_served(&queue(&pool.pool)));
        // Of those alone: one that nobody serves has no room for anything.
        self.prefer_roomy(&mut left, size);
        let chosen = share(id, &left);
        chosen.ok_or_else(|| no_worker(&unserved))
    }
}

/// What a disk's file may be.
const FORMATS: [DiskFormat; 2] = [DiskFormat::Qcow2, DiskFormat::Raw];

/// Whether a pool is for this format: one that names formats among its capabilities is for those
/// alone.
fn can_hold(pool: &PoolRecord, format: DiskFormat) -> bool {
    let names = |format: DiskFormat| {
        let named = |token: &virtbus_wire::task::value::Token| token.as_str() == format.as_str();
        pool.capabilities.iter().any(named)
    };
    let names_none = !FORMATS.into_iter().any(names);
    names_none || names(format)
}

/// One of the pools, each as often as its weight says: the least of `-ln(random) / weight`, the
/// random number drawn from the pool's and the job's names. One of weight 0 is taken only when
/// nothing else is left.
fn share(id: &JobId, pools: &[&PoolRecord]) -> Option<Label> {
    let cost = |pool: &PoolRecord| {
        let mut hasher = DefaultHasher::new();
        (pool.pool.as_str(), id.as_str()).hash(&mut hasher);
        // 53 bits are what a float holds exactly; never 0, whose logarithm is none.
        let drawn = (hasher.finish() >> 11) as f64 + 1.0;
        let random = drawn / ((1_u64 << 53) as f64 + 1.0);
        -random.ln() / f64::from(pool.weight)
    };
    let cheapest = |one: &&&PoolRecord, other: &&&PoolRecord| cost(one).total_cmp(&cost(other));
    let chosen = pools.iter().min_by(cheapest);
    chosen.map(|pool| pool.pool.clone())
}

fn no_worker(queue: &Queue) -> JobError {
    let message = format!("no worker that lives serves {queue}");
    JobError::new(Code::QueueNoWorker, message).with("queue", queue.subject())
}

/// That the catalogue doesn't know what a task names.
pub(super) fn not_found(object: &Object) -> JobError {
    let (code, kind, id) = match object {
        Object::Disk(id) => (Code::DiskNotFound, "disk", id.as_str()),
        Object::Media(id) => (Code::MediaNotFound, "media", id.as_str()),
        Object::Domain(id) => (Code::DomainNotFound, "domain", id.as_str()),
    };
    JobError::new(code, format!("no {kind} has the id {id}")).with(kind, id)
}

#[cfg(test)]
mod tests;
