//! What a parked job waits for as it is now. Its record says how that was when it was parked:
//! nobody writes to thousands in line each time that a lock changes hands.

use crate::{reconciler, service::Stores};
use virtbus_bus::{Bucket, BusError, limits::tenant_lock_of, locks};
use virtbus_wire::{
    JobState, Record, Timestamp, envelope::IfInUse, protocol::lock::Lock, state::WaitReason,
};

/// Pages of records that are looked through for those in line whom the lock doesn't name.
const PAGES_MAX: usize = 64;

/// What a job waits for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waits {
    /// The reason, with who has the lock by now.
    pub(super) on: WaitReason,
    /// How many are before it in the lock's line, where that can be told.
    pub(super) ahead: Option<u64>,
}

/// What a job waits for whose record gives this reason.
pub(super) async fn now(stores: &Stores, job: &Record, on: &WaitReason) -> Result<Waits, BusError> {
    match on {
        WaitReason::Lock {
            resource, holder, ..
        } => {
            let lock = read(stores, resource).await?;
            let user = holder.as_deref().filter(|_| job.if_in_use == IfInUse::Wait);
            let used = match user {
                Some(user) => used(stores, resource, user).await?,
                None => None,
            };
            let (holder, since) = used.or_else(|| has(&lock, job)).unzip();
            let on = WaitReason::Lock {
                resource: resource.clone(),
                holder,
                since: since.flatten(),
            };
            let ahead = ahead(stores, job, resource, &lock).await?;
            Ok(Waits { on, ahead })
        }
        WaitReason::Tenant { limit, .. } => {
            let Some(name) = tenant_lock_of(job) else {
                return Ok(Waits::as_recorded(on));
            };
            let lock = read(stores, &name).await?;
            let on = WaitReason::Tenant {
                running: u32::try_from(lock.shared.len()).unwrap_or(u32::MAX),
                limit: stores
                    .locks
                    .limits()
                    .of_lock(&name)
                    .await?
                    .unwrap_or(*limit),
            };
            let ahead = ahead(stores, job, &name, &lock).await?;
            Ok(Waits { on, ahead })
        }
        WaitReason::Dependency { .. } | WaitReason::Time { .. } => Ok(Waits::as_recorded(on)),
        WaitReason::Capacity { .. } | WaitReason::Transfer { .. } => Ok(Waits::as_recorded(on)),
    }
}

impl Waits {
    fn as_recorded(on: &WaitReason) -> Self {
        Self {
            on: on.clone(),
            ahead: None,
        }
    }
}

async fn read(stores: &Stores, name: &str) -> Result<Lock, BusError> {
    let records: Bucket<Lock> = Bucket::new(&stores.bus, locks::BUCKET);
    let found = records.get_latest(name).await?;
    Ok(found.map(|entry| entry.value).unwrap_or_default())
}

/// Who keeps a job from a lock: whoever has it, else the first in its line.
fn has(lock: &Lock, job: &Record) -> Option<(String, Option<Timestamp>)> {
    let mut holders = lock.exclusive.iter().chain(&lock.shared);
    if let Some(holder) = holders.find(|holder| holder.job != job.id) {
        return Some((format!("job.{}", holder.job), holder.since));
    }
    let first = lock.waiters.first().filter(|first| first.job != job.id)?;
    Some((format!("job.{}", first.job), None))
}

/// The domain or the download that a job waits for, and since when that uses the resource; none
/// when it doesn't any more.
async fn used(
    stores: &Stores,
    resource: &str,
    user: &str,
) -> Result<Option<(String, Option<Timestamp>)>, BusError> {
    if !reconciler::is_used(stores, resource, user).await? {
        return Ok(None);
    }
    let since = if let Some(domain) = user.strip_prefix("domain.") {
        let found = stores.catalogue.domains.get_latest(domain).await?;
        found.and_then(|entry| entry.value.last_started_at)
    } else if let Some(Ok(job)) = user.strip_prefix("job.").map(str::parse) {
        // A download pins its source as it ends.
        let found = stores.jobs.get_latest(&job).await?;
        found.and_then(|entry| Some(entry.value.state.ended()?.at))
    } else {
        None
    };
    Ok(Some((user.to_owned(), since)))
}

/// How many are before a job in a lock's line: those that the lock names, and, for one that it
/// doesn't name itself, those whose own records say that they wait for it.
async fn ahead(
    stores: &Stores,
    job: &Record,
    name: &str,
    lock: &Lock,
) -> Result<Option<u64>, BusError> {
    let ticket = job.ticket.unwrap_or(u64::MAX);
    let named = lock.waiters.iter().filter(|waiter| waiter.ticket < ticket);
    let mut count = named.count();
    if lock.is_beyond(&job.id, ticket) {
        let is_ahead = |other: &Record| {
            other.ticket.is_some_and(|other| other < ticket) && waits_for(other, name)
        };
        let is_named = |other: &Record| lock.waiters.iter().any(|waiter| waiter.job == other.id);
        let (mut from, mut pages) = (Some(1), 0);
        while let Some(revision) = from {
            if pages == PAGES_MAX {
                return Ok(None);
            }
            let page = stores.jobs.bucket().page(revision).await?;
            let others = page.items.into_iter().filter_map(|row| row.entry.ok()?);
            let others = others.filter(|other| is_ahead(&other.value) && !is_named(&other.value));
            count += others.count();
            (from, pages) = (page.next, pages + 1);
        }
    }
    Ok(Some(u64::try_from(count).unwrap_or(u64::MAX)))
}

/// Whether a job's record says that it waits for this lock.
fn waits_for(job: &Record, name: &str) -> bool {
    let JobState::Waiting(waiting) = &job.state else {
        return false;
    };
    match &waiting.on {
        WaitReason::Lock { resource, .. } => resource == name,
        WaitReason::Tenant { .. } => tenant_lock_of(job).as_deref() == Some(name),
        WaitReason::Dependency { .. } | WaitReason::Time { .. } => false,
        WaitReason::Capacity { .. } | WaitReason::Transfer { .. } => false,
    }
}
