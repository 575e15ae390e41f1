//! Workers whose lease ran out stay visible for a day, in the bucket `workers_lost`.

use crate::service::Stores;
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, WriteError};
use virtbus_daemon::Beat;
use virtbus_wire::catalog::WorkerRecord;

/// How often the leases are looked at; each lasts several times as long.
const LOOK: Duration = Duration::from_secs(2);

/// Watches the leases until `stop`.
pub async fn run(stores: Stores, stop: CancellationToken) {
    let mut beat = Beat::every(LOOK, stop);
    let mut seen = BTreeMap::new();
    while beat.next().await {
        if let Err(error) = look(&stores, &mut seen).await {
            tracing::warn!(%error, "the leases of workers can't be read");
        }
    }
}

async fn look(stores: &Stores, seen: &mut BTreeMap<String, WorkerRecord>) -> Result<(), BusError> {
    let workers = stores.catalogue.workers.all().await?;
    let now: BTreeMap<String, WorkerRecord> = workers
        .into_iter()
        .map(|(key, entry)| (key, entry.value))
        .collect();
    let gone: Vec<_> = seen
        .iter()
        .filter(|(key, _)| !now.contains_key(*key))
        .collect();
    for (key, record) in gone {
        tracing::warn!(worker = key, "the lease of a worker is out");
        stores.catalogue.lost.put(key, record).await?;
    }
    for key in now.keys().filter(|key| !seen.contains_key(*key)) {
        forget(stores, key).await?;
    }
    *seen = now;
    Ok(())
}

/// A worker that is there again isn't lost.
async fn forget(stores: &Stores, key: &str) -> Result<(), BusError> {
    let slot = stores.catalogue.lost.slot(key).await?;
    if slot.value.is_none() {
        return Ok(());
    }
    match stores.catalogue.lost.remove(key, slot.revision).await {
        Ok(()) | Err(WriteError::Conflict(_)) => Ok(()),
        Err(WriteError::Bus(error)) => Err(error),
    }
}
