//! What qemu-img answers, as far as we look at it.

use crate::gate::Measured;
use serde::Deserialize;
use virtbus_wire::{
    Size,
    task::{
        image::{Compat, Qcow2Options},
        value::ClusterSize,
    },
};

/// The part of `info` that we look at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub actual_size: u64,
    /// The format it was opened as.
    pub format: String,
    /// The backing's name as it stands in the header.
    #[serde(default)]
    pub backing_filename: Option<String>,
    /// The backing's format as it stands in the header.
    #[serde(default)]
    pub backing_filename_format: Option<String>,
    /// The snapshots inside the file.
    #[serde(default)]
    pub snapshots: Vec<Kept>,
    /// The unit of allocation, in bytes.
    #[serde(default)]
    pub cluster_size: Option<u64>,
    /// What only files of its format have.
    #[serde(default)]
    pub format_specific: Option<Specific>,
}

/// What `info` says of a file's format.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Specific {
    /// The options that a qcow2 was made with; those of other formats aren't looked at.
    #[serde(default)]
    pub data: Made,
}

/// The options that a qcow2 was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Made {
    /// The version of the format.
    #[serde(default)]
    pub compat: Option<String>,
    /// Whether clusters are allocated in parts.
    #[serde(default)]
    pub extended_l2: Option<bool>,
    /// Whether reference counts may be written late.
    #[serde(default)]
    pub lazy_refcounts: Option<bool>,
}

impl Info {
    /// How large the image is.
    #[must_use]
    pub fn measured(&self) -> Measured {
        Measured {
            virtual_size: self.virtual_size,
            actual_size: self.actual_size,
        }
    }

    /// The options for another qcow2 like this one.
    #[must_use]
    pub fn qcow2_options(&self) -> Qcow2Options {
        let made = self.format_specific.as_ref().map(|specific| &specific.data);
        let version = made.and_then(|made| made.compat.as_deref());
        Qcow2Options {
            cluster_size: self
                .cluster_size
                .and_then(|size| ClusterSize::new(Size::from_bytes(size).ok()?)),
            extended_l2: made.and_then(|made| made.extended_l2),
            lazy_refcounts: made.and_then(|made| made.lazy_refcounts),
            compat: match version {
                Some("0.10") => Some(Compat::V2),
                Some("1.1") => Some(Compat::V3),
                Some(_) | None => None,
            },
        }
    }
}

/// A snapshot inside a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// The format's own number for it.
    pub id: String,
    /// Its name, whoever gave it.
    pub name: String,
}

/// What `check` found, and didn't put right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Health {
    /// Clusters that nothing refers to.
    #[serde(default)]
    pub leaks: u64,
    /// Damages.
    #[serde(default)]
    pub corruptions: u64,
}

/// What `measure` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measure {
    /// Bytes for what is there now.
    pub required: u64,
    /// Bytes once everything is written.
    pub fully_allocated: u64,
}
