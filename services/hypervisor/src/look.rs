//! Before the claim: whose job it is, and whether this host has room for its domain.

use crate::{capacity::Room, domains::Domains, xml::has_state_on_host};
use std::time::Duration;
use virtbus_bus::BusError;
use virtbus_wire::{
    Code, DomainId, JobError, Label, Object, Queue, Record, Task,
    catalog::{DomainRecord, HypervisorState},
    state::WaitReason,
    task::{HypervisorTask, hypervisor::Definition},
};
use virtbus_worker::{Look, Stop};

/// How long a job is left to the other hosts of the pool.
const OTHERS: Duration = Duration::from_millis(500);
/// How often a job is offered to each of them before it waits for room.
const OFFERS_PER_HOST: u64 = 3;
/// How long it's handed back for when the catalogue or libvirt doesn't answer.
const UNSURE: Duration = Duration::from_secs(2);

/// What a job needs of a host.
enum Needs {
    /// The host where its domain is.
    TheDomain,
    /// Room for a domain that may run on any host.
    Room(Option<Room>),
}

/// Whether this host should claim a job.
pub(crate) async fn look(domains: &Domains, job: &Record, deliveries: u64) -> Look {
    let Some(domain) = domain_of(job) else {
        return Look::Claim;
    };
    let record = match domains.catalog.domains.get_latest(domain.as_str()).await {
        Ok(entry) => entry.map(|entry| entry.value),
        Err(error) => {
            tracing::warn!(job = %job.id, %error, "the domain's record can't be read");
            return Look::HandBack(UNSURE);
        }
    };
    let Some(Queue::Hypervisor(name, priority)) = job.queue.queue().cloned() else {
        return Look::Claim;
    };
    let here = &domains.settings.hypervisor;
    let needs = needs(domains, job, &domain, record.as_ref());
    if let Some(host) = bound_to(record.as_ref(), &needs)
        && host != here
    {
        let is_on = record.as_ref().is_some_and(|record| record.state.is_on());
        match state_of(domains, host).await {
            Ok(Some(HypervisorState::Fenced)) if is_on => {
                // Whoever fences it is at it.
                return Look::HandBack(UNSURE);
            }
            // What it knew is gone with it: any other host does what can be done without.
            Ok(Some(HypervisorState::Fenced)) => {}
            Ok(Some(HypervisorState::Up | HypervisorState::Draining) | None) => {
                return Look::Pass(Queue::Hypervisor(host.clone(), priority));
            }
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "the domain's host can't be read");
                return Look::HandBack(UNSURE);
            }
        }
    }
    // Bound by the claim: should this service die, no other host may take over what is about a
    // domain that it doesn't have.
    let claim = || {
        if name == *here {
            Look::Claim
        } else {
            Look::ClaimHere(Queue::Hypervisor(here.clone(), priority))
        }
    };
    let Needs::Room(room) = needs else {
        return if record.is_some() {
            claim()
        } else {
            Look::Claim
        };
    };
    let is_running_here = record.as_ref().is_some_and(|record| record.state.is_on());
    if !is_running_here
        && let Some(other) = no_room(domains, job, (&domain, room), deliveries, &name).await
    {
        return other;
    }
    claim()
}

fn domain_of(job: &Record) -> Option<DomainId> {
    let mut objects = job.objects.iter();
    objects.find_map(|object| match object.parse::<Object>() {
        Ok(Object::Domain(domain)) => Some(domain),
        Ok(Object::Disk(_) | Object::Media(_)) | Err(_) => None,
    })
}

fn needs(
    domains: &Domains,
    job: &Record,
    domain: &DomainId,
    record: Option<&DomainRecord>,
) -> Needs {
    let class = virtbus_wire::Class::Hypervisor;
    let Ok(Task::Hypervisor(task)) = Task::restore(class, &job.task, &job.params) else {
        return Needs::Room(None);
    };
    let definition = match &task {
        HypervisorTask::StartDomain(params) => params.definition(),
        HypervisorTask::CheckDomain(params) => params.definition(),
        HypervisorTask::Ping(_)
        | HypervisorTask::StopDomain(_)
        | HypervisorTask::ResumeDomain(_)
        | HypervisorTask::ResetDomain(_)
        | HypervisorTask::CreateSnapshot(_)
        | HypervisorTask::RevertSnapshot(_)
        | HypervisorTask::DeleteSnapshot(_)
        | HypervisorTask::Resize(_)
        | HypervisorTask::Commit(_)
        | HypervisorTask::DeleteDomain(_) => return Needs::TheDomain,
    };
    let last = record.and_then(|record| record.xml.as_deref());
    Needs::Room(room_of(domains, definition, last, domain))
}

/// The room that a domain takes; none of one that will be refused anyway.
fn room_of(
    domains: &Domains,
    definition: Definition<'_>,
    last: Option<&str>,
    domain: &DomainId,
) -> Option<Room> {
    let blueprint = domains.blueprint(definition, last, domain).ok()?;
    Some(Room::of(&blueprint))
}

/// The host that a job is for: where its domain runs, where its snapshots are or what its firmware
/// remembers, or where it was last for what can't be done anywhere else.
fn bound_to<'a>(record: Option<&'a DomainRecord>, needs: &Needs) -> Option<&'a Label> {
    let record = record?;
    let host = record.hypervisor.as_ref()?;
    let has_state = || record.xml.as_deref().is_some_and(has_state_on_host);
    let is_bound = match needs {
        Needs::TheDomain => true,
        Needs::Room(_) => record.state.is_on() || !record.snapshots.is_empty() || has_state(),
    };
    is_bound.then_some(host)
}

