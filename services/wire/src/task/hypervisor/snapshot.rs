//! `create_snapshot`, `revert_snapshot`, `delete_snapshot` of a domain.

use crate::error::JobError;
use crate::id::{DiskId, DomainId, SnapshotId};
use crate::queue::Priority;
use crate::task::object::Object;
use crate::task::params::{Home, Params, plain};
use crate::task::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Keeps what a domain is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateSnapshot {
    /// The domain.
    pub domain: DomainId,
    /// How it's kept.
    #[serde(flatten)]
    pub kind: NewSnapshot,
    /// Whether the guest is asked to write out what it holds, for overlays.
    pub quiesce: bool,
}

/// The ways to keep what a domain is now. In messages a key of that name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NewSnapshot {
    /// Inside its disks' files, with memory while it runs.
    Snapshot(SnapshotId),
    /// Disk by disk the new disk on top of it that the domain goes on with, without memory.
    Overlays(BTreeMap<DiskId, DiskId>),
}

/// Keeps what a domain is now: inside its disks' files, or with new disks on top of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "CreateSnapshot")]
#[schemars(transform = schema::domain_snapshot)]
pub struct CreateSnapshotFields {
    domain: DomainId,
    /// The id of an internal snapshot, with memory while the domain runs.
    snapshot: Option<SnapshotId>,
    /// Disk by disk the new disk on top of it.
    #[schemars(extend("minProperties" = 1))]
    overlays: Option<BTreeMap<DiskId, DiskId>>,
    /// Whether the guest is asked to write out what it holds; for `overlays` only.
    #[serde(default)]
    quiesce: bool,
}

impl Params for CreateSnapshot {
    type Fields = CreateSnapshotFields;
    type Output = NewSnapshot;
    const NAME: &'static str = "create_snapshot";
    const HOME: Home = Home::Host;

    fn check(fields: CreateSnapshotFields) -> Result<Self, JobError> {
        let kind = match (fields.snapshot, fields.overlays) {
            (Some(_), None) if fields.quiesce => {
                return Err(JobError::invalid_params("quiesce", "is only for overlays"));
            }
            (Some(id), None) => NewSnapshot::Snapshot(id),
            (None, Some(overlays)) => {
                check_overlays(&overlays)?;
                NewSnapshot::Overlays(overlays)
            }
            (Some(_), Some(_)) | (None, None) => {
                let message = "exactly one of snapshot and overlays is required";
                return Err(JobError::invalid_params("snapshot", message));
            }
        };
        Ok(Self {
            domain: fields.domain,
            kind,
            quiesce: fields.quiesce,
        })
    }

    fn home_priority(&self) -> Priority {
        Priority::Low
    }

    fn objects(&self) -> Vec<Object> {
        let mut objects = vec![(&self.domain).into()];
        if let NewSnapshot::Overlays(overlays) = &self.kind {
            objects.extend(overlays.keys().chain(overlays.values()).map(Object::from));
        }
        objects
    }
}

fn check_overlays(overlays: &BTreeMap<DiskId, DiskId>) -> Result<(), JobError> {
    let refuse = |message| Err(JobError::invalid_params("overlays", message));
    if overlays.is_empty() {
        return refuse("must name at least one disk");
    }
    let new: BTreeSet<&DiskId> = overlays.values().collect();
    if new.len() != overlays.len() {
        return refuse("each disk needs a new disk of its own");
    }
    if overlays.keys().any(|disk| new.contains(disk)) {
        return refuse("a new disk can't be one of the disks");
    }
    Ok(())
}

/// Puts a domain back to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertSnapshot {
    /// The domain.
    pub domain: DomainId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// Removes a domain's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSnapshot {
    /// The domain.
    pub domain: DomainId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// The snapshot that a task was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OfSnapshot {
    /// Its id.
    pub snapshot: SnapshotId,
}

plain!(RevertSnapshot => OfSnapshot, "revert_snapshot", Default, [domain],
    HOME: Home = Home::Host);
plain!(DeleteSnapshot => OfSnapshot, "delete_snapshot", Default, [domain],
    HOME: Home = Home::Host);
