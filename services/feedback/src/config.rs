//! The feedback service's own settings.

use serde::{Deserialize, Serialize};
use virtbus_daemon::{Common, Problem, Settings};
use virtbus_worker::WorkConfig;

/// All of them.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What is kept in memory.
    pub(crate) view: View,
    /// How much browsers may ask for.
    pub(crate) limits: Limits,
    /// The work of the queue `core`.
    pub(crate) work: WorkConfig,
}

/// What is kept in memory, beside all jobs that haven't ended.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct View {
    /// Jobs that have ended.
    pub(crate) ended_max: usize,
    /// Records that are gone: who was away knows from them what to drop.
    pub(crate) gone_max: usize,
}

impl Default for View {
    fn default() -> Self {
        Self {
            ended_max: 5_000,
            gone_max: 20_000,
        }
    }
}

/// How much browsers may ask for.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Websockets at once.
    pub(crate) sessions_max: usize,
    /// Websockets of one user at once.
    pub(crate) sessions_per_user_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 12_000,
            sessions_per_user_max: 8,
        }
    }
}

impl Settings for Config {
    fn check(&self, _: &Common) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(error) = self.work.slots() {
            problems.push(Problem::new("work", error));
        }
        let numbers = [
            ("limits.sessions_max", self.limits.sessions_max),
            (
                "limits.sessions_per_user_max",
                self.limits.sessions_per_user_max,
            ),
        ];
        let zeroes = numbers.into_iter().filter(|(_, number)| *number == 0);
        problems.extend(zeroes.map(|(field, _)| Problem::new(field, "must be at least 1")));
        problems
    }
}
