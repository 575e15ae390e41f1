//! What of a record is looked at here.

use serde::Deserialize;
use virtbus_bus::limits::tenant_lock;
use virtbus_wire::{
    BootId, JobId, Queue, StateName, Tenant, Timestamp, WorkerId,
    envelope::{IfInUse, PublisherLocks},
    state::WaitReason,
};

/// What matters of a record here; the rest isn't even decoded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::reconciler) struct Brief {
    pub(super) state: StateName,
    pub(super) queue: String,
    pub(super) generation: u64,
    pub(super) worker: Option<WorkerId>,
    pub(super) boot: Option<BootId>,
    #[serde(default)]
    pub(super) after: Vec<BriefDependency>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) submitted_at: Timestamp,
    pub(super) waiting: Option<BriefWaiting>,
    #[serde(default)]
    pub(super) if_in_use: IfInUse,
    pub(super) task: String,
    #[serde(default)]
    pub(super) objects: Vec<String>,
    #[serde(default)]
    pub(super) locks: PublisherLocks,
    pub(super) tenant: Option<Tenant>,
    pub(super) ticket: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::reconciler) struct BriefDependency {
    pub(in crate::reconciler) job: JobId,
    pub(super) on: Vec<StateName>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct BriefWaiting {
    #[serde(flatten)]
    pub(super) on: WaitReason,
    pub(super) since: Timestamp,
}

/// Where a job that isn't running may stand in line.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::reconciler) struct Place {
    /// The lower, the sooner.
    pub(super) ticket: u64,
    /// The locks whose lines it may stand in, as far as its record says.
    pub(super) locks: Vec<String>,
}

impl Brief {
    /// The lock that counts the running jobs of its tenant.
    pub(super) fn tenant_lock(&self) -> Option<String> {
        let class = self.queue.parse::<Queue>().map(|queue| queue.class());
        let tenant = class.ok().zip(self.tenant.as_ref());
        tenant.map(|(class, tenant)| tenant_lock(class, tenant))
    }

    /// Its place in line, if it has one. Who runs hands on by itself what it leaves.
    pub(super) fn place(&self) -> Option<Place> {
        let may_stand = matches!(self.state, StateName::Queued | StateName::Waiting);
        let ticket = self.ticket.filter(|_| may_stand)?;
        let mut locks = self.objects.clone();
        let own = self.locks.exclusive.iter().chain(&self.locks.shared);
        locks.extend(own.map(ToString::to_string));
        locks.extend(self.tenant_lock());
        if let Some(WaitReason::Lock { resource, .. }) = self.waiting.as_ref().map(|w| &w.on)
            && !locks.contains(resource)
        {
            locks.push(resource.clone());
        }
        Some(Place { ticket, locks })
    }
}
