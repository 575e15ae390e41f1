//! Leases: a worker is alive while its key in the bucket `workers` is there and names its boot.
//!
//! The bucket forgets a key that wasn't written for [`LEASE`]; the server's clock decides. The
//! holder measures with a clock that runs through suspends, from before each beat was sent, and
//! stops trusting itself after two thirds: its tools are dead before anybody takes over. A holder
//! that was in doubt goes on under a new boot: otherwise what it gave up would look alive to all
//! others, and wait for its message to come to this very worker.

use crate::{
    bucket::Bucket,
    client::Bus,
    error::{BusError, WriteError},
};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tokio::sync::watch;
use virtbus_wire::{BootId, WorkerId, catalog::WorkerRecord, state::Owner};

/// The bucket's name.
pub const BUCKET: &str = "workers";
/// How long a lease lasts: the `max_age` of the bucket, in `nats/kv/workers.json`.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often it's renewed.
pub const BEAT: Duration = Duration::from_secs(5);
/// After how long without a confirmed beat its holder must have stopped everything.
pub const TRUST: Duration = Duration::from_secs(10);
/// How often one that is in doubt tries to get it again.
const DOUBT: Duration = Duration::from_millis(500);

/// What the holder of a lease may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The lease is ours.
    Held,
    /// It may be out: stop tools, change nothing.
    Doubtful,
    /// Another process has our name: stop for good.
    Taken,
}

/// A lease as its holder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What the process is called now. A process that was in doubt goes on under a new one: what
    /// it had before is a dead owner's, for itself as for everybody else.
    pub boot: BootId,
    /// What it may believe.
    pub trust: Trust,
}

impl Standing {
    /// Whether what was begun under this boot may go on.
    #[must_use]
    pub fn is_held_by(self, boot: BootId) -> bool {
        self.trust == Trust::Held && self.boot == boot
    }
}

/// Who is alive.
#[derive(Debug, Clone)]
pub struct Leases {
    records: Bucket<WorkerRecord>,
}

