//! The settings of a worker's loop.

use crate::{
    pressure::PressureConfig,
    slots::{InvalidSlots, SlotsConfig},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use virtbus_wire::task::{Silence, Task};

/// The settings of a worker's loop.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkConfig {
    /// Jobs that run at once.
    pub slots: u32,
    /// Of them, kept for short jobs of priority `high`.
    pub reserved_high: u32,
    /// Long jobs that run at once.
    pub long_max: u32,
    /// Jobs of priority `low` that run even while there are more urgent ones; 0 = strict.
    pub low_floor: u32,
    /// Whether the tools and copies of long jobs stand still while short jobs of priority `high` run:
    /// for at most half of the time, and 5 s at a stretch.
    pub make_way: bool,
    /// Seconds that running jobs get to finish when the worker is stopped.
    pub drain_s: u64,
    /// Seconds without progress, or output of a tool, after which a quick job is stopped and tried
    /// again; 0 = never.
    pub stall_s: u64,
    /// The same for jobs that work through whole images.
    pub stall_long_s: u64,
    /// When long jobs wait because the machine is short of disk or memory.
    pub pressure: PressureConfig,
}

impl Default for WorkConfig {
    fn default() -> Self {
        let SlotsConfig {
            slots,
            reserved_high,
            long_max,
            low_floor,
        } = SlotsConfig::default();
        Self {
            slots,
            reserved_high,
            long_max,
            low_floor,
            make_way: true,
            drain_s: 20,
            stall_s: 600,
            stall_long_s: 3600,
            pressure: PressureConfig::default(),
        }
    }
}

impl WorkConfig {
    /// How long a task may be silent; none = for ever.
    pub(crate) fn silence(&self, task: &Task) -> Option<Duration> {
        let seconds = match task.silence() {
            Silence::Any => 0,
            Silence::Short => self.stall_s,
            Silence::Long => self.stall_long_s,
        };
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// Its slots, checked: every kind of job can run.
    ///
    /// # Errors
    /// The setting that keeps a kind from running.
    pub fn slots(&self) -> Result<SlotsConfig, InvalidSlots> {
        let Self {
            slots,
            reserved_high,
            long_max,
            low_floor,
            ..
        } = *self;
        let slots = SlotsConfig {
            slots,
            reserved_high,
            long_max,
            low_floor,
        };
        slots.check()?;
        Ok(slots)
    }
}
