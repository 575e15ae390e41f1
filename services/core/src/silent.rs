//! What runs on a host whose service is silent is `unknown`: nobody sees what becomes of it.
//!
//! What it uses stays in use, and what was off stays off. The host's own service says what its
//! domains are once it's back; a person's word that the host is off says it before. From then on
//! what comes to the host's own queues is settled here too.

use crate::{
    control::fenced::{Watched, watch},
    domains,
    service::Stores,
};
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, WriteError};
use virtbus_daemon::Beat;
use virtbus_wire::{
    Label,
    catalog::{DomainRecord, HypervisorState},
    task::hypervisor::DomainState,
};

/// How often the hosts are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// In how many looks in a row a host must have been without a lease: a service that is stopped
/// gives its lease back, and is there again by then when it's only started anew.
const LOOKS_MIN: u32 = 3;

/// How long a host has been silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// In so many looks.
    Looks(u32),
    /// Its domains' records say so.
    Told,
}

/// Watches the hosts until `stop`.
pub async fn run(stores: Stores, stop: CancellationToken) {
    let mut beat = Beat::every(LOOK, stop);
    let (mut silent, mut fenced) = (BTreeMap::new(), Watched::new());
    while beat.next().await {
        if let Err(error) = look(&stores, &mut silent).await {
            tracing::warn!(%error, "the hosts can't be looked at");
        }
        if let Err(error) = watch(&stores, &mut fenced).await {
            tracing::warn!(%error, "jobs of fenced hosts can't be settled yet");
        }
    }
}

async fn look(stores: &Stores, silent: &mut BTreeMap<Label, Silence>) -> Result<(), WriteError> {
    let now = silent_hosts(stores).await?;
    silent.retain(|host, _| now.contains(host));
    for host in now {
        let silence = silent.entry(host.clone()).or_insert(Silence::Looks(0));
        match silence {
            Silence::Told => {}
            Silence::Looks(looks) if *looks + 1 < LOOKS_MIN => *looks += 1,
            Silence::Looks(_) => {
                tell(stores, &host).await?;
                *silence = Silence::Told;
            }
        }
    }
    Ok(())
}

/// The hosts for which nobody speaks, but for those that somebody gave their word about.
async fn silent_hosts(stores: &Stores) -> Result<Vec<Label>, BusError> {
    let hosts = stores.catalogue.hypervisors.all().await?;
    let mut silent = Vec::new();
    for (name, entry) in hosts {
        let (Ok(name), host) = (name.parse(), entry.value) else {
            continue;
        };
        let workers = &stores.catalogue.workers;
        if host.state != HypervisorState::Fenced
            && workers.get_latest(host.worker.as_str()).await?.is_none()
        {
            silent.push(name);
        }
    }
    Ok(silent)
}

async fn tell(stores: &Stores, host: &Label) -> Result<(), WriteError> {
    for (id, domain) in domains::of_host(stores, host).await? {
        if unknown(&domain).is_some() {
            tracing::warn!(hypervisor = %host, domain = %id, "nobody sees what it is");
            domains::change(stores, &id, host, unknown).await?;
        }
    }
    Ok(())
}

fn unknown(domain: &DomainRecord) -> Option<DomainRecord> {
    let is_known = domain.state.is_on() && domain.state != DomainState::Unknown;
    is_known.then(|| DomainRecord {
        state: DomainState::Unknown,
        ..domain.clone()
    })
}
