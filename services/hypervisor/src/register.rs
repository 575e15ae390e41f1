//! The host's own key in the bucket `hypervisors`: core makes its queues when it sees it.

use crate::libvirt::Node;
use virtbus_bus::{Bucket, Bus, BusError, WriteError};
use virtbus_daemon::Identity;
use virtbus_wire::{
    Label, Timestamp,
    catalog::{HypervisorRecord, HypervisorState, PoolRecord},
};

/// The bucket's name.
const BUCKET: &str = "hypervisors";
/// How often a record that others change at the same time is written.
const WRITES_MAX: u32 = 8;

/// Why a host wasn't registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Pools and hosts share one namespace: their queues have the same subjects.
    #[error("a pool is named {0}")]
    PoolsName(Label),
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Writes what the host is, and keeps what a person said of it: drained stays drained. Fenced
/// doesn't: it's on again, whoever said that it was off.
pub(crate) async fn register(
    bus: &Bus,
    hypervisor: &Label,
    pool: &Label,
    identity: &Identity,
    node: &Node,
) -> Result<(), RegisterError> {
    let pools: Bucket<PoolRecord> = Bucket::new(bus, "pools");
    if pools.get_latest(hypervisor.as_str()).await?.is_some() {
        return Err(RegisterError::PoolsName(hypervisor.clone()));
    }
    let records: Bucket<HypervisorRecord> = Bucket::new(bus, BUCKET);
    for _ in 0..WRITES_MAX {
        let slot = records.slot(hypervisor.as_str()).await?;
        let (state, by, reason) = said_of(slot.value);
        let record = HypervisorRecord {
            pool: pool.clone(),
            worker: identity.worker.clone(),
            host: identity.host_name.clone(),
            state,
            by,
            reason,
            cpus: Some(node.cpus),
            memory: Some(node.memory),
            capabilities: Vec::new(),
            updated_at: Timestamp::now(),
        };
        match records
            .update(hypervisor.as_str(), &record, slot.revision)
            .await
        {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict(_)) => {}
            Err(WriteError::Bus(error)) => return Err(error.into()),
        }
    }
    let unreachable = BusError::Unreachable {
        call: format!("the registration of {hypervisor}"),
        reason: "others changed it all the time".to_owned(),
    };
    Err(unreachable.into())
}

/// What a person said of the host, by whom and why, as far as it holds when its service starts.
fn said_of(known: Option<HypervisorRecord>) -> (HypervisorState, Option<String>, Option<String>) {
    match known {
        Some(known) if known.state == HypervisorState::Draining => {
            (known.state, known.by, known.reason)
        }
        Some(_) | None => (HypervisorState::Up, None, None),
    }
}

/// Says that the host is on again, if somebody gave their word that it's off: its service lives, or
/// it lives again after it was cut off. True when that had to be said.
pub(crate) async fn returned(
    records: &Bucket<HypervisorRecord>,
    hypervisor: &Label,
) -> Result<bool, BusError> {
    let slot = records.slot(hypervisor.as_str()).await?;
    let is_fenced = |record: &HypervisorRecord| record.state == HypervisorState::Fenced;
    let Some(record) = slot.value.filter(is_fenced) else {
        return Ok(false);
    };
    let record = HypervisorRecord {
        state: HypervisorState::Up,
        by: None,
        reason: None,
        updated_at: Timestamp::now(),
        ..record
    };
    match records
        .update(hypervisor.as_str(), &record, slot.revision)
        .await
    {
        Ok(_) => {
            tracing::warn!(%hypervisor, "was fenced, and is on");
            Ok(true)
        }
        // Whoever wrote it may have said the same; it's looked at again soon.
        Err(WriteError::Conflict(_)) => Ok(false),
        Err(WriteError::Bus(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_drained_host_stays_drained_by_whom_and_why_when_its_service_starts() {
        use HypervisorState::{Draining, Fenced, Up};
        let some = |text: &str| Some(text.to_owned());
        for (state, expected) in [
            (Up, (Up, None, None)),
            (Fenced, (Up, None, None)),
            (Draining, (Draining, some("alice"), some("new memory"))),
        ] {
            let known = json!({"pool": "p", "worker": "w", "host": "h", "state": state,
                "by": "alice", "reason": "new memory", "updated_at": "2026-06-01T00:00:00.000Z"});
            assert_eq!(said_of(serde_json::from_value(known).unwrap()), expected);
        }
        assert_eq!(said_of(None), (Up, None, None));
    }
}
