//! `virtbus.pools.register`, `get`, `list`.

use super::Failed;
use crate::{consumers, service::Stores};
use virtbus_bus::{BusError, topology};
use virtbus_wire::{
    Code, JobError, Label,
    catalog::PoolRecord,
    control::{PoolList, PoolName},
};

/// How often a registration that others come between is tried.
const TRIES_MAX: u32 = 8;

/// Registers a pool, or changes it. When this answers, its consumers are there.
pub(super) async fn register(stores: &Stores, pool: PoolRecord) -> Result<PoolRecord, Failed> {
    let name = pool.pool.as_str();
    if stores
        .catalogue
        .hypervisors
        .get_latest(name)
        .await?
        .is_some()
    {
        let message = format!("{name} is the name of a hypervisor");
        return Err(JobError::new(Code::Conflict, message).into());
    }
    let queues = topology::queues_of_pool(&pool.pool);
    consumers::ensure(stores, &queues).await.map_err(|error| {
        tracing::error!(%error, pool = name, "the consumers of a pool can't be made");
        JobError::internal("the consumers of the pool can't be made")
    })?;
    for _ in 0..TRIES_MAX {
        let slot = stores.catalogue.pools.slot(name).await?;
        if slot.value.as_ref() == Some(&pool) {
            return Ok(pool);
        }
        match stores
            .catalogue
            .pools
            .update(name, &pool, slot.revision)
            .await
        {
            Ok(_) => {
                tracing::info!(pool = name, known = slot.value.is_some(), "pool registered");
                return Ok(pool);
            }
            Err(virtbus_bus::WriteError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(virtbus_bus::WriteError::Conflict(name.to_owned()).into())
}

pub(super) async fn get(stores: &Stores, asked: PoolName) -> Result<PoolRecord, Failed> {
    let found = stores
        .catalogue
        .pools
        .get_latest(asked.pool.as_str())
        .await?;
    found
        .map(|entry| entry.value)
        .ok_or_else(|| not_found(&asked.pool).into())
}

/// That no pool has this name.
pub(super) fn not_found(pool: &Label) -> JobError {
    let missing = JobError::new(Code::PoolNotFound, format!("no pool is named {pool}"));
    missing.with("pool", pool.as_str())
}

pub(super) async fn list(stores: &Stores) -> Result<PoolList, BusError> {
    let mut pools: Vec<PoolRecord> = values(stores.catalogue.pools.all().await?);
    pools.sort_by(|one, other| one.pool.cmp(&other.pool));
    Ok(PoolList { pools })
}

pub(super) fn values<T>(records: Vec<(String, virtbus_bus::Entry<T>)>) -> Vec<T> {
    records.into_iter().map(|(_, entry)| entry.value).collect()
}
