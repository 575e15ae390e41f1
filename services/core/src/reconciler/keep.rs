//! What others come after stays until they have looked at it: a final record goes by itself, and a
//! job that finds none would wait for one that never comes.

use super::index::Index;
use crate::service::{Stores, per_job};
use virtbus_bus::{BusError, WriteError, browse::PAGE_MAX};
use virtbus_wire::JobId;

/// Writes those final records anew that an unfinished job comes after and that have lived for half
/// of their time.
pub(super) async fn renew(stores: &Stores, index: &Index) -> Result<(), BusError> {
    let needed: Vec<&str> = index.needed().into_iter().map(JobId::as_str).collect();
    for keys in needed.chunks(PAGE_MAX) {
        let now = stores.bus.now();
        for row in stores.jobs.bucket().of_keys(keys).await? {
            let Some(Some(entry)) = per_job(row.entry)? else {
                continue;
            };
            let is_old = |ttl| now.since(entry.written_at) * 2 >= ttl;
            if !row.ttl.is_some_and(is_old) || !entry.value.state.name().is_final() {
                continue;
            }
            match stores.jobs.write(&entry.value, entry.revision).await {
                Ok(_) => tracing::debug!(job = row.key, "kept, since others come after it"),
                // Somebody made it run again.
                Err(WriteError::Conflict(_)) => {}
                Err(WriteError::Bus(error)) => {
                    per_job(Err::<(), _>(error))?;
                }
            }
        }
    }
    Ok(())
}
