//! The host's own key in the bucket `hypervisors`: core makes its queues when it sees it.

use crate::libvirt::Node;
use virtbus_bus::{Bucket, Bus, BusError, WriteError};
use virtbus_daemon::Identity;
use virtbus_wire::{
    Label, Timestamp,
    catalog::{HypervisorRecord, HypervisorState},
};

/// The bucket's name.
const BUCKET: &str = "hypervisors";
/// How often a record that others change at the same time is written.
const WRITES_MAX: u32 = 8;

/// Writes what the host is, and keeps what a person said of it: drained stays drained.
pub(crate) async fn register(
    bus: &Bus,
    hypervisor: &Label,
    pool: &Label,
    identity: &Identity,
    node: &Node,
) -> Result<(), BusError> {
    let records: Bucket<HypervisorRecord> = Bucket::new(bus, BUCKET);
    for _ in 0..WRITES_MAX {
        let slot = records.slot(hypervisor.as_str()).await?;
        let (state, reason) = match &slot.value {
            Some(known) => (known.state, known.reason.clone()),
            None => (HypervisorState::default(), None),
        };
        let record = HypervisorRecord {
            pool: pool.clone(),
            worker: identity.worker.clone(),
            host: identity.host_name.clone(),
            state,
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
            Err(WriteError::Bus(error)) => return Err(error),
        }
    }
    Err(BusError::Unreachable {
        call: format!("the registration of {hypervisor}"),
        reason: "others changed it all the time".to_owned(),
    })
}
