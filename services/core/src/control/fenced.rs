//! The jobs on a fenced host's own queues: they end, or go elsewhere, and what they left of intents
//! is nobody's.
//!
//! Once when it's fenced, and then as long as it is: what is published there later, or was on its
//! way, would lie for good.

use super::change::publish_if_new;
use crate::{catalogue, domains, service::Stores};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use virtbus_bus::{BusError, Entry, Row, WriteError, jobs::ChangeError, lease::Leases};
use virtbus_wire::{
    DiskId, DomainId, JobId, JobState, Label, Queue, Record,
    catalog::{Desired, DiskRecord, DiskState, DomainRecord, HypervisorRecord, HypervisorState},
    protocol::fence::fenced,
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 8;

/// How long whoever fences a host is left alone with its jobs: they may be told to go elsewhere.
const FENCING: Duration = Duration::from_secs(10);

/// Up to which revision the jobs of each fenced host were read.
pub(crate) type Watched = BTreeMap<Label, u64>;

/// Settles what came to the queues of fenced hosts since the last time.
///
/// # Errors
/// When the server doesn't answer.
pub(crate) async fn watch(stores: &Stores, watched: &mut Watched) -> Result<(), WriteError> {
    let hosts = stores.catalogue.hypervisors.all().await?.into_iter();
    let hosts = hosts.filter_map(|(name, entry)| Some((name.parse().ok()?, entry.value)));
    let now = stores.bus.now();
    let fenced = |host: &HypervisorRecord| {
        host.state == HypervisorState::Fenced && now.since(host.updated_at) >= FENCING
    };
    let hosts: BTreeMap<Label, _> = hosts.filter(|(_, host)| fenced(host)).collect();
    watched.retain(|name, _| hosts.contains_key(name));
    for (name, host) in hosts {
        let from = watched.get(&name).copied().unwrap_or(1);
        let (_, next) = settle(stores, (&name, &host), false, from).await?;
        watched.insert(name, next);
    }
    Ok(())
}

/// Ends the jobs on a host's own queues, or moves them, from a revision of the jobs on. Says which
/// domains are being started elsewhere by that, and up to which revision it came.
pub(super) async fn settle(
    stores: &Stores,
    (name, host): (&Label, &HypervisorRecord),
    restart: bool,
    from: u64,
) -> Result<(BTreeSet<DomainId>, u64), WriteError> {
    let (mut jobs, mut moved) = (Vec::new(), BTreeSet::new());
    let each = |row: Row<Record>| {
        let open = row.entry.ok().flatten();
        jobs.extend(open.filter(|entry| is_on(&entry.value, name)));
    };
    let next = stores.jobs.bucket().each_from(from, each).await?;
    let is_any = !jobs.is_empty();
    for job in jobs {
        let id = job.value.id;
        let Some(after) = settle_job(stores, &id, name, &host.pool, restart).await? else {
            continue;
        };
        let domain = after.params.get("domain").and_then(|id| id.as_str());
        let Some(domain) = domain.and_then(|id| id.parse::<DomainId>().ok()) else {
            continue;
        };
        match after.state {
            // That it should be off outlives the job.
            JobState::Succeeded(..) => {
                domains::change(stores, &domain, name, should_be_off).await?;
            }
            JobState::Queued => {
                moved.insert(domain);
            }
            JobState::Failed(..) | JobState::Cancelled(..) => {}
            JobState::Waiting(_) | JobState::Running(_) | JobState::Cancelling(_) => {}
        }
    }
    if is_any || from == 1 {
        give_up_intents(stores, name).await?;
    }
    Ok((moved, next))
}

fn should_be_off(domain: &DomainRecord) -> Option<DomainRecord> {
    (domain.desired != Desired::Shutoff).then(|| DomainRecord {
        desired: Desired::Shutoff,
        ..domain.clone()
    })
}

/// Whether a job that isn't over is on a queue of this host alone.
fn is_on(job: &Record, host: &Label) -> bool {
    is_its(job, host) && !job.state.name().is_final()
}

fn is_its(job: &Record, host: &Label) -> bool {
    matches!(job.queue.queue(), Some(Queue::Hypervisor(name, _)) if name == host)
}

async fn settle_job(
    stores: &Stores,
    id: &JobId,
    host: &Label,
    pool: &Label,
    restart: bool,
) -> Result<Option<Record>, WriteError> {
    for _ in 0..TRIES_MAX {
        let Some(entry) = stores.jobs.get_latest(id).await? else {
            return Ok(None);
        };
        if !is_on(&entry.value, host) || has_owner(stores, &entry).await? {
            return Ok(None);
        }
        let Some(event) = fenced(&entry.value, host, pool, restart) else {
            return Ok(None);
        };
        match stores.jobs.change(&entry, event).await {
            Ok(after) => {
                publish_if_new(stores, &entry.value, &after.value).await;
                return Ok(Some(after.value));
            }
            Err(ChangeError::Illegal(_) | ChangeError::Write(WriteError::Conflict(_))) => {}
            Err(ChangeError::Write(error)) => return Err(error),
        }
    }
    Err(WriteError::Conflict(id.to_string()))
}

async fn has_owner(stores: &Stores, entry: &Entry<Record>) -> Result<bool, BusError> {
    match entry.value.state.hold() {
        Some(hold) => Leases::new(&stores.bus).is_alive(&hold.owner).await,
        None => Ok(false),
    }
}

/// What a job on the host had begun with a disk nobody can say: the guest may have gone on with
/// its new file or not, and nothing but the host knew. So such a disk is broken, and the one below
/// a new one is frozen: no guest starts from bytes that may be old, until a person decides.
async fn give_up_intents(stores: &Stores, host: &Label) -> Result<(), WriteError> {
    let mut begun = Vec::new();
    let each = |row: Row<DiskRecord>| {
        if let Ok(Some(entry)) = row.entry
            && is_begun(&entry.value)
            && let Ok(id) = row.key.parse::<DiskId>()
        {
            begun.push((id, entry.value));
        }
    };
    stores.catalogue.disks.each_from(1, each).await?;
    for (id, disk) in begun {
        let Some(job) = &disk.owner_job else { continue };
        let Some(owner) = stores.jobs.get_latest(job).await? else {
            continue;
        };
        if !is_its(&owner.value, host) || !owner.value.state.name().is_final() {
            continue;
        }
        if let Some(below) = disk.backing.filter(|_| disk.state == DiskState::Creating) {
            let freeze = |below: &DiskRecord| {
                let mut next = below.clone();
                next.children.push(id.clone());
                (!below.children.contains(&id)).then_some(next)
            };
            change_disk(stores, &below, freeze).await?;
        }
        let give_up = |disk: &DiskRecord| {
            let is_still = is_begun(disk) && disk.owner_job.as_ref() == Some(job);
            is_still.then(|| DiskRecord {
                state: DiskState::Broken,
                ..disk.clone()
            })
        };
        change_disk(stores, &id, give_up).await?;
        tracing::warn!(disk = %id, %job, hypervisor = %host, "nobody knows what became of it");
    }
    Ok(())
}

fn is_begun(disk: &DiskRecord) -> bool {
    matches!(disk.state, DiskState::Creating | DiskState::Changing)
}

async fn change_disk(
    stores: &Stores,
    id: &DiskId,
    step: impl Fn(&DiskRecord) -> Option<DiskRecord>,
) -> Result<(), WriteError> {
    let step = |disk: &DiskRecord| {
        let updated_at = stores.bus.now();
        let next = step(disk)?;
        Some(DiskRecord { updated_at, ..next })
    };
    catalogue::change(&stores.catalogue.disks, id.as_str(), step).await
}
