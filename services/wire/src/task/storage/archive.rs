//! `archive_disk`, `unarchive_disk`, `adopt_disk`, `adopt_media`, `move_disk`.

use crate::error::JobError;
use crate::id::{DiskId, Label, MediaId};
use crate::queue::Priority;
use crate::task::image::{ImageFormat, MediaFormat};
use crate::task::object::Object;
use crate::task::params::{Home, Params, plain};
use crate::task::{schema, value::FileName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Moves a disk, compressed, to the pool's archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveDisk {
    /// The disk.
    pub disk: DiskId,
}

/// A disk in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Archived {
    /// What it takes there, in bytes.
    pub archived_size: u64,
}

plain!(ArchiveDisk => Archived, "archive_disk", Low, [disk], LONG: bool = true);

/// Brings a disk back from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnarchiveDisk {
    /// The disk.
    pub disk: DiskId,
}

/// A disk that is back from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unarchived {
    /// What its file takes, in bytes.
    pub actual_size: u64,
}

plain!(UnarchiveDisk => Unarchived, "unarchive_disk", Default, [disk], LONG: bool = true);

/// Registers a file that is in the pool already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::adopt_disk)]
pub struct AdoptDisk {
    /// The disk it becomes.
    pub disk: DiskId,
    /// The format of the file.
    pub format: ImageFormat,
    /// Its name in the pool's folder `adopt`; when left out, it's at its place already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileName>,
    /// The disk it's an overlay of, adopted before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<DiskId>,
}

/// What was adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Adopted<F> {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// The format of its file.
    pub format: F,
}

impl Params for AdoptDisk {
    type Fields = Self;
    type Output = Adopted<ImageFormat>;
    const NAME: &'static str = "adopt_disk";

    fn check(fields: Self) -> Result<Self, JobError> {
        if fields.backing.as_ref() == Some(&fields.disk) {
            return Err(JobError::invalid_params("backing", "must be another disk"));
        }
        if fields.backing.is_some() && fields.format != ImageFormat::Qcow2 {
            return Err(JobError::invalid_params(
                "format",
                "must be qcow2 with backing",
            ));
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

/// Registers a medium's file that is in the pool already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptMedia {
    /// The medium it becomes.
    pub media: MediaId,
    /// The format of the file.
    pub format: MediaFormat,
    /// Its name in the pool's folder `adopt`; when left out, it's at its place already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileName>,
}

plain!(AdoptMedia => Adopted<MediaFormat>, "adopt_media", Low, [media]);

/// Moves a disk to another pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveDisk {
    /// The disk.
    pub disk: DiskId,
    /// Where to.
    pub pool: Label,
    /// Whether all disks of its tree move together; a disk with backing or children needs it.
    #[serde(default)]
    pub tree: bool,
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// The disks.
    pub moved: Vec<DiskId>,
    /// What was copied, in bytes.
    pub bytes: u64,
}

plain!(MoveDisk => Moved, "move_disk", Low, [disk], LONG: bool = true, HOME: Home = Home::Pair);
