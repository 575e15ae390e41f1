//! `virtbus.hypervisors.list`, `drain`, `undrain`.

use super::{Caller, Failed, pause::check_reason};
use crate::service::Stores;
use virtbus_bus::{BusError, WriteError};
use virtbus_wire::{
    Code, JobError, Label,
    catalog::{HypervisorRecord, HypervisorState},
    control::{HypervisorList, HypervisorName, HypervisorRow},
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 8;

pub(super) async fn list(stores: &Stores) -> Result<HypervisorList, BusError> {
    let records = stores.catalogue.hypervisors.all().await?.into_iter();
    let rows = records.filter_map(|(name, entry)| {
        let hypervisor: Label = name.parse().ok()?;
        let host = entry.value;
        Some(HypervisorRow { hypervisor, host })
    });
    let mut hypervisors: Vec<HypervisorRow> = rows.collect();
    hypervisors.sort_by(|one, other| one.hypervisor.cmp(&other.hypervisor));
    Ok(HypervisorList { hypervisors })
}

/// Lets a host start no more domains, or again. What it runs goes on.
pub(super) async fn drain(
    stores: &Stores,
    asked: HypervisorName,
    caller: Caller,
    drained: bool,
) -> Result<HypervisorRow, Failed> {
    let HypervisorName { hypervisor, reason } = asked;
    check_reason(reason.as_ref())?;
    let hosts = &stores.catalogue.hypervisors;
    for _ in 0..TRIES_MAX {
        let slot = hosts.slot(hypervisor.as_str()).await?;
        let host = slot.value.ok_or_else(|| not_found(&hypervisor))?;
        let word = (caller.by.clone(), reason.clone());
        let host = changed(host, drained, word, stores.bus.now());
        match hosts
            .update(hypervisor.as_str(), &host, slot.revision)
            .await
        {
            Ok(_) => {
                tracing::info!(%hypervisor, drained, by = caller.by, reason = host.reason, "drain");
                return Ok(HypervisorRow { hypervisor, host });
            }
            Err(WriteError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(WriteError::Conflict(hypervisor.to_string()).into())
}

/// That no host has this name.
pub(super) fn not_found(hypervisor: &Label) -> JobError {
    let message = format!("no host is named {hypervisor}");
    JobError::new(Code::QueueUnknown, message).with("hypervisor", hypervisor.as_str())
}

/// `word` = who says so, and why. A fenced host stays fenced: only its own service, started anew,
/// says that it's back.
fn changed(
    host: HypervisorRecord,
    drained: bool,
    word: (Option<String>, Option<String>),
    now: virtbus_wire::Timestamp,
) -> HypervisorRecord {
    let (state, (by, reason)) = match (host.state, drained) {
        (HypervisorState::Fenced, _) => (HypervisorState::Fenced, (host.by, host.reason)),
        (HypervisorState::Up | HypervisorState::Draining, true) => {
            (HypervisorState::Draining, word)
        }
        (HypervisorState::Up | HypervisorState::Draining, false) => (HypervisorState::Up, word),
    };
    HypervisorRecord {
        state,
        by,
        reason,
        updated_at: now,
        ..host
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_drain_changes_what_is_up_and_never_what_is_fenced() {
        use HypervisorState::{Draining, Fenced, Up};
        let now = virtbus_wire::Timestamp::from_millis(5);
        let some = |text: &str| Some(text.to_owned());
        for (state, drained, expected, by, reason) in [
            (Up, true, Draining, "alice", "new"),
            (Draining, true, Draining, "alice", "new"),
            (Draining, false, Up, "alice", "new"),
            (Up, false, Up, "alice", "new"),
            (Fenced, true, Fenced, "bob", "old"),
            (Fenced, false, Fenced, "bob", "old"),
        ] {
            let host = json!({"pool": "p", "worker": "w", "host": "h", "state": state,
                "by": "bob", "reason": "old", "updated_at": "2026-06-01T00:00:00.000Z"});
            let host = serde_json::from_value(host).unwrap();
            let host = changed(host, drained, (some("alice"), some("new")), now);
            assert_eq!((host.by, host.reason), (some(by), some(reason)));
            assert_eq!(host.state, expected);
            assert_eq!(host.updated_at, now);
        }
    }
}