/// What is said of a host; none when nobody registered it.
async fn state_of(domains: &Domains, host: &Label) -> Result<Option<HypervisorState>, BusError> {
    let found = domains.catalog.hypervisors.get_latest(host.as_str());
    Ok(found.await?.map(|entry| entry.value.state))
}

/// That a job, claimed here because the host of its domain was fenced, needs nothing of that host.
///
/// # Errors
/// `hypervisor.unreachable`.
pub(crate) async fn admit(domains: &Domains, job: &Record) -> Result<(), JobError> {
    let Some(domain) = domain_of(job) else {
        return Ok(());
    };
    let class = virtbus_wire::Class::Hypervisor;
    let needs_nothing = match Task::restore(class, &job.task, &job.params) {
        Ok(Task::Hypervisor(task)) => match task {
            HypervisorTask::Ping(_)
            | HypervisorTask::StartDomain(_)
            | HypervisorTask::CheckDomain(_)
            | HypervisorTask::StopDomain(_)
            | HypervisorTask::DeleteDomain(_) => true,
            HypervisorTask::ResumeDomain(_)
            | HypervisorTask::ResetDomain(_)
            | HypervisorTask::CreateSnapshot(_)
            | HypervisorTask::RevertSnapshot(_)
            | HypervisorTask::DeleteSnapshot(_)
            | HypervisorTask::Resize(_)
            | HypervisorTask::Commit(_) => false,
        },
        Ok(Task::Storage(_) | Task::Core(_)) | Err(_) => true,
    };
    if needs_nothing {
        return Ok(());
    }
    let record = domains.catalog.domain(&domain).await?.value;
    match record.and_then(|record| record.hypervisor) {
        Some(host) if host != domains.settings.hypervisor => {
            let text = format!("the domain was last on the host {host}, which was fenced");
            let error = JobError::new(Code::HypervisorUnreachable, text);
            Err(error.with("hypervisor", host.as_str()))
        }
        Some(_) | None => Ok(()),
    }
}

/// That libvirt is at nothing any more with the domain of a job that is taken over: the call of a
/// service that died goes on without it, and what comes of it isn't known before.
///
/// # Errors
/// [`Stop::Earlier`] until then.
pub(crate) async fn settled(domains: &Domains, job: &Record) -> Result<(), Stop> {
    let class = virtbus_wire::Class::Hypervisor;
    let task = Task::restore(class, &job.task, &job.params);
    // A stop ends whatever goes on.
    if let Ok(Task::Hypervisor(HypervisorTask::StopDomain(_))) = task {
        return Ok(());
    }
    let Some(domain) = domain_of(job) else {
        return Ok(());
    };
    let is_busy = domains.host.is_busy(&domain).await;
    if !is_busy.map_err(JobError::from)? {
        return Ok(());
    }
    let text = "libvirt is still at what was asked of it about the domain";
    let error = JobError::new(Code::HypervisorUnreachable, text);
    Err(Stop::Earlier(error.with("domain", domain.as_str())))
}

/// What becomes of a start that this host has no room for; none when it has.
async fn no_room(
    domains: &Domains,
    job: &Record,
    (domain, room): (&DomainId, Option<Room>),
    deliveries: u64,
    queue: &Label,
) -> Option<Look> {
    let here = &domains.settings.hypervisor;
    let hosts = match live_hosts(domains).await {
        Ok(hosts) => hosts,
        Err(error) => {
            tracing::warn!(job = %job.id, %error, "the hosts can't be read");
            return Some(Look::HandBack(UNSURE));
        }
    };
    let others = hosts
        .iter()
        .filter(|(host, state)| *host != *here && *state == HypervisorState::Up && queue != here);
    let others = others.count() as u64;
    let is_up = hosts
        .iter()
        .any(|(host, state)| host == here && *state == HypervisorState::Up);
    let mut needs = serde_json::Map::new();
    if !is_up {
        needs.insert("host".to_owned(), "draining".into());
    } else if !domains.host.is_healthy() {
        needs.insert("host".to_owned(), "unhealthy".into());
    } else {
        let room = room?;
        match domains
            .capacity
            .reserve(&domains.host, &job.id, domain, room)
            .await
        {
            Ok(true) => return None,
            Ok(false) => needs = room.needs(),
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "libvirt can't be asked for room");
                needs.insert("host".to_owned(), "unhealthy".into());
            }
        }
    }
    if others > 0 && deliveries <= (others + 1) * OFFERS_PER_HOST {
        return Some(Look::HandBack(OTHERS));
    }
    Some(Look::Wait(WaitReason::Capacity { needs }))
}

/// The hosts of this pool whose services live.
async fn live_hosts(domains: &Domains) -> Result<Vec<(Label, HypervisorState)>, BusError> {
    let mut live = Vec::new();
    for (name, entry) in domains.catalog.hypervisors.all().await? {
        let record = entry.value;
        let Ok(name) = name.parse::<Label>() else {
            continue;
        };
        if record.pool != domains.settings.pool {
            continue;
        }
        let worker = domains.catalog.workers.get(record.worker.as_str()).await?;
        if name == domains.settings.hypervisor || worker.is_some() {
            live.push((name, record.state));
        }
    }
    Ok(live)
}
