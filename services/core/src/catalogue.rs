//! Who and what is registered: pools, hosts, workers.

use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_bus::{Bucket, Bus, BusError, Row, WriteError, lease, topology};
use virtbus_wire::{
    Label, PoolPair, Queue, WorkerId,
    catalog::{
        DRAIN_PREFIX, DiskRecord, DomainRecord, HypervisorRecord, LimitsRecord, MediaRecord,
        PoolRecord, QueueRecord, WorkerRecord,
    },
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 8;

/// Changes a record, if it's there, however often others come between. None of `step` = nothing to
/// do.
///
/// # Errors
/// When the server doesn't answer, or others come between all the time.
pub(crate) async fn change<T: Serialize + DeserializeOwned>(
    bucket: &Bucket<T>,
    key: &str,
    step: impl Fn(&T) -> Option<T>,
) -> Result<(), WriteError> {
    for _ in 0..TRIES_MAX {
        let slot = bucket.slot(key).await?;
        let Some(next) = slot.value.as_ref().and_then(&step) else {
            return Ok(());
        };
        match bucket.update(key, &next, slot.revision).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(WriteError::Conflict(key.to_owned()))
}

/// The buckets of the catalogue that core reads and writes.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Registered pools, by name.
    pub pools: Bucket<PoolRecord>,
    /// Hosts, by id, written by their own services.
    pub hypervisors: Bucket<HypervisorRecord>,
    /// Leases of workers, by id.
    pub workers: Bucket<WorkerRecord>,
    /// Workers whose lease ran out in the last day.
    pub lost: Bucket<WorkerRecord>,
    /// Paused queues, by subject, and drained workers.
    pub queues: Bucket<QueueRecord>,
    /// Disks, by id.
    pub disks: Bucket<DiskRecord>,
    /// Media, by id.
    pub media: Bucket<MediaRecord>,
    /// Domains, by id.
    pub domains: Bucket<DomainRecord>,
    /// What is limited: one key of the bucket of pools.
    pub limits: Bucket<LimitsRecord>,
}

impl Catalogue {
    /// Through this connection.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self {
            pools: Bucket::new(bus, "pools"),
            hypervisors: Bucket::new(bus, "hypervisors"),
            workers: Bucket::new(bus, lease::BUCKET),
            lost: Bucket::new(bus, "workers_lost"),
            queues: Bucket::new(bus, "queues"),
            disks: Bucket::new(bus, "disks"),
            media: Bucket::new(bus, "media"),
            domains: Bucket::new(bus, "domains"),
            limits: Bucket::new(bus, "pools"),
        }
    }

    /// Whether somebody registered what a queue names. Read from the leader: a job must not fail
    /// because a replica is late.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn knows(&self, queue: &Queue) -> Result<bool, BusError> {
        match queue {
            Queue::Core => Ok(true),
            Queue::Storage(place, _) => {
                for pool in place.pools() {
                    if !self.has_pool(pool).await? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Queue::Hypervisor(name, _) => {
                let is_host = self.hypervisors.get_latest(name.as_str()).await?.is_some();
                Ok(is_host || self.has_pool(name).await?)
            }
        }
    }

    /// The workers that are to take no more jobs, whether they're there or away.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn drained(&self) -> Result<BTreeMap<WorkerId, QueueRecord>, BusError> {
        let mut drained = BTreeMap::new();
        let each = |row: Row<QueueRecord>| {
            let worker = row.key.strip_prefix(DRAIN_PREFIX);
            let worker = worker.and_then(|id| id.parse::<WorkerId>().ok());
            if let (Some(worker), Ok(Some(entry))) = (worker, row.entry)
                && entry.value.paused
            {
                drained.insert(worker, entry.value);
            }
        };
        self.queues.each_from(1, each).await?;
        Ok(drained)
    }

    /// The workers whose lease is there. One that was told to take no more jobs counts as
    /// draining, though it may not have heard of it yet.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn alive(&self) -> Result<Vec<WorkerRecord>, BusError> {
        let drained = self.drained().await?;
        let beats = self.workers.all().await?.into_iter();
        let alive = beats.map(|(_, entry)| {
            let mut beat = entry.value;
            beat.draining |= drained.contains_key(&beat.worker);
            beat
        });
        Ok(alive.collect())
    }

    async fn has_pool(&self, pool: &Label) -> Result<bool, BusError> {
        Ok(self.pools.get_latest(pool.as_str()).await?.is_some())
    }

    /// All queues that need a consumer: those of pools and hosts, and of each pair of registered
    /// pools that a worker has both of.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn queues(&self) -> Result<BTreeSet<Queue>, BusError> {
        let pools = labels(self.pools.all().await?);
        let hosts = labels(self.hypervisors.all().await?);
        let workers = self.workers.all().await?;
        let had: Vec<Vec<Label>> = workers
            .into_iter()
            .map(|(_, entry)| entry.value.pools)
            .collect();
        Ok(wanted(&pools, &hosts, &had))
    }
}

fn labels<T>(records: Vec<(String, T)>) -> BTreeSet<Label> {
    let names = records.into_iter().map(|(name, _)| name.parse());
    names.filter_map(Result::ok).collect()
}

/// The queues of these pools and hosts, and of the pairs that these workers have.
#[must_use]
pub fn wanted(
    pools: &BTreeSet<Label>,
    hosts: &BTreeSet<Label>,
    workers: &[Vec<Label>],
) -> BTreeSet<Queue> {
    let mut queues = BTreeSet::from([Queue::Core]);
    queues.extend(pools.iter().flat_map(topology::queues_of_pool));
    queues.extend(hosts.iter().flat_map(topology::queues_of_host));
    for had in workers {
        let known: Vec<&Label> = had.iter().filter(|pool| pools.contains(pool)).collect();
        for (place, one) in known.iter().enumerate() {
            for other in &known[place + 1..] {
                let pair = PoolPair::new((*one).clone(), (*other).clone());
                queues.extend(pair.iter().flat_map(topology::queues_of_pair));
            }
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_needs_both_pools_registered_and_one_worker_that_has_both() {
        let set = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let list = |names: &[&str]| -> Vec<Label> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let pools: BTreeSet<Label> = set(&["a", "b", "c"]);
        let hosts: BTreeSet<Label> = set(&["hv-1"]);
        let workers = [list(&["b", "a"]), list(&["c", "unknown"])];
        let queues: Vec<String> = wanted(&pools, &hosts, &workers)
            .iter()
            .map(Queue::subject)
            .collect();
        // core, 3 pools in 2 classes, 1 host, 1 pair; each in 3 priorities.
        assert_eq!(queues.len(), 1 + 3 * 2 * 3 + 3 + 3);
        assert!(queues.contains(&"storage.a_b.low".to_owned()));
        assert!(queues.contains(&"hypervisor.hv-1.high".to_owned()));
        assert!(!queues.iter().any(|queue| queue.contains("unknown")));
    }
}
