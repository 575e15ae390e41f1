//! Keeping the records of domains true: libvirt's hints are followed, and everything is looked at
//! when a connection is made.

use crate::{
    domains::{Domains, domain_of},
    libvirt::{Hint, Hinted, Seen},
};
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;
use virtbus_bus::BusError;
use virtbus_wire::{
    DiskId, DomainId, JobError, Label, MediaId, Timestamp,
    catalog::{Desired, DomainRecord, InUseBy},
    task::hypervisor::DomainState,
};

/// How long what couldn't be looked at is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often libvirt is asked whether it's there, and the records what others write there.
const ALIVE: Duration = Duration::from_secs(5);

/// What a look at a domain means for its record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Another host's record; here it doesn't run.
    NotOurs,
    /// It runs here, and the record says that it runs elsewhere.
    Intruder,
    /// As the record should be.
    Ours(Box<DomainRecord>),
}

/// The record after a look.
pub(crate) fn observed(
    record: &DomainRecord,
    here: &Label,
    seen: Option<&Seen>,
    now: Timestamp,
) -> Verdict {
    let is_active = seen.is_some_and(|seen| seen.is_active);
    let is_ours = record.hypervisor.as_ref() == Some(here);
    if !is_ours && !is_active {
        return Verdict::NotOurs;
    }
    if !is_ours && record.hypervisor.is_some() && record.state.is_on() {
        return Verdict::Intruder;
    }
    let mut next = record.clone();
    next.hypervisor = Some(here.clone());
    match seen {
        Some(seen) => {
            next.state = seen.state;
            next.graphics = if is_active {
                seen.graphics.clone()
            } else {
                None
            };
            let snapshots = seen.snapshots.iter().filter_map(|name| name.parse().ok());
            next.snapshots = snapshots.collect();
        }
        None => {
            next.state = DomainState::Shutoff;
            next.graphics = None;
            next.snapshots = Vec::new();
        }
    }
    if is_active && !record.state.is_on() {
        next.desired = Desired::Running;
        next.last_started_at = Some(now);
    } else if seen.is_some_and(|seen| seen.off_in_order) {
        next.desired = Desired::Shutoff;
    }
    Verdict::Ours(Box::new(next))
}

/// Follows what libvirt tells until told to stop.
pub(crate) async fn follow(domains: Domains, mut hinted: Hinted, stop: CancellationToken) {
    let mut open: BTreeSet<DomainId> = BTreeSet::new();
    let mut everything = true;
    let mut read = 1;
    let mut alive = tokio::time::interval(ALIVE);
    alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if everything {
            match look_at_everything(&domains).await {
                Ok(()) => {
                    everything = false;
                    open.clear();
                }
                Err(error) => tracing::warn!(%error, "not everything could be looked at yet"),
            }
        }
        let mut left = BTreeSet::new();
        for domain in std::mem::take(&mut open) {
            if let Err(error) = domains.sync(&domain).await {
                tracing::warn!(%domain, %error, "could not be looked at yet");
                left.insert(domain);
            }
        }
        open = left;
        let failed = everything || !open.is_empty();
        tokio::select! {
            () = stop.cancelled() => return,
            hint = hinted.next() => match hint {
                Some(Hint::Domain(name)) => open.extend(domain_of(&name)),
                Some(Hint::Everything) => everything = true,
                None => return,
            },
            () = tokio::time::sleep(TRY_AGAIN), if failed => {}
            _ = alive.tick() => {
                // A connection that broke is found by this, and made anew.
                if let Err(error) = domains.host.node().await {
                    tracing::warn!(%error, "libvirt can't be asked");
                }
                match doubted(&domains, &mut read).await {
                    Ok(doubted) => open.extend(doubted),
                    Err(error) => tracing::warn!(%error, "the domains' records can't be read"),
                }
            }
        }
    }
}

/// The domains here of which others don't know what they are: while nobody heard of this host.
/// `read` = the revision from which on records weren't read yet.
async fn doubted(domains: &Domains, read: &mut u64) -> Result<BTreeSet<DomainId>, BusError> {
    let here = &domains.settings.hypervisor;
    let mut doubted = BTreeSet::new();
    loop {
        let page = domains.catalog.domains.page(*read).await?;
        for row in page.items {
            *read = row.revision + 1;
            if let (Ok(id), Ok(Some(entry))) = (row.key.parse(), row.entry)
                && entry.value.hypervisor.as_ref() == Some(here)
                && entry.value.state == DomainState::Unknown
            {
                doubted.insert(id);
            }
        }
        match page.next {
            Some(next) => *read = next,
            None => return Ok(doubted),
        }
    }
}

