//! `create_disk`, `resize`, `delete_disk`, `restore_disk`, `delete_media`.

use crate::error::JobError;
use crate::id::{DiskId, MediaId};
use crate::queue::Priority;
use crate::task::image::{Compress, DiskFormat, Qcow2Options, check_options};
use crate::task::object::Object;
use crate::task::params::{Params, plain};
use crate::task::{named, schema, value::DiskSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Makes an empty disk, or an overlay of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::create_disk)]
pub struct CreateDisk {
    /// The new disk.
    pub disk: DiskId,
    /// Its virtual size; that of the backing when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<DiskSize>,
    /// The format of its file.
    #[serde(default)]
    pub format: DiskFormat,
    /// The disk it's an overlay of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<DiskId>,
    /// How much room is taken at once.
    #[serde(default)]
    pub preallocation: Preallocation,
    /// Options of a qcow2 file; what's left out is as the pool has it.
    #[serde(
        default,
        deserialize_with = "named::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub qcow2: Option<Qcow2Options>,
}

/// How much room a new disk takes at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// That of qcow2's tables.
    Metadata,
    /// All, without writing it.
    Falloc,
    /// All, written with zeros.
    Full,
}

/// A disk that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Created {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub actual_size: u64,
    /// The format of its file.
    pub format: DiskFormat,
}

impl Params for CreateDisk {
    type Fields = Self;
    type Output = Created;
    const NAME: &'static str = "create_disk";

    fn check(fields: Self) -> Result<Self, JobError> {
        let refuse = |field, why| Err(JobError::invalid_params(field, why));
        if fields.size.is_none() && fields.backing.is_none() {
            return refuse("size", "is required without backing");
        }
        if fields.backing.as_ref() == Some(&fields.disk) {
            return refuse("backing", "must be another disk");
        }
        if fields.backing.is_some() && fields.format != DiskFormat::Qcow2 {
            return refuse("format", "must be qcow2 with backing");
        }
        if fields.backing.is_some() && fields.preallocation != Preallocation::Off {
            return refuse("preallocation", "must be off with backing");
        }
        if fields.preallocation == Preallocation::Metadata && fields.format != DiskFormat::Qcow2 {
            return refuse("preallocation", "metadata is only for format qcow2");
        }
        check_options(
            fields.format.into(),
            Compress::None,
            None,
            fields.qcow2.as_ref(),
        )?;
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        Priority::High
    }

    fn objects(&self) -> Vec<Object> {
        let ids = std::iter::once(&self.disk).chain(&self.backing);
        ids.map(Object::from).collect()
    }
}

/// Sets a disk's virtual size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The disk.
    pub disk: DiskId,
    /// The size it shall have, whatever it has now.
    pub size: DiskSize,
    /// Whether it may become smaller: what lies beyond is lost.
    #[serde(default)]
    pub shrink: bool,
}

/// A disk's size, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resized {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
}

plain!(Resize => Resized, "resize", Default, [disk]);

/// How something is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeleteMode {
    /// Kept in the trash for some days.
    #[default]
    Trash,
    /// Removed at once.
    Unlink,
    /// Overwritten, then removed.
    Wipe,
}

/// Deletes a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteDisk {
    /// The disk.
    pub disk: DiskId,
    /// How.
    #[serde(default)]
    pub mode: DeleteMode,
    /// Whether all disks above it go too, children first, all or none.
    #[serde(default)]
    pub tree: bool,
}

/// Room that is free again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Freed {
    /// In bytes; 0 when nothing was there, or it's in the trash.
    pub freed: u64,
}

plain!(DeleteDisk => Freed, "delete_disk", Low, [disk]);

/// Deletes a medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteMedia {
    /// The medium.
    pub media: MediaId,
    /// How.
    #[serde(default)]
    pub mode: DeleteMode,
}

plain!(DeleteMedia => Freed, "delete_media", Low, [media]);

/// Takes a disk out of the trash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreDisk {
    /// The disk.
    pub disk: DiskId,
}

/// A disk that is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restored {
    /// What the file takes, in bytes.
    pub actual_size: u64,
}

plain!(RestoreDisk => Restored, "restore_disk", Default, [disk]);
