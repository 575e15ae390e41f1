//! What a look at a domain means for its record: a pure function.

use crate::libvirt::Seen;
use virtbus_wire::{
    Label, Timestamp,
    catalog::{Desired, DomainRecord},
    task::hypervisor::DomainState,
};

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
            uuid: None,
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
