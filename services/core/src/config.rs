//! The settings that only this service has.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use virtbus_daemon::{Common, Problem, Settings};
use virtbus_wire::{catalog::TenantLimits, span::Span};

/// Settings of `virtbus-core`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoreSettings {
    /// What becomes of old records.
    pub jobs: JobSettings,
    /// What is limited.
    pub limits: LimitSettings,
}

/// What is limited.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// How many jobs of one tenant may run at once, by class; 0 = as many as there is room for.
    pub tenant_max_running: TenantLimits,
}

/// What becomes of old records.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobSettings {
    /// How long the record of a final job stays, whoever ended it: workers read it where core
    /// writes it.
    pub keep: Span,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            keep: Span::days(30),
        }
    }
}

impl Settings for CoreSettings {
    fn check(&self, _: &Common) -> Vec<Problem> {
        let too_short = self.jobs.keep.duration() < Duration::from_secs(60);
        let problem = too_short.then(|| Problem::new("jobs.keep", "is less than a minute"));
        problem.into_iter().collect()
    }
}
