//! What the buckets of the catalogue hold: disks, media, domains, pools, hosts, workers, queues,
//! transfers. Keys are ids; a record doesn't repeat its key.

mod place;

pub use place::{
    DRAIN_PREFIX, HypervisorRecord, HypervisorState, LIMITS_KEY, LimitsRecord, PoolRecord,
    PoolState, QueueRecord, TenantLimits, TransferKind, TransferRecord, WorkerRecord, drain_key,
};

use crate::error::{Code, JobError};
use crate::id::{DiskId, DomainId, JobId, Label, MediaId, SnapshotId, Tenant, User};
use crate::task::hypervisor::{DomainState, Graphics};
use crate::task::image::{ImageFormat, MediaFormat};
use crate::task::value::Sha256;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most disks of a chain: qemu opens each of them.
pub const CHAIN_MAX: usize = 32;

/// Lets a chain grow to so many disks, with one on top of which something comes, or lies.
///
/// # Errors
/// `pool.unsupported`.
pub fn admit_depth(disk: &DiskId, disks: usize) -> Result<(), JobError> {
    if disks <= CHAIN_MAX {
        return Ok(());
    }
    let text = "the chain of disks would be too long";
    Err(JobError::new(Code::PoolUnsupported, text)
        .with("disk", disk.as_str())
        .with("chain_max", CHAIN_MAX))
}

/// The state of a disk or a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// A job makes it.
    Creating,
    /// Its bytes are awaited.
    Uploading,
    /// It can be used.
    Ready,
    /// A job changes its bytes.
    Changing,
    /// A job moves it to the archive.
    Archiving,
    /// It's in the archive.
    Archived,
    /// It's in the trash.
    Trashed,
    /// Its file isn't there.
    Missing,
    /// Its file is damaged.
    Broken,
    /// It's gone; its id is never used again.
    Deleted,
}

impl DiskState {
    /// The name as it stands in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Uploading => "uploading",
            Self::Ready => "ready",
            Self::Changing => "changing",
            Self::Archiving => "archiving",
            Self::Archived => "archived",
            Self::Trashed => "trashed",
            Self::Missing => "missing",
            Self::Broken => "broken",
            Self::Deleted => "deleted",
        }
    }
}

/// Who holds a disk or a medium without a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum InUseBy {
    /// A domain, from before it starts until its host has seen it stop.
    Domain {
        /// The domain.
        domain: DomainId,
        /// Its host.
        hypervisor: Label,
        /// Whether it writes.
        mode: UseMode,
    },
    /// A download, until it expires.
    Job {
        /// The job that made it.
        job: JobId,
        /// When it ends.
        expires_at: Timestamp,
    },
}

/// How a domain holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UseMode {
    /// It writes.
    Exclusive,
    /// It only reads.
    Shared,
}

/// A record of bucket `disks`: what is trusted of a disk, whatever its file claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskRecord {
    /// The pool its file is in.
    pub pool: Label,
    /// The format of its file.
    pub format: ImageFormat,
    /// What a guest sees, in bytes; none while it's being made.
    #[serde(default)]
    pub virtual_size: Option<u64>,
    /// What its file takes, in bytes, when last measured.
    #[serde(default)]
    pub actual_size: Option<u64>,
    /// The disk below.
    #[serde(default)]
    pub backing: Option<DiskId>,
    /// The disks above.
    #[serde(default)]
    pub children: Vec<DiskId>,
    /// Whether it can be used.
    pub state: DiskState,
    /// Snapshots inside its file.
    #[serde(default)]
    pub snapshots: Vec<SnapshotId>,
    /// Who holds it without a lock.
    #[serde(default)]
    pub in_use_by: Vec<InUseBy>,
    /// The job that changes it, or did last; none if it was found damaged.
    #[serde(default)]
    pub owner_job: Option<JobId>,
    /// One more with each intent to change it.
    #[serde(default)]
    pub epoch: u64,
    /// The tenant it belongs to.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// The user it belongs to.
    #[serde(default)]
    pub user: Option<User>,
    /// The hash of the bytes it came as, if it came from outside.
    #[serde(default)]
    pub sha256: Option<Sha256>,
    /// When a job or a domain last used it.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
    /// When this record was written.
    pub updated_at: Timestamp,
}

impl DiskRecord {
    /// Whether it's what a commit of the disk above left half written, which that one hides: it's
    /// broken, nobody else reads it, and no other job has changed either of them since.
    #[must_use]
    pub fn is_half_written_from(&self, (above_id, above): (&DiskId, &Self)) -> bool {
        self.state == DiskState::Broken
            && self.children == [above_id.clone()]
            && self.owner_job.is_some()
            && self.owner_job == above.owner_job
    }

    /// Whether it's broken since a job left its bytes between two states, or nobody knows in which.
    /// (What is found damaged names no job.)
    #[must_use]
    pub fn is_left_by_a_job(&self) -> bool {
        self.state == DiskState::Broken && self.owner_job.is_some()
    }
}

/// A record of bucket `media`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MediaRecord {
    /// The pool its file is in.
    pub pool: Label,
    /// The format of its file.
    pub format: MediaFormat,
    /// What a guest sees, in bytes; none while it's being made.
    #[serde(default)]
    pub virtual_size: Option<u64>,
    /// What its file takes, in bytes, when last measured.
    #[serde(default)]
    pub actual_size: Option<u64>,
    /// Whether it can be used.
    pub state: DiskState,
    /// Who holds it without a lock.
    #[serde(default)]
    pub in_use_by: Vec<InUseBy>,
    /// The job that changes it, or did last.
    #[serde(default)]
    pub owner_job: Option<JobId>,
    /// One more with each intent to change it.
    #[serde(default)]
    pub epoch: u64,
    /// The tenant it belongs to.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// The user it belongs to.
    #[serde(default)]
    pub user: Option<User>,
    /// The hash of its bytes.
    #[serde(default)]
    pub sha256: Option<Sha256>,
    /// When a job or a domain last used it.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
    /// When this record was written.
    pub updated_at: Timestamp,
}

/// What a domain should be: it's started again elsewhere, or left off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// On.
    Running,
    /// Off.
    Shutoff,
}

/// A record of bucket `domains`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainRecord {
    /// libvirt's own id of it.
    pub uuid: uuid::Uuid,
    /// The pool of its disks.
    pub pool: Label,
    /// The host it's on, or was on last.
    #[serde(default)]
    pub hypervisor: Option<Label>,
    /// What it is.
    pub state: DomainState,
    /// What it should be.
    pub desired: Desired,
    /// As it was defined last: libvirt's XML, disks and media named as volumes.
    #[serde(default)]
    pub xml: Option<String>,
    /// How it's seen, while it runs.
    #[serde(default)]
    pub graphics: Option<Graphics>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskId>,
    /// Its media.
    #[serde(default)]
    pub media: Vec<MediaId>,
    /// Its snapshots.
    #[serde(default)]
    pub snapshots: Vec<SnapshotId>,
    /// The tenant it belongs to.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// The user it belongs to.
    #[serde(default)]
    pub user: Option<User>,
    /// The job that changes it, or did last.
    #[serde(default)]
    pub owner_job: Option<JobId>,
    /// One more with each intent to change it.
    #[serde(default)]
    pub epoch: u64,
    /// When it was last started.
    #[serde(default)]
    pub last_started_at: Option<Timestamp>,
    /// When this record was written.
    pub updated_at: Timestamp,
}
