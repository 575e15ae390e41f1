//! Leases: a worker is alive while its key in the bucket `workers` is there and names its boot.
//!
//! The bucket forgets a key that wasn't written for [`LEASE`]; the server's clock decides. The
//! holder measures with a clock that runs through suspends, from before each beat was sent, and
//! stops trusting itself after two thirds: its tools are dead before anybody takes over.

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

    /// Takes the lease for a process that just started. `replace` says that no other process of
    /// this worker can be alive (it holds the host's lock file), so an older boot's lease goes.
    ///
    /// # Errors
    /// `Taken` while another boot's lease lasts.
    pub async fn take(&self, worker: &WorkerRecord, replace: bool) -> Result<u64, LeaseError> {
        let key = worker.worker.as_str();
        let slot = self.records.slot(key).await?;
        let free = slot
            .value
            .is_none_or(|other| replace || other.boot == worker.boot);
        if !free {
            return Err(LeaseError::Taken(worker.worker.clone()));
        }
        match self.records.update(key, worker, slot.revision).await {
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

    /// Renews a lease until `stop`, with what `describe` says each time.
    pub async fn keep(
        &self,
        mut revision: u64,
        describe: impl Fn() -> WorkerRecord,
        trust: watch::Sender<Trust>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let bus = self.records.bus();
        let mut confirmed = bus.boot_time();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BEAT) => {}
            }
            let sent = bus.boot_time();
            // After a suspend the lease may be out before this beat says so.
            judge(&trust, bus.boot_time().saturating_sub(confirmed));
            let worker = describe();
            let beat = self.beat(&worker, revision);
            match tokio::time::timeout(BEAT, beat).await {
                Ok(Ok(next)) => {
                    revision = next;
                    confirmed = sent;
                }
                Ok(Err(LeaseError::Taken(worker))) => {
                    tracing::error!(%worker, "another process took this worker's lease");
                    trust.send_replace(Trust::Taken);
                    return;
                }
                Ok(Err(LeaseError::Bus(error))) => {
                    tracing::warn!(%error, "heartbeat not confirmed")
                }
                Err(_) => tracing::warn!("heartbeat not confirmed in time"),
            }
            judge(&trust, bus.boot_time().saturating_sub(confirmed));
        }
    }

    /// One beat. A lease that ran out meanwhile is taken anew if nobody else has it.
    async fn beat(&self, worker: &WorkerRecord, revision: u64) -> Result<u64, LeaseError> {
        match self
            .records
            .update(worker.worker.as_str(), worker, revision)
            .await
        {
            Ok(revision) => Ok(revision),
            Err(WriteError::Conflict(_)) => self.take(worker, false).await,
            Err(WriteError::Bus(error)) => Err(error.into()),
        }
    }
}

/// Says whether a lease that was confirmed so long ago can still be trusted.
fn judge(trust: &watch::Sender<Trust>, age: Duration) {
    let held = age < TRUST;
    let now = if held { Trust::Held } else { Trust::Doubtful };
    trust.send_if_modified(|before| std::mem::replace(before, now) != now);
}

/// Time since the host booted, suspends included.
pub(crate) fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
