//! `resize` and `commit` of a disk that a running domain has: live, through libvirt.

use crate::id::{DiskId, DomainId};
use crate::task::params::{Home, plain};
pub use crate::task::storage::{Committed, Resized};
use crate::task::value::DiskSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sets a disk's virtual size while its domain runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The domain that has the disk.
    pub domain: DomainId,
    /// The disk.
    pub disk: DiskId,
    /// The size it shall have, whatever it has now; never smaller.
    pub size: DiskSize,
}

plain!(Resize => Resized, "resize", Default, [domain, disk], HOME: Home = Home::Host);

/// Writes an overlay's content into its backing while its domain runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The domain that has the disk.
    pub domain: DomainId,
    /// The overlay.
    pub disk: DiskId,
}

plain!(Commit => Committed, "commit", Default, [domain, disk],
    LONG: bool = true, HOME: Home = Home::Host);
