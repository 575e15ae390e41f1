//! Emptying the trash of what was in it for the pool's time.

use super::{CareError, sides};
use crate::{
    blocking, catalog,
    catalog::Held,
    disks::{Kept, Shelf},
    fence::Quiet,
    pool::{Name, Pool, PoolError, Root},
    store::Store,
    trash,
};
use std::collections::BTreeSet;
use virtbus_wire::{
    Timestamp,
    catalog::{DiskRecord, DiskState, UseMode},
    task::Target,
};

impl Store {
    /// Makes tombstones of what is in the trash for longer than the pool says, then removes the
    /// files: who dies in between leaves a file that the next one finds to be over. A disk goes
    /// after those on top of it.
    pub(super) async fn expire(&self, pool: &Pool, root: &Root) -> Result<(), CareError> {
        let Some(settings) = self.pool_record(pool).await? else {
            return Ok(());
        };
        let (keep, now) = (settings.trash_keep.duration(), Timestamp::now());
        let roots: Vec<Root> = sides(pool, root)
            .await
            .into_iter()
            .map(|(_, root)| root)
            .collect();
        let records = self.records(pool).await?;
        self.forget_the_dead(&records.disks).await?;
        let mut disks = records.disks;
        disks.retain(|disk| is_over(disk, keep, now));
        while let Some(at) = disks.iter().position(|disk| !has_child_in(disk, &disks)) {
            let disk = disks.swap_remove(at);
            self.expire_disk(&roots, &disk).await?;
        }
        for medium in records.media {
            if is_over(&medium, keep, now) {
                expire_one(&self.media, &roots, &medium).await?;
            }
        }
        Ok(())
    }

    /// Takes tombstones off what they were on top of, and what has no record: a disk has its
    /// record before it's on top of another, unless that was written when both were taken back.
    async fn forget_the_dead(&self, disks: &[Kept<DiskRecord>]) -> Result<(), CareError> {
        let dead = disks
            .iter()
            .filter(|disk| disk.record.state == DiskState::Deleted);
        let dead: BTreeSet<_> = dead.map(|disk| &disk.id).collect();
        let known: BTreeSet<_> = disks.iter().map(|disk| &disk.id).collect();
        for disk in disks {
            for child in &disk.record.children {
                // In another pool, or newer than what was listed.
                let is_elsewhere = !known.contains(child) && self.disks.get(child).await?.is_some();
                if dead.contains(child) || !known.contains(child) && !is_elsewhere {
                    self.disks.drop_child(&disk.id, child).await?;
                }
            }
        }
        Ok(())
    }

    async fn expire_disk(&self, roots: &[Root], disk: &Kept<DiskRecord>) -> Result<(), CareError> {
        let Some(newest) = self.disks.get(&disk.id).await? else {
            return Ok(());
        };
        // Only those in the trash for as long went with it.
        if !newest.record.children.is_empty() || newest.record.state != DiskState::Trashed {
            return Ok(());
        }
        // Should this one die in between, the next one finds a child that is dead.
        if expire_one(&self.disks, roots, &newest).await?
            && let Some(backing) = &newest.record.backing
        {
            self.disks.drop_child(backing, &disk.id).await?;
        }
        Ok(())
    }
}

/// Whether something is in the trash for longer than it's kept.
fn is_over<R: Held>(kept: &Kept<R>, keep: std::time::Duration, now: Timestamp) -> bool {
    kept.record.head().state == DiskState::Trashed && now.since(kept.record.written()) > keep
}

fn has_child_in(disk: &Kept<DiskRecord>, others: &[Kept<DiskRecord>]) -> bool {
    let children = &disk.record.children;
    others.iter().any(|other| children.contains(&other.id))
}

/// Removes one thing, unless a job has begun with it or another program has it open: then it's
/// there for the next time. Whether it's gone.
async fn expire_one<R: Held>(
    shelf: &Shelf<R>,
    roots: &[Root],
    kept: &Kept<R>,
) -> Result<bool, CareError> {
    let of = R::target(&kept.id);
    let Some(root) = roots.first() else {
        return Ok(false);
    };
    // Against a restore, which holds it from before it writes.
    let Some(fence) = Quiet::take(root, Name::lock(&of)).await? else {
        return Ok(false);
    };
    if is_open(roots, &of).await? {
        tracing::warn!(%of, "its time in the trash is over, and another program has it open");
        return Ok(false);
    }
    let freed = allocated(roots, &of).await?;
    let record = catalog::deleted(&kept.record, freed, Timestamp::now());
    match shelf.update(kept, record).await {
        Ok(_) => {}
        Err(crate::disks::CatalogError::Conflict(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    tracing::info!(%of, freed, "its time in the trash is over");
    let (all, what) = (roots.to_vec(), of.clone());
    let removed: Result<(), PoolError> =
        blocking::act(move || all.iter().try_for_each(|root| trash::empty(root, &what))).await;
    removed?;
    fence.retire();
    Ok(true)
}

/// Whether another program has a file of it open in the trash.
async fn is_open(roots: &[Root], of: &Target) -> Result<bool, PoolError> {
    let (roots, of) = (roots.to_vec(), of.clone());
    blocking::look(move || {
        for root in &roots {
            for name in trash::in_trash(root, &of)? {
                match root.idle(&name, UseMode::Exclusive) {
                    Ok(()) => {}
                    Err(PoolError::InUse { .. }) => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(false)
    })
    .await
}

async fn allocated(roots: &[Root], of: &Target) -> Result<u64, PoolError> {
    let (roots, of) = (roots.to_vec(), of.clone());
    blocking::look(move || {
        let mut sum = 0;
        for root in &roots {
            for name in trash::in_trash(root, &of)? {
                sum += root.facts(&name)?.map_or(0, |facts| facts.allocated);
            }
        }
        Ok(sum)
    })
    .await
}
