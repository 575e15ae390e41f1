//! Room for domains: memory and processors, with what is about to be started.

use crate::{
    libvirt::{Host, LibvirtError, Running},
    xml::Blueprint,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use virtbus_wire::{DomainId, JobError, JobId, Size, state::WaitReason};
use virtbus_worker::Stop;

/// How long room is kept for a job whose claim nobody heard of again.
const RESERVED: Duration = Duration::from_secs(60);

/// How much of the host domains may have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CapacityConfig {
    /// Memory of all domains together; what the host has, but for a tenth, when left out.
    pub(crate) memory: Option<Size>,
    /// Virtual processors of all domains together; four for each of the host's when left out.
    pub(crate) vcpus: Option<u32>,
}

/// What a domain needs, or what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// In bytes.
    pub(crate) memory: u64,
    /// Virtual processors.
    pub(crate) vcpus: u64,
}

impl Room {
    /// What a domain takes.
    pub(crate) fn of(blueprint: &Blueprint) -> Self {
        Self {
            memory: blueprint.memory,
            vcpus: u64::from(blueprint.vcpus),
        }
    }

    /// Both together. More than can be counted stays the most that can be: it fits nowhere, however
    /// much there is besides.
    fn and(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            vcpus: self.vcpus.saturating_add(other.vcpus),
        }
    }

    fn is_within(self, limit: Self) -> bool {
        self.memory <= limit.memory && self.vcpus <= limit.vcpus
    }

    /// What a job that waits for it needs.
    pub(crate) fn needs(self) -> Map<String, Value> {
        let (memory, vcpus) = (self.memory.into(), self.vcpus.into());
        Map::from_iter([("memory".to_owned(), memory), ("vcpus".to_owned(), vcpus)])
    }
}

/// What there is on this host.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    limit: Room,
    reserved: Arc<Mutex<HashMap<JobId, Reserved>>>,
    /// One look at a time: two would both find the same room.
    looking: Arc<tokio::sync::Mutex<()>>,
}

/// Room that is kept for a domain that is about to run.
#[derive(Debug)]
struct Reserved {
    domain: DomainId,
    room: Room,
    at: Instant,
}

/// The virtual processors of all domains together, for each of the host's.
const VCPUS_PER_CPU: u32 = 4;

impl Capacity {
    /// What the configuration says, and where it says nothing what the host has.
    pub(crate) fn new(config: &CapacityConfig, memory: u64, cpus: u32) -> Self {
        let own = || memory - memory / 10;
        let vcpus = config.vcpus.unwrap_or(cpus.saturating_mul(VCPUS_PER_CPU));
        Self {
            limit: Room {
                memory: config.memory.map_or_else(own, |size| size.bytes()),
                vcpus: u64::from(vcpus),
            },
            reserved: Arc::default(),
            looking: Arc::default(),
        }
    }

    /// Keeps room for a job's domain, if there is enough beside those that run.
    pub(crate) async fn reserve(
        &self,
        host: &Host,
        job: &JobId,
        domain: &DomainId,
        need: Room,
    ) -> Result<bool, LibvirtError> {
        let _looking = self.looking.lock().await;
        // Before libvirt is asked: one that is started meanwhile is among these or those that run.
        let kept: Vec<(DomainId, Room)> = {
            let mut reserved = self.reserved();
            reserved.retain(|_, kept| kept.at.elapsed() < RESERVED);
            let others = reserved.iter().filter(|(other, _)| *other != job);
            let others = others.map(|(_, kept)| (kept.domain.clone(), kept.room));
            others.collect()
        };
        let running = host.running().await?;
        let mut used = Room::default();
        for Running { memory, vcpus } in running.values().copied() {
            used = used.and(Room { memory, vcpus });
        }
        for (domain, room) in &kept {
            // One that runs by now is counted already.
            if !running.contains_key(domain.as_str()) {
                used = used.and(*room);
            }
        }
        let fits = used.and(need).is_within(self.limit);
        if fits {
            let kept = Reserved {
                domain: domain.clone(),
                room: need,
                at: Instant::now(),
            };
            self.reserved().insert(job.clone(), kept);
        }
        Ok(fits)
    }

