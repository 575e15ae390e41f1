//! `virtbus.pools.*`, `disks`, `media`, `domains`, `hypervisors`, `workers`.

use super::jobs::ListLimit;
use crate::catalog::{
    DiskRecord, DomainRecord, HypervisorRecord, MediaRecord, PoolRecord, QueueRecord, WorkerRecord,
};
use crate::control::Since;
use crate::id::{DiskId, DomainId, Label, MediaId, Tenant, WorkerId};
use crate::task::Target;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A request about one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolName {
    /// The pool.
    pub pool: Label,
}

/// All pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolList {
    /// The pools.
    pub pools: Vec<PoolRecord>,
}

/// Asks where a disk or a medium is: a key of that name.
pub type LookUp = Target;

/// Where a disk or a medium is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Location {
    /// The pool that has it.
    pub pool: Label,
}

/// A request about one disk, medium or domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ById<I> {
    /// Its id.
    pub id: I,
}

/// Lists disks, media or domains. What is left out doesn't matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
// A state that may be left out needs no default of its own.
#[serde(bound(deserialize = "S: Deserialize<'de>"))]
pub struct ListOf<S> {
    /// In this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Label>,
    /// In this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<S>,
    /// Of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Not used since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_since: Option<Since>,
    /// How many at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ListLimit>,
    /// Where an earlier list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A disk with its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskRow {
    /// The id.
    pub id: DiskId,
    /// The record.
    #[serde(flatten)]
    pub disk: DiskRecord,
}

/// A list of disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskList {
    /// The disks.
    pub disks: Vec<DiskRow>,
    /// Where it goes on; none at the end.
    pub cursor: Option<String>,
}

/// A medium with its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MediaRow {
    /// The id.
    pub id: MediaId,
    /// The record.
    #[serde(flatten)]
    pub media: MediaRecord,
}

/// A list of media.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MediaList {
    /// The media.
    pub media: Vec<MediaRow>,
    /// Where it goes on; none at the end.
    pub cursor: Option<String>,
}

/// A domain with its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainRow {
    /// The id.
    pub id: DomainId,
    /// The record.
    #[serde(flatten)]
    pub domain: DomainRecord,
}

/// A list of domains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainList {
    /// The domains.
    pub domains: Vec<DomainRow>,
    /// Where it goes on; none at the end.
    pub cursor: Option<String>,
}

/// A request about one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HypervisorName {
    /// The host.
    pub hypervisor: Label,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A host with its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HypervisorRow {
    /// The id.
    pub hypervisor: Label,
    /// The record.
    #[serde(flatten)]
    pub host: HypervisorRecord,
}

/// All hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HypervisorList {
    /// The hosts.
    pub hypervisors: Vec<HypervisorRow>,
}

/// Somebody's word that a host is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fence {
    /// The host.
    pub hypervisor: Label,
    /// Why, for people.
    pub reason: String,
    /// Whether what should run is started elsewhere.
    #[serde(default)]
    pub restart: bool,
}

/// What a fence set free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FenceOutcome {
    /// Domains that are off now.
    pub domains: Vec<DomainId>,
    /// Domains that are being started elsewhere.
    pub restarted: Vec<DomainId>,
}

/// A request about one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerName {
    /// The worker.
    pub worker: WorkerId,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to a drain of a worker or to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drained {
    /// The worker.
    pub worker: WorkerId,
    /// Whether it's to take no more jobs.
    pub drained: bool,
}

/// A worker as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerRow {
    /// Its last beat.
    #[serde(flatten)]
    pub beat: WorkerRecord,
    /// How old that is, in seconds.
    pub age_s: u64,
    /// Whether its lease is out.
    pub lost: bool,
    /// Who drained it, why and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<QueueRecord>,
}

/// All workers, those lost in the last day too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerList {
    /// The workers.
    pub workers: Vec<WorkerRow>,
    /// Those that are drained, also when they were away for longer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drained: BTreeMap<WorkerId, QueueRecord>,
}
