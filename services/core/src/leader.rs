//! Which of several cores does what one must do: a lease under the key `_core` of the bucket
//! `workers`.
//!
//! Two leaders at once would only cost work, since everything they do is a compare-and-set. So
//! the lease is short: a dead leader is followed within a few seconds.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bucket, Bus, WriteError};
use virtbus_wire::{BootId, WorkerId, state::Owner};

/// No worker's id begins like that.
const KEY: &str = "_core";
/// How long the lease lasts.
const LEASE: Duration = Duration::from_secs(4);
/// How often it's renewed, or tried for.
const BEAT: Duration = Duration::from_secs(1);
/// After how long without a confirmed beat the leader steps down.
const TRUST: Duration = Duration::from_millis(2_600);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Leader {
    worker: WorkerId,
    boot: BootId,
}

/// Tries to lead until `stop`, and says in `leads` whether this process does.
pub async fn run(bus: Bus, owner: Owner, leads: watch::Sender<bool>, stop: CancellationToken) {
    let lease: Bucket<Leader> = Bucket::new(&bus, virtbus_bus::lease::BUCKET);
    let Owner { worker, boot } = owner;
    let us = Leader { worker, boot };
    let mut held: Option<u64> = None;
    let mut confirmed = bus.boot_time();
    let mut beat = time::interval(BEAT);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = beat.tick() => {}
        }
        let sent = bus.boot_time();
        match time::timeout(BEAT, renew(&lease, &us, held)).await {
            Ok(Ok(revision)) => {
                held = revision;
                confirmed = sent;
            }
            Ok(Err(error)) => tracing::warn!(%error, "the leader's lease was not confirmed"),
            Err(_) => tracing::warn!("the leader's lease was not confirmed in time"),
        }
        let is_ours = held.is_some() && bus.boot_time().saturating_sub(confirmed) < TRUST;
        leads.send_if_modified(|before| {
            let changed = *before != is_ours;
            if changed {
                tracing::info!(leads = is_ours, "election");
            }
            std::mem::replace(before, is_ours) != is_ours
        });
    }
    leads.send_replace(false);
    if let Some(revision) = held {
        // The next leader needn't wait for the end of the lease. If this fails it does.
        let removed = time::timeout(BEAT, lease.remove(KEY, revision)).await;
        tracing::debug!(ok = matches!(removed, Ok(Ok(()))), "lease given back");
    }
}

/// The lease's revision if it's ours now.
async fn renew(
    lease: &Bucket<Leader>,
    us: &Leader,
    held: Option<u64>,
) -> Result<Option<u64>, WriteError> {
    if let Some(revision) = held {
        match lease.update_for(KEY, us, revision, LEASE).await {
            Ok(revision) => return Ok(Some(revision)),
            // It ran out, or a beat without answer was written after all.
            Err(WriteError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let slot = lease.slot(KEY).await?;
    if slot.value.is_some_and(|other| other != *us) {
        return Ok(None);
    }
    match lease.update_for(KEY, us, slot.revision, LEASE).await {
        Ok(revision) => Ok(Some(revision)),
        Err(WriteError::Conflict(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