    /// Room for a job that is at work: what it has is kept longer. One that was taken over has none,
    /// since what was kept for it went with the process.
    ///
    /// # Errors
    /// A wait for it.
    pub(crate) async fn claim(
        &self,
        host: &Host,
        job: &JobId,
        domain: &DomainId,
        need: Room,
    ) -> Result<(), Stop> {
        if self.keep(job) {
            return Ok(());
        }
        let fits = self.reserve(host, job, domain, need).await;
        if fits.map_err(JobError::from)? {
            return Ok(());
        }
        let needs = need.needs();
        Err(Stop::Wait(WaitReason::Capacity { needs }))
    }

    /// Keeps the room of a job longer; false when it has none.
    fn keep(&self, job: &JobId) -> bool {
        let mut reserved = self.reserved();
        let kept = reserved.get_mut(job);
        kept.map(|kept| kept.at = Instant::now()).is_some()
    }

    /// Gives back a job's room: its domain runs and is counted, or it won't.
    pub(crate) fn release(&self, job: &JobId) {
        self.reserved().remove(job);
    }

    fn reserved(&self) -> MutexGuard<'_, HashMap<JobId, Reserved>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trial driver of its own, with one domain of 8 GiB and two processors that runs: the one
    /// that all tests of a process share has more while they have.
    fn trial() -> (tempfile::NamedTempFile, Host) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = "<node><domain type='test'><name>other</name><memory unit='GiB'>8</memory>\
                    <vcpu>2</vcpu><os><type>hvm</type></os></domain></node>";
        std::fs::write(&file, node).unwrap();
        let uri = format!("test://{}", file.path().display());
        let (host, _hinted) = Host::new(&uri.parse().unwrap()).unwrap();
        (file, host)
    }

    #[tokio::test]
    async fn two_starts_do_not_find_the_same_room() {
        let (_file, host) = trial();
        let config = CapacityConfig {
            memory: "10GiB".parse().ok(),
            vcpus: Some(8),
        };
        let capacity = Capacity::new(&config, 0, 0);
        let need = Room {
            memory: 1 << 30,
            vcpus: 1,
        };
        let jobs: Vec<JobId> = (0..3).map(|_| JobId::new()).collect();
        let mut had = Vec::new();
        let name: DomainId = "web1".parse().unwrap();
        for job in &jobs {
            had.push(capacity.reserve(&host, job, &name, need).await.unwrap());
        }
        assert_eq!(had, [true, true, false]);
        capacity.release(&jobs[0]);
        assert!(
            capacity
                .reserve(&host, &jobs[2], &name, need)
                .await
                .unwrap()
        );
        let again = capacity
            .reserve(&host, &jobs[2], &name, need)
            .await
            .unwrap();
        assert!(again, "its own room is no obstacle");
        // Nor the same processors, however much memory there is.
        let three = CapacityConfig {
            vcpus: Some(3),
            ..CapacityConfig::default()
        };
        let capacity = Capacity::new(&three, u64::MAX, 0);
        let mut had = Vec::new();
        for job in &jobs {
            had.push(capacity.reserve(&host, job, &name, need).await.unwrap());
        }
        assert_eq!(had, [true, false, false]);
    }

    #[test]
    fn what_nobody_configured_is_nearly_all_memory_and_four_processors_for_each_one() {
        let capacity = Capacity::new(&CapacityConfig::default(), 100 << 30, 2);
        let limit = Room {
            memory: 90 << 30,
            vcpus: 8,
        };
        assert_eq!(capacity.limit, limit);
    }

    #[tokio::test]
    async fn what_is_too_much_to_be_counted_fits_nowhere() {
        let (_file, host) = trial();
        let capacity = Capacity::new(&CapacityConfig::default(), u64::MAX, u32::MAX);
        let name: DomainId = "web1".parse().unwrap();
        let need = Room {
            memory: 1 << 30,
            vcpus: 1,
        };
        assert_eq!(host.running().await.unwrap().len(), 1);
        for huge in [
            Room {
                memory: u64::MAX,
                ..need
            },
            Room {
                vcpus: u64::MAX,
                ..need
            },
        ] {
            let job = JobId::new();
            assert!(!capacity.reserve(&host, &job, &name, huge).await.unwrap());
        }
    }
}
