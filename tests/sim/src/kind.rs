//! What a task does to which disk.

use crate::catalogue::Outcome;
use serde_json::{Value, json};
use virtbus_wire::catalog::{DiskRecord, DiskState};
use virtbus_worker::Assignment;

/// What a task does to which disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Make(String),
    Change(String, u64),
    Remove(String),
    Nothing,
}

impl Kind {
    /// The disk, if there is one.
    pub(crate) fn disk(&self) -> Option<&str> {
        match self {
            Self::Make(disk) | Self::Change(disk, _) | Self::Remove(disk) => Some(disk),
            Self::Nothing => None,
        }
    }

    /// Whether it changes what is there already: its fence is a lock then, not a name.
    pub(crate) fn is_in_place(&self) -> bool {
        matches!(self, Self::Change(..) | Self::Remove(_))
    }

    /// How the catalogue shows that it goes on.
    pub(crate) fn intent(&self) -> DiskState {
        match self {
            Self::Make(_) => DiskState::Creating,
            Self::Change(..) | Self::Remove(_) | Self::Nothing => DiskState::Changing,
        }
    }

    /// What there is when it's done.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Change(_, size) => Outcome::Ready(*size),
            Self::Make(_) | Self::Nothing => Outcome::Ready(1),
            Self::Remove(_) => Outcome::Deleted,
        }
    }

    /// Whether a record says that it's done.
    pub(crate) fn is_said_by(&self, record: &DiskRecord) -> bool {
        match self {
            Self::Make(_) => record.state == DiskState::Ready,
            Self::Change(_, size) => {
                record.state == DiskState::Ready && record.virtual_size == Some(*size)
            }
            Self::Remove(_) => record.state == DiskState::Deleted,
            Self::Nothing => true,
        }
    }
}

/// What a job does.
pub(crate) fn kind(job: &Assignment) -> Kind {
    let params = &job.record.params;
    let disk = params["disk"].as_str().unwrap_or_default().to_owned();
    match job.record.task.as_str() {
        "create_disk" => Kind::Make(disk),
        "resize" => Kind::Change(disk, params["size"].as_u64().unwrap_or(0)),
        "delete_disk" => Kind::Remove(disk),
        _ => Kind::Nothing,
    }
}

/// What a publisher says of a job.
#[must_use]
pub fn params(task: &str, disk: &str, size: u64) -> Value {
    match task {
        "resize" => json!({"disk": disk, "size": size}),
        "create_disk" => json!({"disk": disk, "size": 1_048_576}),
        "delete_disk" => json!({"disk": disk}),
        _ => json!({}),
    }
}
