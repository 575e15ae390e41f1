//! `virtbus.pools.deregister`: refused while anything is left.

use super::{Failed, jobs, places, things};
use crate::{consumers::state, registrar::Lying, service::Stores};
use virtbus_bus::{BusError, Row};
use virtbus_wire::{
    Class, Code, JobError, Label, Queue, Record,
    control::{Nothing, PoolName},
    record::Address,
};

/// What is left of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Left {
    disks: u64,
    media: u64,
    domains: u64,
    /// That aren't over.
    jobs: u64,
}

/// Forgets a pool that has nothing any more, and removes its consumers.
pub(super) async fn deregister(stores: &Stores, asked: PoolName) -> Result<Nothing, Failed> {
    let pool = asked.pool;
    let slot = stores.catalogue.pools.slot(pool.as_str()).await?;
    let Some(record) = slot.value else {
        return Err(places::not_found(&pool).into());
    };
    refuse(&pool, left(stores, &pool).await?)?;
    let pools = &stores.catalogue.pools;
    pools.remove(pool.as_str(), slot.revision).await?;
    // What is published from here on ends with `queue.unknown`, whether they are there or not.
    if let Err(error) = remove_consumers(stores, &pool).await {
        tracing::warn!(%pool, %error, "consumers of a deregistered pool are left");
    }
    // Somebody may have been taken up between the count and now.
    if let Err(refused) = refuse(&pool, left(stores, &pool).await?) {
        places::register(stores, record).await?;
        return Err(refused.into());
    }
    tracing::info!(%pool, "pool deregistered");
    Ok(Nothing {})
}

/// Counts what is left in the order in which one thing becomes another: a message a record, a
/// record a disk. The other way round a disk could come after its count, and its job end before
/// its own.
async fn left(stores: &Stores, pool: &Label) -> Result<Left, BusError> {
    let catalogue = &stores.catalogue;
    let goes_there = |lying: &Lying<'_>| lying.queue().is_some_and(|queue| is_of(queue, pool));
    jobs::register(stores, goes_there).await?;
    let jobs = open_jobs(stores, pool).await?;
    Ok(Left {
        jobs,
        disks: things::count(&catalogue.disks, pool).await?,
        media: things::count(&catalogue.media, pool).await?,
        domains: things::count(&catalogue.domains, pool).await?,
    })
}

fn refuse(pool: &Label, left: Left) -> Result<(), JobError> {
    if left == Left::default() {
        return Ok(());
    }
    let error = JobError::new(Code::Conflict, format!("the pool {pool} isn't empty"));
    Err(error
        .with("pool", pool.as_str())
        .with("disks", left.disks)
        .with("media", left.media)
        .with("domains", left.domains)
        .with("jobs", left.jobs))
}

/// Whether a queue is a pool's, alone or with another.
fn is_of(queue: &Queue, pool: &Label) -> bool {
    match queue {
        Queue::Storage(place, _) => place.pools().contains(&pool),
        Queue::Hypervisor(name, _) => name == pool,
        Queue::Core => false,
    }
}

async fn open_jobs(stores: &Stores, pool: &Label) -> Result<u64, BusError> {
    let mut count = 0;
    let each = |row: Row<Record>| {
        let entry = row.entry.ok().flatten();
        let is_open = entry.is_some_and(|entry| {
            let queue = entry.value.queue.queue();
            !entry.value.state.name().is_final() && queue.is_some_and(|queue| is_of(queue, pool))
        });
        count += u64::from(is_open);
    };
    stores.jobs.bucket().each_from(1, each).await?;
    Ok(count)
}

async fn remove_consumers(stores: &Stores, pool: &Label) -> Result<(), BusError> {
    for class in [Class::Storage, Class::Hypervisor] {
        for consumer in state::all(stores, class.stream()).await? {
            let address = consumer.config.filter_subject.map(Address::from);
            let queue = address.as_ref().and_then(Address::queue);
            if queue.is_some_and(|queue| is_of(queue, pool)) {
                state::delete(stores, class.stream(), &consumer.name).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_that_is_left_keeps_a_pool() {
        let pool = "p".parse().unwrap();
        let none = Left::default();
        refuse(&pool, none).unwrap();
        for left in [
            Left { disks: 1, ..none },
            Left { media: 1, ..none },
            Left { domains: 1, ..none },
            Left { jobs: 1, ..none },
        ] {
            let refused = refuse(&pool, left).unwrap_err();
            assert_eq!(refused.code, Code::Conflict);
            assert_eq!(refused.detail["jobs"], left.jobs);
        }
    }

    #[test]
    fn a_queue_of_two_pools_is_of_both() {
        let pool = "a".parse().unwrap();
        for (queue, expected) in [
            ("storage.a.low", true),
            ("storage.a_b.low", true),
            ("storage.b.low", false),
            ("hypervisor.a.high", true),
            ("hypervisor.a-1.high", false),
            ("core", false),
        ] {
            assert_eq!(is_of(&queue.parse().unwrap(), &pool), expected, "{queue}");
        }
    }
}
