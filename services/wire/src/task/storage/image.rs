//! `convert`, `commit`, `rebase`, `sparsify`, `check_disk`: work inside image files.

use crate::error::JobError;
use crate::id::DiskId;
use crate::queue::Priority;
use crate::task::image::{Compress, ImageFormat, Qcow2Options, Subformat, check_options};
use crate::task::object::Object;
use crate::task::params::{Params, plain};
use crate::task::{named, schema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Copies a disk into a new one of another format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::convert)]
pub struct Convert {
    /// What is read.
    pub disk: DiskId,
    /// The new disk.
    pub to: DiskId,
    /// The new disk's format.
    pub format: ImageFormat,
    /// How it's compressed: zlib for qcow2 and vmdk, zstd for qcow2.
    #[serde(default)]
    pub compress: Compress,
    /// The kind of vmdk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subformat: Option<Subformat>,
    /// Options of a qcow2 file; what's left out is as the pool has it.
    #[serde(
        default,
        deserialize_with = "named::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub qcow2: Option<Qcow2Options>,
}

/// A disk that was converted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Converted {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// What the new file takes, in bytes.
    pub actual_size: u64,
}

impl Params for Convert {
    type Fields = Self;
    type Output = Converted;
    const NAME: &'static str = "convert";
    const LONG: bool = true;

    fn check(fields: Self) -> Result<Self, JobError> {
        if fields.to == fields.disk {
            return Err(JobError::invalid_params("to", "must be another disk"));
        }
        let qcow2 = fields.qcow2.as_ref();
        check_options(fields.format, fields.compress, fields.subformat, qcow2)?;
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        Priority::Low
    }

    fn objects(&self) -> Vec<Object> {
        vec![(&self.disk).into(), (&self.to).into()]
    }
}

/// Writes an overlay's content into its backing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The overlay.
    pub disk: DiskId,
    /// Whether it goes; else it stays, empty.
    #[serde(default)]
    pub delete: bool,
}

/// What was written into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Committed {
    /// The disk below.
    pub backing: DiskId,
}

plain!(Commit => Committed, "commit", Low, [disk], LONG: bool = true);

/// Puts a disk onto another backing, its content unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::rebase)]
pub struct Rebase {
    /// The disk.
    pub disk: DiskId,
    /// The new backing; null makes the disk stand by itself.
    #[serde(deserialize_with = "said")]
    pub backing: Option<DiskId>,
}

/// What a disk now stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rebased {
    /// The disk below, if any.
    pub backing: Option<DiskId>,
}

/// A field that must be there, though it may be null: flattening is never done by omission.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DiskId>, D::Error> {
    Option::deserialize(deserializer)
}

impl Params for Rebase {
    type Fields = Self;
    type Output = Rebased;
    const NAME: &'static str = "rebase";
    const LONG: bool = true;

    fn check(fields: Self) -> Result<Self, JobError> {
        if fields.backing.as_ref() == Some(&fields.disk) {
            return Err(JobError::invalid_params("backing", "must be another disk"));
        }
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        Priority::Low
    }

    fn objects(&self) -> Vec<Object> {
        let ids = std::iter::once(&self.disk).chain(&self.backing);
        ids.map(Object::from).collect()
    }
}

/// Gives back the room that a disk's free blocks take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sparsify {
    /// The disk.
    pub disk: DiskId,
}

/// What a file took and takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sparsified {
    /// In bytes, before.
    pub before: u64,
    /// In bytes, after.
    pub after: u64,
}

plain!(Sparsify => Sparsified, "sparsify", Low, [disk], LONG: bool = true);

/// Measures a disk and looks for damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckDisk {
    /// The disk.
    pub disk: DiskId,
    /// What is put right.
    #[serde(default)]
    pub repair: Repair,
}

/// What a check puts right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Room that nothing refers to.
    Leaks,
    /// Everything that can be.
    All,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checked {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub actual_size: u64,
    /// Clusters that nothing refers to.
    pub leaks: u64,
    /// Damages.
    pub corruptions: u64,
}

plain!(CheckDisk => Checked, "check_disk", Low, [disk]);