/// Every domain that libvirt or a record knows here, and every hold in this host's name.
async fn look_at_everything(domains: &Domains) -> Result<(), JobError> {
    let bus = |error: BusError| JobError::internal(error.to_string());
    let here = &domains.settings.hypervisor;
    let mut known: BTreeSet<DomainId> = BTreeSet::new();
    for seen in domains.host.domains(false).await? {
        known.extend(domain_of(&seen.name));
    }
    for (key, entry) in domains.catalog.domains.all().await.map_err(bus)? {
        if entry.value.hypervisor.as_ref() == Some(here) {
            known.extend(key.parse::<DomainId>());
        }
    }
    let mut failed = None;
    for domain in &known {
        failed = domains.sync(domain).await.err().or(failed);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    free_forgotten(domains).await
}

/// Frees what a domain of this host holds that doesn't run: a service that died may have left it.
async fn free_forgotten(domains: &Domains) -> Result<(), JobError> {
    let bus = |error: BusError| JobError::internal(error.to_string());
    let here = &domains.settings.hypervisor;
    let holders = |users: &[InUseBy]| -> Vec<DomainId> {
        let ours = users.iter().filter_map(|user| match user {
            InUseBy::Domain {
                domain, hypervisor, ..
            } if hypervisor == here => Some(domain),
            InUseBy::Domain { .. } | InUseBy::Job { .. } => None,
        });
        ours.cloned().collect()
    };
    for (key, entry) in domains.catalog.disks.all().await.map_err(bus)? {
        for domain in holders(&entry.value.in_use_by) {
            let Ok(disk) = key.parse::<DiskId>() else {
                continue;
            };
            let _guard = domains.guard(&domain).await;
            if !runs(domains, &domain).await? {
                let holder = domains.holder(&domain);
                domains.catalog.free_disk(&holder, &disk).await?;
            }
        }
    }
    for (key, entry) in domains.catalog.media.all().await.map_err(bus)? {
        for domain in holders(&entry.value.in_use_by) {
            let Ok(media) = key.parse::<MediaId>() else {
                continue;
            };
            let _guard = domains.guard(&domain).await;
            if !runs(domains, &domain).await? {
                let holder = domains.holder(&domain);
                domains.catalog.free_media(&holder, &media).await?;
            }
        }
    }
    Ok(())
}

/// Whether a domain has processes here, be it only to be tried out.
async fn runs(domains: &Domains, domain: &DomainId) -> Result<bool, JobError> {
    let trial = crate::domains::trial_name(domain);
    for name in [domain.as_str(), trial.as_str()] {
        let seen = domains.host.domain(name).await?;
        if seen.is_some_and(|seen| seen.is_active) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(hypervisor: Option<&str>, state: DomainState) -> DomainRecord {
        DomainRecord {
            uuid: uuid::Uuid::nil(),
            pool: "default".parse().unwrap(),
            hypervisor: hypervisor.map(|name| name.parse().unwrap()),
            state,
            desired: Desired::Running,
            xml: None,
            graphics: None,
            disks: Vec::new(),
            media: Vec::new(),
            snapshots: Vec::new(),
            tenant: None,
            user: None,
            owner_job: None,
            epoch: 1,
            last_started_at: None,
            updated_at: Timestamp::now(),
        }
    }

    fn seen(state: DomainState, off_in_order: bool) -> Seen {
        Seen {
            name: "web1".to_owned(),
            state,
            off_in_order,
            is_starting: false,
            is_active: state.is_on(),
            memory: 1 << 30,
            vcpus: 1,
            graphics: None,
            mark: None,
            snapshots: vec!["s1".to_owned()],
            disks: Vec::new(),
        }
    }

    fn look(record: &DomainRecord, seen: Option<&Seen>) -> Verdict {
        observed(record, &"hv1".parse().unwrap(), seen, Timestamp::now())
    }

    #[test]
    fn a_domain_that_went_off_by_itself_should_be_off_and_one_that_crashed_should_not() {
        let before = record(Some("hv1"), DomainState::Running);
        for (seen, desired) in [
            (seen(DomainState::Shutoff, true), Desired::Shutoff),
            (seen(DomainState::Crashed, false), Desired::Running),
            // After the host itself was off.
            (seen(DomainState::Shutoff, false), Desired::Running),
        ] {
            let Verdict::Ours(next) = look(&before, Some(&seen)) else {
                panic!("it's ours");
            };
            assert_eq!((next.state, next.desired), (seen.state, desired));
        }
        let Verdict::Ours(next) = look(&before, None) else {
            panic!("it's ours");
        };
        assert_eq!(next.state, DomainState::Shutoff);
    }

    #[test]
    fn a_domain_started_behind_our_back_is_seen_where_it_may_run_and_ended_where_not() {
        let running = seen(DomainState::Running, false);
        for before in [None, Some("hv1"), Some("hv2")] {
            let verdict = look(&record(before, DomainState::Shutoff), Some(&running));
            let Verdict::Ours(next) = verdict else {
                panic!("it's taken: {verdict:?}");
            };
            assert_eq!(next.hypervisor.unwrap().as_str(), "hv1");
            assert_eq!(next.desired, Desired::Running);
        }
        for state in [DomainState::Running, DomainState::Unknown] {
            let verdict = look(&record(Some("hv2"), state), Some(&running));
            assert_eq!(verdict, Verdict::Intruder);
        }
        let off = seen(DomainState::Shutoff, true);
        assert_eq!(
            look(&record(Some("hv2"), DomainState::Running), Some(&off)),
            Verdict::NotOurs
        );
    }
}
