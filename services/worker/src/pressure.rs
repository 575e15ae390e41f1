//! Long jobs wait while the machine is short of disk or memory.
//!
//! The kernel says which share of the last ten seconds something waited for the disk, or for memory
//! (`/proc/pressure`). Above a limit no further long job starts, until it's well below again: two
//! limits, so that a value that wavers doesn't switch with each look. Pressure that stays may come
//! from others, who don't make way for us; so after a while long jobs start one at a time.

use crate::slots::Slots;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use tokio::{
    fs,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

/// How often it's looked.
const LOOK: Duration = Duration::from_secs(2);
/// The share of a limit below which pressure is over.
const OVER: f64 = 2.0 / 3.0;

/// When long jobs wait.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureConfig {
    /// Percent of the time in which something waits for the disk; 0 = never wait for that.
    pub io: u8,
    /// The same for memory.
    pub memory: u8,
    /// Seconds of pressure after which long jobs start nevertheless, one at a time.
    pub wait_s: u64,
    /// Where the kernel tells: a folder with the files `io` and `memory`.
    pub folder: PathBuf,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            io: 90,
            memory: 30,
            wait_s: 60,
            folder: "/proc/pressure".into(),
        }
    }
}

impl PressureConfig {
    /// Long jobs never wait.
    #[must_use]
    pub fn never() -> Self {
        Self {
            io: 0,
            memory: 0,
            ..Self::default()
        }
    }

    fn is_never(&self) -> bool {
        self.io == 0 && self.memory == 0
    }
}

/// Percent of the last ten seconds; none where the kernel doesn't say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Reading {
    io: Option<f64>,
    memory: Option<f64>,
}

/// Whether long jobs wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Brake {
    #[default]
    Off,
    On {
        since: Instant,
    },
}

impl Brake {
    /// What follows from a reading.
    fn next(self, reading: Reading, limits: &PressureConfig, now: Instant) -> Self {
        let beyond = |share: f64| {
            let exceeds = |is: Option<f64>, limit: u8| {
                limit > 0 && is.is_some_and(|is| is >= f64::from(limit) * share)
            };
            exceeds(reading.io, limits.io) || exceeds(reading.memory, limits.memory)
        };
        match self {
            Self::Off if beyond(1.0) => Self::On { since: now },
            Self::Off => Self::Off,
            Self::On { since } if beyond(OVER) => Self::On { since },
            Self::On { .. } => Self::Off,
        }
    }

    /// How many long jobs may run at once, of those that are allowed without pressure.
    fn long_max(self, allowed: u32, limits: &PressureConfig, now: Instant) -> u32 {
        match self {
            Self::Off => allowed,
            Self::On { since } if now - since < Duration::from_secs(limits.wait_s) => 0,
            Self::On { .. } => allowed.min(1),
        }
    }
}

/// `some avg10=3.06 avg60=1.35 …`
fn ten_seconds(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let mut fields = some.split_ascii_whitespace();
    let value = fields.find_map(|field| field.strip_prefix("avg10="))?;
    value
        .parse()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent))
}

async fn read(file: PathBuf) -> Option<f64> {
    let text = fs::read_to_string(file).await;
    ten_seconds(&text.ok()?)
}

/// Watches the machine until what is returned is dropped. Needs a runtime.
pub(crate) fn watch(slots: &Slots, limits: &PressureConfig) -> Option<AbortOnDropHandle<()>> {
    let watching = || tokio::spawn(follow(slots.clone(), limits.clone()));
    (!limits.is_never()).then(|| AbortOnDropHandle::new(watching()))
}

async fn follow(slots: Slots, limits: PressureConfig) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut brake = Brake::default();
    loop {
        looks.tick().await;
        let reading = Reading {
            io: read(limits.folder.join("io")).await,
            memory: read(limits.folder.join("memory")).await,
        };
        if reading == Reading::default() {
            tracing::info!("the kernel doesn't tell of pressure: long jobs never wait for it");
            return;
        }
        let now = Instant::now();
        let next = brake.next(reading, &limits, now);
        match (brake, next) {
            (Brake::Off, Brake::On { .. }) => {
                tracing::info!(?reading, "long jobs wait: the machine is under pressure");
            }
            (Brake::On { .. }, Brake::Off) => tracing::info!("long jobs start again"),
            (Brake::Off, Brake::Off) | (Brake::On { .. }, Brake::On { .. }) => {}
        }
        brake = next;
        slots.allow_long(brake.long_max(slots.long_max(), &limits, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn io(percent: f64) -> Reading {
        Reading {
            io: Some(percent),
            memory: Some(0.0),
        }
    }

    const LIMITS: PressureConfig = PressureConfig {
        io: 60,
        memory: 30,
        wait_s: 10,
        folder: PathBuf::new(),
    };

    #[test]
    fn a_value_that_wavers_does_not_switch_with_each_look() {
        let now = Instant::now();
        let mut brake = Brake::Off;
        let mut seen = Vec::new();
        for percent in [0.0, 59.9, 60.0, 41.0, 59.0, 40.1, 39.9, 59.9, 70.0] {
            brake = brake.next(io(percent), &LIMITS, now);
            seen.push(brake != Brake::Off);
        }
        assert_eq!(
            seen,
            [false, false, true, true, true, true, false, false, true]
        );
    }

    #[test]
    fn pressure_that_stays_lets_one_long_job_run() {
        let began = Instant::now();
        let brake = Brake::Off.next(io(99.0), &LIMITS, began);
        let later = |s| began + Duration::from_secs(s);
        assert_eq!(brake.long_max(4, &LIMITS, began), 0);
        let brake = brake.next(io(99.0), &LIMITS, later(9));
        assert_eq!(brake.long_max(4, &LIMITS, later(9)), 0);
        assert_eq!(brake.long_max(4, &LIMITS, later(10)), 1);
        let brake = brake.next(io(1.0), &LIMITS, later(12));
        assert_eq!(brake.long_max(4, &LIMITS, later(12)), 4);
    }

    #[test]
    fn each_of_the_two_counts_and_can_be_switched_off() {
        let now = Instant::now();
        let reading = Reading {
            io: None,
            memory: Some(31.0),
        };
        assert_ne!(Brake::Off.next(reading, &LIMITS, now), Brake::Off);
        let without = PressureConfig {
            memory: 0,
            ..LIMITS
        };
        assert_eq!(Brake::Off.next(reading, &without, now), Brake::Off);
    }

    #[test]
    fn the_kernels_text_is_read() {
        let text = "some avg10=3.06 avg60=1.35 avg300=1.17 total=781778325\n\
                    full avg10=0.32 avg60=0.46 avg300=0.67 total=158018335\n";
        assert_eq!(ten_seconds(text), Some(3.06));
        for other in ["", "full avg10=1.0", "some avg10=x", "some avg10=101"] {
            assert_eq!(ten_seconds(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn without_pressure_all_long_jobs_may_run_and_never_more(
            readings in prop::collection::vec(0.0..100.0f64, 0..50),
        ) {
            let began = Instant::now();
            let mut brake = Brake::Off;
            for (at, percent) in readings.into_iter().enumerate() {
                let now = began + LOOK * u32::try_from(at).unwrap();
                brake = brake.next(io(percent), &LIMITS, now);
                let allowed = brake.long_max(3, &LIMITS, now);
                prop_assert!(allowed <= 3);
                prop_assert!(percent >= 60.0 * OVER || allowed == 3);
                prop_assert!(percent < 60.0 || allowed <= 1);
            }
        }
    }
}
