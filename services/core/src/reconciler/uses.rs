//! Jobs that wait until nobody uses a disk or a medium: a domain, or a download.

use super::index::Index;
use crate::service::Stores;
use std::collections::BTreeMap;
use virtbus_bus::{BusError, browse::PAGE_MAX};
use virtbus_wire::{JobId, catalog::InUseBy, protocol::reconcile::is_in_use};

/// The two kinds of locks whose resource can be in use.
const DISK: &str = "disk.";
const MEDIA: &str = "media.";

/// The jobs to look at, since whoever they wait for is gone. A hint: each is read anew.
pub(super) async fn over(stores: &Stores, index: &Index) -> Result<Vec<JobId>, BusError> {
    let wanted: Vec<&str> = index.uses().map(|(resource, _)| resource).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let keys = |kind: &str| -> Vec<&str> {
        let of_kind = wanted.iter().filter_map(|name| name.strip_prefix(kind));
        of_kind.collect()
    };
    let mut used: BTreeMap<String, Vec<InUseBy>> = BTreeMap::new();
    for page in keys(DISK).chunks(PAGE_MAX) {
        for row in stores.catalogue.disks.of_keys(page).await? {
            let record = row.entry?.map(|entry| entry.value.in_use_by);
            used.insert(format!("{DISK}{}", row.key), record.unwrap_or_default());
        }
    }
    for page in keys(MEDIA).chunks(PAGE_MAX) {
        for row in stores.catalogue.media.of_keys(page).await? {
            let record = row.entry?.map(|entry| entry.value.in_use_by);
            used.insert(format!("{MEDIA}{}", row.key), record.unwrap_or_default());
        }
    }
    let now = stores.bus.now();
    let mut due = Vec::new();
    for (resource, jobs) in index.uses() {
        let users = used.get(resource).map(Vec::as_slice).unwrap_or_default();
        let waits_no_more = |user: &str| !is_in_use(users, user, now);
        let free = jobs.into_iter().filter(|(_, user)| waits_no_more(user));
        due.extend(free.map(|(job, _)| job.clone()));
    }
    Ok(due)
}

/// Whether this user still has what a lock stands for, by the leader's word.
pub(crate) async fn is_used(stores: &Stores, resource: &str, user: &str) -> Result<bool, BusError> {
    let users = if let Some(id) = resource.strip_prefix(DISK) {
        let disk = stores.catalogue.disks.get_latest(id).await?;
        disk.map(|disk| disk.value.in_use_by)
    } else if let Some(id) = resource.strip_prefix(MEDIA) {
        let media = stores.catalogue.media.get_latest(id).await?;
        media.map(|media| media.value.in_use_by)
    } else {
        None
    };
    let users = users.unwrap_or_default();
    Ok(is_in_use(&users, user, stores.bus.now()))
}