/// Why a lease wasn't had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another process of this name is alive.
    #[error("another process runs as worker {0}")]
    Taken(WorkerId),
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Leases {
    /// The bucket `workers`.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self {
            records: Bucket::new(bus, BUCKET),
        }
    }

    /// Whether this very process of a worker is alive.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn is_alive(&self, owner: &Owner) -> Result<bool, BusError> {
        let entry = self.records.get_latest(owner.worker.as_str()).await?;
        Ok(entry.is_some_and(|entry| entry.value.boot == owner.boot))
    }

    /// The process of a worker that has the lease, if it's alive.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn owner(&self, worker: &WorkerId) -> Result<Option<Owner>, BusError> {
        let entry = self.records.get_latest(worker.as_str()).await?;
        Ok(entry.map(|entry| Owner {
            worker: worker.clone(),
            boot: entry.value.boot,
        }))
    }

    /// Takes the lease for a process that just started. `replace` says that no other process of
    /// this worker can be alive on its host (it holds the lock file there), so an older boot's
    /// lease goes if it's this host's. Of another host the lock file says nothing.
    ///
    /// # Errors
    /// `Taken` while another boot's lease lasts.
    pub async fn take(&self, worker: &WorkerRecord, replace: bool) -> Result<u64, LeaseError> {
        let slot = self.records.slot(worker.worker.as_str()).await?;
        let is_free = |other: WorkerRecord| {
            other.boot == worker.boot || (replace && other.host == worker.host)
        };
        if slot.value.is_none_or(is_free) {
            self.write(worker, slot.revision).await
        } else {
            Err(LeaseError::Taken(worker.worker.clone()))
        }
    }

    async fn write(&self, worker: &WorkerRecord, revision: u64) -> Result<u64, LeaseError> {
        let key = worker.worker.as_str();
        match self.records.update(key, worker, revision).await {
            Ok(revision) => Ok(revision),
            Err(WriteError::Conflict(_)) => Err(LeaseError::Taken(worker.worker.clone())),
            Err(WriteError::Bus(error)) => Err(error.into()),
        }
    }

    /// Gives the lease back, so that what the worker had is taken over at once.
    pub async fn give_back(&self, worker: &WorkerId, boot: BootId) {
        let Ok(Some(entry)) = self.records.get_latest(worker.as_str()).await else {
            return;
        };
        if entry.value.boot == boot {
            // Not removed here, it runs out by itself.
            let removed = self.records.remove(worker.as_str(), entry.revision).await;
            tracing::debug!(ok = removed.is_ok(), "lease given back");
        }
    }

    /// Renews a lease until `stop`, with what `describe` says each time. Once in doubt, the lease
    /// is taken anew under another boot, as soon as `is_idle` says that nothing begun under the
    /// old one is left, or the old one is out for everybody.
    pub async fn keep(
        &self,
        mut revision: u64,
        describe: impl Fn(BootId) -> WorkerRecord,
        is_idle: impl Fn() -> bool,
        standing: watch::Sender<Standing>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let bus = self.records.bus();
        let mut confirmed = bus.boot_time();
        let mut next_boot: Option<BootId> = None;
        loop {
            let Standing { boot, trust } = *standing.borrow();
            let pause = if trust == Trust::Held { BEAT } else { DOUBT };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let sent = bus.boot_time();
            let age = sent.saturating_sub(confirmed);
            // After a suspend the lease may be out before this beat says so.
            if age >= TRUST {
                doubt(&standing);
            }
            let in_doubt = standing.borrow().trust != Trust::Held;
            if in_doubt && next_boot.is_none() {
                if !is_idle() && age < LEASE {
                    continue;
                }
                next_boot = Some(bus.new_boot());
            }
            let worker = describe(next_boot.unwrap_or(boot));
            let beat = self.beat(&worker, revision, next_boot.map(|_| boot));
            let beaten = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                beaten = tokio::time::timeout(BEAT, beat) => beaten,
            };
            match beaten {
                Ok(Ok(Some(next))) => {
                    (revision, confirmed) = (next, sent);
                    next_boot = None;
                    confirm(&standing, worker.boot);
                }
                Ok(Ok(None)) => doubt(&standing),
                Ok(Err(LeaseError::Taken(worker))) => return taken(&standing, &worker),
                Ok(Err(LeaseError::Bus(error))) => {
                    tracing::warn!(%error, "heartbeat not confirmed");
                }
                Err(_) => tracing::warn!("heartbeat not confirmed in time"),
            }
            if bus.boot_time().saturating_sub(confirmed) >= TRUST {
                doubt(&standing);
            }
        }
    }

    /// One beat, and the lease's revision; none when the lease ran out meanwhile. `after` is the
    /// boot that this one follows in the same process: its lease is ours to replace.
    async fn beat(
        &self,
        worker: &WorkerRecord,
        revision: u64,
        after: Option<BootId>,
    ) -> Result<Option<u64>, LeaseError> {
        let key = worker.worker.as_str();
        match self.records.update(key, worker, revision).await {
            Ok(revision) => return Ok(Some(revision)),
            Err(WriteError::Conflict(_)) => {}
            Err(WriteError::Bus(error)) => return Err(error.into()),
        }
        let slot = self.records.slot(key).await?;
        match slot.value {
            None if after.is_none() => Ok(None),
            // An earlier beat of ours may have been written without an answer.
            Some(other) if other.boot != worker.boot && Some(other.boot) != after => {
                Err(LeaseError::Taken(worker.worker.clone()))
            }
            Some(_) | None => self.write(worker, slot.revision).await.map(Some),
        }
    }
}

fn doubt(standing: &watch::Sender<Standing>) {
    standing.send_if_modified(|standing| {
        let changes = standing.trust == Trust::Held;
        if changes {
            tracing::warn!(boot = %standing.boot, "the lease is in doubt: nothing goes on");
            standing.trust = Trust::Doubtful;
        }
        changes
    });
}

fn taken(standing: &watch::Sender<Standing>, worker: &WorkerId) {
    tracing::error!(%worker, "another process took this worker's lease");
    standing.send_modify(|standing| standing.trust = Trust::Taken);
}

fn confirm(standing: &watch::Sender<Standing>, boot: BootId) {
    standing.send_if_modified(|standing| {
        let held = Standing {
            boot,
            trust: Trust::Held,
        };
        if standing.boot != boot {
            tracing::warn!(old = %standing.boot, new = %boot, "the lease is held again");
        }
        std::mem::replace(standing, held) != held
    });
}

/// Time since the host booted, suspends included.
pub(crate) fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
