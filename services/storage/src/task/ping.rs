//! `ping`: shows that the worker and its pools work, and how fast.

use crate::{
    blocking,
    pool::{Name, Pool, PoolError},
    store::Store,
};
use virtbus_wire::{Code, DiskId, JobError, task::storage as params};
use virtbus_worker::{Assignment, Done, Stop, StopSignal, pong};

/// The names a ping's file has, one after the other, in place of a disk's id.
const FILES: [&str; 2] = ["ping", "pong"];

pub(crate) struct Ping<'a> {
    pub(crate) store: &'a Store,
    pub(crate) job: &'a Assignment,
    pub(crate) params: &'a params::Ping,
}

impl Ping<'_> {
    /// Makes, renames and removes a file in each pool of the queue. There is no effect that stays,
    /// so there's no intent and no fence.
    pub(crate) async fn run(&self, stop: &StopSignal) -> Result<Done, Stop> {
        let mut checks = Vec::new();
        for pool in self.pools()? {
            self.look_at(pool).await?;
            checks.push(format!("pool {}", pool.name));
        }
        pong(self.params, self.job, stop, checks).await
    }

    /// Removes the files of older claims.
    pub(crate) async fn clean(&self) -> Result<(), Stop> {
        for pool in self.pools()? {
            let (pool, older) = (pool.clone(), 1..self.job.claim);
            let names: Vec<Name> = older.flat_map(|claim| self.files(claim)).collect();
            if names.is_empty() {
                continue;
            }
            let cleaned: Result<(), PoolError> = blocking::act(move || {
                let root = pool.reach()?;
                names
                    .iter()
                    .try_for_each(|name| root.unlink(name).map(|_| ()))
            })
            .await;
            cleaned?;
        }
        Ok(())
    }

    /// The files have this job's names, also where the look serves other pings too.
    async fn look_at(&self, pool: &Pool) -> Result<(), Stop> {
        let (looks, pool, names) = (&pool.looks, pool.clone(), self.files(self.job.claim));
        let look = blocking::look(move || {
            let root = pool.reach()?;
            if let [from, to] = &names[..] {
                drop(root.open_or_make(from)?);
                root.rename_unsynced(from, to)?;
                root.unlink(to)?;
            }
            Ok::<(), PoolError>(())
        });
        Ok(looks.share(look).await?)
    }

    fn files(&self, claim: u64) -> Vec<Name> {
        let ids = FILES.iter().filter_map(|id| id.parse::<DiskId>().ok());
        ids.map(|id| Name::part(&self.job.id, claim, &id)).collect()
    }

    fn pools(&self) -> Result<Vec<&Pool>, JobError> {
        let missing = || JobError::new(Code::PoolNotFound, "this service doesn't have the pool");
        let place = match self.job.record.queue.queue() {
            Some(virtbus_wire::Queue::Storage(place, _)) => place,
            Some(virtbus_wire::Queue::Hypervisor(..) | virtbus_wire::Queue::Core) | None => {
                return Err(missing());
            }
        };
        let pools = place.pools().into_iter();
        pools
            .map(|name| self.store.pools().get(name).ok_or_else(missing))
            .collect()
    }
}
