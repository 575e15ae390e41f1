//! Where work is done: pools, hosts, workers, queues, and transfers under way.

use crate::id::{BootId, JobId, Label, WorkerId};
use crate::queue::{Class, Queue};
use crate::size::Size;
use crate::span::Span;
use crate::task::image::Qcow2Options;
use crate::task::object::Target;
use crate::task::value::{Sha256, Token};
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether a pool takes jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// All.
    #[default]
    Enabled,
    /// No new disks.
    Draining,
    /// None.
    Disabled,
}

/// A record of bucket `pools`, and the request that registers or changes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolRecord {
    /// Its name.
    pub pool: Label,
    /// How much of what is new it gets, compared to others.
    #[serde(default = "weight")]
    pub weight: u32,
    /// The kinds of disk it's for.
    #[serde(default)]
    pub flavours: Vec<Token>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<Token>,
    /// Whether it takes jobs.
    #[serde(default)]
    pub state: PoolState,
    /// Whether it's taken when nobody says which.
    #[serde(default)]
    pub default: bool,
    /// The address that transfers of its disks go to.
    #[serde(default)]
    pub transfer_url: Option<String>,
    /// How long a deleted disk stays in the trash.
    #[serde(default = "a_week")]
    pub trash_keep: Span,
    /// The largest virtual size of a disk.
    #[serde(default)]
    pub size_max: Option<Size>,
    /// What new qcow2 files are like where a job doesn't say.
    #[serde(default)]
    pub qcow2: Qcow2Options,
}

const fn weight() -> u32 {
    100
}

const fn a_week() -> Span {
    Span::days(7)
}

/// Whether a host takes jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorState {
    /// It does.
    #[default]
    Up,
    /// It starts no more domains.
    Draining,
    /// Somebody gave their word that it's off.
    Fenced,
}

/// A record of bucket `hypervisors`, written by the host's own service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HypervisorRecord {
    /// The pool whose domains it runs.
    pub pool: Label,
    /// The worker that speaks for it.
    pub worker: WorkerId,
    /// The host's name.
    pub host: String,
    /// Whether it takes jobs.
    #[serde(default)]
    pub state: HypervisorState,
    /// Who drained, undrained or fenced it last, as far as that was said.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its processors.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Its memory, in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<Token>,
    /// When this record was written.
    pub updated_at: Timestamp,
}

/// A record of bucket `workers`: the lease of one worker. It's gone when no beat comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerRecord {
    /// Its id, which is also the key: a list of these stands by itself.
    pub worker: WorkerId,
    /// This start of its process.
    pub boot: BootId,
    /// What jobs it takes.
    pub class: Class,
    /// The host's name.
    pub host: String,
    /// The pools it has.
    #[serde(default)]
    pub pools: Vec<Label>,
    /// Bytes free in them, as far as it could look.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub free: BTreeMap<Label, u64>,
    /// The queues it takes jobs from.
    #[serde(default)]
    pub queues: Vec<Queue>,
    /// How many jobs it can run at once.
    pub slots: u32,
    /// How many it runs.
    pub busy: u32,
    /// Versions of itself and its tools, by name.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<Token>,
    /// Whether it takes no more jobs.
    #[serde(default)]
    pub draining: bool,
    /// When its process started.
    pub started_at: Timestamp,
    /// When this beat was sent.
    pub at: Timestamp,
}

/// The key in bucket `queues` that says whether a worker is drained: there a [`QueueRecord`] with
/// `paused` stands for a worker that takes no more jobs, whether it's there or away.
#[must_use]
pub fn drain_key(worker: &WorkerId) -> String {
    format!("{DRAIN_PREFIX}{worker}")
}

/// What [`drain_key`] begins with. No queue's subject begins like that.
pub const DRAIN_PREFIX: &str = "_worker.";

/// The key in bucket `pools` of the [`LimitsRecord`]. No pool's name begins like that.
pub const LIMITS_KEY: &str = "_limits";

/// What core's configuration says to all services: it's configured once, there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsRecord {
    /// How many jobs of one tenant may run at once.
    #[serde(default)]
    pub tenant_max_running: TenantLimits,
    /// How long the record of a final job stays; none = as long as is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs_keep: Option<Span>,
}

/// How many jobs of one tenant may run at once, by class; 0 = as many as there is room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// On storage services.
    pub storage: u32,
    /// On hypervisor services.
    pub hypervisor: u32,
}

impl TenantLimits {
    /// The limit of a class; none where there is none.
    #[must_use]
    pub fn of(self, class: Class) -> Option<u32> {
        let limit = match class {
            Class::Storage => self.storage,
            Class::Hypervisor => self.hypervisor,
            Class::Core => 0,
        };
        (limit > 0).then_some(limit)
    }
}

/// A record of bucket `queues`, under the queue's subject, or under [`drain_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueRecord {
    /// Whether its jobs stay where they are.
    pub paused: bool,
    /// Who said so.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TransferKind {
    /// Bytes come in.
    Upload,
    /// Bytes go out.
    Download,
}

/// A record of bucket `transfers`. Its key is derived from the URL's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransferRecord {
    /// The direction.
    pub kind: TransferKind,
    /// The job that made it.
    pub job: JobId,
    /// The pool that has the bytes.
    pub pool: Label,
    /// What is filled or read.
    pub target: Target,
    /// How many bytes there are in all, if known.
    #[serde(default)]
    pub size: Option<u64>,
    /// The most bytes that are taken.
    #[serde(default)]
    pub size_max: Option<u64>,
    /// How many bytes came.
    #[serde(default)]
    pub received: u64,
    /// The hash of all bytes, if known.
    #[serde(default)]
    pub sha256: Option<Sha256>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When this record was written.
    pub updated_at: Timestamp,
}
