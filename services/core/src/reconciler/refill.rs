//! Filling up the list of a lock, which names only the first of those who wait.

use super::{
    index::Index,
    look::{self, Known},
};
use crate::service::Stores;
use virtbus_bus::{Bucket, BusError, WriteError, locks};
use virtbus_wire::protocol::lock::Lock;

/// Fills up the list of a lock from those beyond it, and wakes whose turn it is.
pub(super) async fn refill(stores: &Stores, index: &mut Index, name: &str) -> Result<(), BusError> {
    let records: Bucket<Lock> = Bucket::new(&stores.bus, locks::BUCKET);
    let slot = records.slot(name).await?;
    let lock = slot.value.unwrap_or_default();
    let Some(beyond) = lock.beyond else {
        index.lines.all_named(name);
        return Ok(());
    };
    let refilled = lock.refilled(&index.lines.from(name, beyond));
    if refilled == lock || !write(&records, name, &refilled, slot.revision).await? {
        return Ok(());
    }
    let limit = stores.locks.limits().of_lock(name).await?;
    for job in refilled.next_in_line(limit) {
        look::look(stores, &job, Known::default()).await?;
    }
    Ok(())
}

/// Whether the lock was written; not if somebody else changed it.
async fn write(
    records: &Bucket<Lock>,
    name: &str,
    lock: &Lock,
    revision: u64,
) -> Result<bool, BusError> {
    let written = if lock.is_unused() {
        records.remove(name, revision).await
    } else {
        records.update(name, lock, revision).await.map(|_| ())
    };
    match written {
        Ok(()) => Ok(true),
        Err(WriteError::Conflict(_)) => Ok(false),
        Err(WriteError::Bus(error)) => Err(error),
    }
}
