//! `create_snapshot`, `revert_snapshot`, `delete_snapshot` of a disk that no domain runs on.

use crate::error::JobError;
use crate::id::{DiskId, SnapshotId};
use crate::queue::Priority;
use crate::task::object::Object;
use crate::task::params::{Params, plain};
use crate::task::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps what a disk holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateSnapshot {
    /// The disk.
    pub disk: DiskId,
    /// How it's kept.
    #[serde(flatten)]
    pub kind: NewSnapshot,
}

/// The ways to keep what a disk holds now. In messages a key of that name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NewSnapshot {
    /// Inside the file.
    Snapshot(SnapshotId),
    /// In the disk itself, which is frozen: this new disk on top goes on.
    Overlay(DiskId),
    /// In this new disk below: the disk itself goes on, as an empty overlay of it.
    Base(DiskId),
}

/// Keeps what a disk holds now: inside its file, or with a new disk above or below it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "CreateSnapshot")]
#[schemars(transform = schema::disk_snapshot)]
pub struct CreateSnapshotFields {
    disk: DiskId,
    /// The id of an internal snapshot.
    snapshot: Option<SnapshotId>,
    /// A new disk on top; `disk` is frozen.
    overlay: Option<DiskId>,
    /// A new disk below, with the content so far; `disk` goes on as an empty overlay of it.
    base: Option<DiskId>,
}

impl Params for CreateSnapshot {
    type Fields = CreateSnapshotFields;
    type Output = NewSnapshot;
    const NAME: &'static str = "create_snapshot";

    fn check(fields: CreateSnapshotFields) -> Result<Self, JobError> {
        let kind = match (fields.snapshot, fields.overlay, fields.base) {
            (Some(id), None, None) => NewSnapshot::Snapshot(id),
            (None, Some(id), None) => NewSnapshot::Overlay(id),
            (None, None, Some(id)) => NewSnapshot::Base(id),
            _ => {
                let message = "exactly one of snapshot, overlay and base is required";
                return Err(JobError::invalid_params("snapshot", message));
            }
        };
        let (field, other) = match &kind {
            NewSnapshot::Snapshot(_) => ("snapshot", None),
            NewSnapshot::Overlay(id) => ("overlay", Some(id)),
            NewSnapshot::Base(id) => ("base", Some(id)),
        };
        if other == Some(&fields.disk) {
            return Err(JobError::invalid_params(field, "must be another disk"));
        }
        Ok(Self {
            disk: fields.disk,
            kind,
        })
    }

    fn home_priority(&self) -> Priority {
        Priority::Default
    }

    fn objects(&self) -> Vec<Object> {
        let other = match &self.kind {
            NewSnapshot::Snapshot(_) => None,
            NewSnapshot::Overlay(id) | NewSnapshot::Base(id) => Some(id),
        };
        let ids = std::iter::once(&self.disk).chain(other);
        ids.map(Object::from).collect()
    }
}

/// Puts a disk back to an internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertSnapshot {
    /// The disk.
    pub disk: DiskId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// Removes an internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSnapshot {
    /// The disk.
    pub disk: DiskId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// The result of a task that has nothing to tell but that it's done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

plain!(RevertSnapshot => Done, "revert_snapshot", Default, [disk]);
plain!(DeleteSnapshot => Done, "delete_snapshot", Low, [disk]);
