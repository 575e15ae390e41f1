//! `virtbus.hypervisors.fence`: a person's or a fencing device's word that a host is off.
//!
//! In this order: the host's record says so; what its domains used is free and they are off; its
//! jobs end or go elsewhere; what should run is started elsewhere. Each step may be done again:
//! whoever got no answer asks once more. Jobs that come to the host's own queues later are settled
//! by a watch, as long as it's fenced.

use super::{Caller, Failed, fenced, hypervisors::not_found, pause::check_reason, things::Held};
use crate::{domains, service::Stores};
use serde_json::json;
use virtbus_bus::{Bucket, Row, WriteError};
use virtbus_wire::{
    Code, DomainId, Envelope, JobError, JobId, Label, Priority, Queue, Record,
    catalog::{Desired, DomainRecord, HypervisorRecord, HypervisorState, InUseBy},
    control::{Fence, FenceOutcome},
    task::hypervisor::DomainState,
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 8;

/// Believes that a host is off, and acts on it.
pub(super) async fn fence(
    stores: &Stores,
    asked: Fence,
    caller: Caller,
) -> Result<FenceOutcome, Failed> {
    check_reason(Some(&asked.reason))?;
    let name = &asked.hypervisor;
    let host = mark(stores, &asked, caller).await?;
    tracing::warn!(hypervisor = %name, by = host.by, reason = asked.reason, "fenced");
    // Free before it says that it's off: whoever starts it elsewhere must find its disks free.
    free(stores, &stores.catalogue.disks, name).await?;
    free(stores, &stores.catalogue.media, name).await?;
    let on_it = domains::of_host(stores, name).await?;
    let mut domains = Vec::new();
    for (id, before) in &on_it {
        if before.state != DomainState::Shutoff {
            domains::change(stores, id, name, switched_off).await?;
            domains.push(id.clone());
        }
    }
    let (moved, _) = fenced::settle(stores, (name, &host), asked.restart, 1).await?;
    let mut restarted: Vec<DomainId> = Vec::new();
    if asked.restart {
        // Read anew: a stop that was settled says that its domain should be off.
        let on_it = domains::of_host(stores, name).await?.into_iter();
        let wanted = on_it.filter(|(_, domain)| domain.desired == Desired::Running);
        for (id, domain) in wanted {
            // One that was about to be started there already goes elsewhere by itself.
            if !moved.contains(&id) {
                start(stores, &id, &domain, &asked.reason).await?;
            }
            restarted.push(id);
        }
    }
    Ok(FenceOutcome { domains, restarted })
}

/// Writes into the host's record that it's off. While its service lives nobody is believed.
async fn mark(stores: &Stores, asked: &Fence, caller: Caller) -> Result<HypervisorRecord, Failed> {
    let (hosts, name) = (&stores.catalogue.hypervisors, &asked.hypervisor);
    for _ in 0..TRIES_MAX {
        let slot = hosts.slot(name.as_str()).await?;
        let host = slot.value.ok_or_else(|| not_found(name))?;
        let lease = stores.catalogue.workers.get_latest(host.worker.as_str());
        if lease.await?.is_some() {
            let message = format!(
                "the service of {name} still lives: ask again once its lease is out, after 15 s"
            );
            let lives = JobError::new(Code::Conflict, message);
            return Err(lives.with("worker", host.worker.as_str()).into());
        }
        let host = HypervisorRecord {
            state: HypervisorState::Fenced,
            by: caller.by.clone(),
            reason: Some(asked.reason.clone()),
            updated_at: stores.bus.now(),
            ..host
        };
        match hosts.update(name.as_str(), &host, slot.revision).await {
            Ok(_) => return Ok(host),
            Err(WriteError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(WriteError::Conflict(name.to_string()).into())
}

fn switched_off(domain: &DomainRecord) -> Option<DomainRecord> {
    Some(DomainRecord {
        state: DomainState::Shutoff,
        graphics: None,
        ..domain.clone()
    })
}

/// Takes a host's domains out of all that they use: also those of which the catalogue doesn't
/// know yet that they were started.
async fn free<T: Held>(stores: &Stores, bucket: &Bucket<T>, host: &Label) -> Result<(), Failed> {
    let is_of = |user: &InUseBy| match user {
        InUseBy::Domain { hypervisor, .. } => hypervisor == host,
        InUseBy::Job { .. } => false,
    };
    let mut held = Vec::new();
    let each = |row: Row<T>| {
        if let Ok(Some(mut entry)) = row.entry
            && entry.value.users().iter().any(is_of)
        {
            held.push(row.key);
        }
    };
    bucket.each_from(1, each).await?;
    for key in held {
        let mut tries = 0;
        loop {
            let slot = bucket.slot(&key).await?;
            let Some(mut thing) = slot.value else { break };
            thing.users().retain(|user| !is_of(user));
            match bucket.update(&key, &thing, slot.revision).await {
                Ok(_) => break,
                Err(WriteError::Conflict(_)) if tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!(key, bucket = bucket.name(), hypervisor = %host, at = %stores.bus.now(), "free");
    }
    Ok(())
}

/// Starts a domain on any other host of its pool.
async fn start(
    stores: &Stores,
    id: &DomainId,
    domain: &DomainRecord,
    reason: &str,
) -> Result<(), Failed> {
    let job = Envelope {
        params: json!({"domain": id}),
        user: domain.user.clone(),
        tenant: domain.tenant.clone(),
        reason: Some(reason.to_owned()),
        ..Envelope::bare("start_domain")
    };
    let queue = Queue::Hypervisor(domain.pool.clone(), Priority::Default);
    let now = stores.bus.now();
    let mut record = Record::new(JobId::default(), job, queue.into(), now);
    record.objects = vec![format!("domain.{id}")];
    stores.jobs.create(&record).await?;
    if let Err(error) = stores.jobs.publish(&record).await {
        tracing::warn!(job = %record.id, %error, "published later");
    }
    Ok(())
}
