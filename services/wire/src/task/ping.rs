//! `ping`, which every class knows: canary and benchmark.

use super::params::plain;
use super::value::Bounded;
use crate::id::{BootId, WorkerId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest a ping may sleep, in milliseconds.
pub const PING_SLEEP_MS_MAX: u64 = 600_000;

/// Asks a worker to show that it works.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// How long the work takes, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_ms: Option<Bounded<0, PING_SLEEP_MS_MAX>>,
    /// Whether it ends with `tool.failed`.
    #[serde(default)]
    pub fail: bool,
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pong {
    /// Who answered.
    pub worker: WorkerId,
    /// Which start of it.
    pub boot: BootId,
    /// What was looked at, such as the pools.
    pub checks: Vec<String>,
}

plain!(Ping => Pong, "ping", Default, []);
