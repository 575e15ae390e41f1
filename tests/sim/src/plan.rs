//! What happens in one simulation: made from the seed alone, before it begins.

mod asks;
mod faults;
mod jobs;
mod storm;

use crate::{broker::stream::Ms, chance::Chance, net::Weather};
use serde_json::Value;
use virtbus_wire::Priority;

/// A worker and its slots.
#[derive(Debug, Clone, Copy)]
pub struct WorkerPlan {
    /// Jobs that run at once.
    pub slots: u32,
    /// Of them, kept for `high`.
    pub reserved_high: u32,
    /// Jobs of priority `low` that go before more urgent ones.
    pub low_floor: u32,
}

/// A job that somebody publishes.
#[derive(Debug, Clone)]
pub struct JobPlan {
    /// When.
    pub at: Ms,
    /// Its id.
    pub id: String,
    /// Where.
    pub priority: Priority,
    /// The message.
    pub body: Value,
    /// Published once more, somewhere else, so much later.
    pub copy: Option<(Ms, Priority)>,
}

/// A control request.
#[derive(Debug, Clone)]
pub struct AskPlan {
    /// When.
    pub at: Ms,
    /// Which.
    pub subject: &'static str,
    /// What.
    pub body: Value,
}

impl AskPlan {
    /// Whether without it what another one began would never end.
    #[must_use]
    pub fn ends_another(&self) -> bool {
        self.subject.ends_with(".resume") || self.subject.ends_with(".undrain")
    }
}

/// Something bad.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A process dies and is started again; `unnoticed` as when its host loses power.
    Crash {
        /// How long it's away.
        down: Ms,
        /// The server isn't told.
        unnoticed: bool,
    },
    /// A process is asked to stop, and is started again so much later.
    Stop(Ms),
    /// A process stands still.
    Freeze(Ms),
    /// A process is cut off.
    Cut(Ms),
}

/// One simulation.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was made from.
    pub seed: u64,
    /// Whether many change their minds about one or two jobs.
    pub is_storm: bool,
    /// Its workers.
    pub workers: Vec<WorkerPlan>,
    /// Whether each has queues of its own.
    pub hosts: bool,
    /// How many jobs of one tenant may run at once; 0 = any number.
    pub cap: u32,
    /// How many cores.
    pub cores: usize,
    /// How far each process's clock is ahead.
    pub skews: Vec<Ms>,
    /// How long a message is a worker's without a sign of life.
    pub ack_wait: Ms,
    /// The network while faults happen.
    pub weather: Weather,
    /// What is published.
    pub jobs: Vec<JobPlan>,
    /// What is asked.
    pub asks: Vec<AskPlan>,
    /// Whether one of the jobs kills workers before its work.
    pub is_poisoned: bool,
    /// What goes wrong: when, in which process (workers first), what.
    pub faults: Vec<(Ms, usize, Fault)>,
    /// When everything is well again.
    pub calm_from: Ms,
}

/// What kind of day it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Nothing goes wrong.
    Calm,
    /// Workers stand still in the middle of long jobs, which are cancelled meanwhile.
    Zombies,
    /// Many change their minds about one or two jobs.
    Storm,
    /// Anything happens.
    Mixed,
}

const MOODS: [Mood; 8] = [
    Mood::Calm,
    Mood::Calm,
    Mood::Zombies,
    Mood::Zombies,
    Mood::Storm,
    Mood::Mixed,
    Mood::Mixed,
    Mood::Mixed,
];

/// Disks that are there from the beginning.
pub const SHARED_DISKS: [&str; 2] = ["d-a", "d-b"];

impl Plan {
    /// The simulation of this seed; `begin` is when it begins.
    #[must_use]
    pub fn new(seed: u64, begin: Ms) -> Self {
        let mut chance = Chance::new(seed, "plan");
        let mood = *chance.pick(&MOODS);
        let mut storm = Chance::new(seed, "storm");
        let is_calm = match mood {
            Mood::Calm => true,
            Mood::Storm => storm.permille(500),
            Mood::Zombies | Mood::Mixed => false,
        };
        let workers: Vec<WorkerPlan> = (0..chance.range(1, 4))
            .map(|_| worker(&mut chance))
            .collect();
        let cores = if chance.permille(300) { 2 } else { 1 };
        let span: Ms = *chance.pick(&[3_000, 8_000, 20_000]);
        let count = match mood {
            Mood::Storm => chance.range(1, 3),
            Mood::Calm | Mood::Zombies | Mood::Mixed => chance.range(2, 14),
        };
        let mut jobs: Vec<JobPlan> = (0..count)
            .map(|n| jobs::job(&mut chance, (n, count), (begin, span), mood))
            .collect();
        let after = if mood == Mood::Zombies { 25_000 } else { 5_000 };
        let mut asks = match mood {
            Mood::Storm => storm::asks(&mut storm, &jobs, span),
            Mood::Calm | Mood::Zombies | Mood::Mixed => {
                asks::asks(&mut chance, count, span + after)
            }
        };
        // In a row of its own: what was there before doesn't change by what is added.
        let mut more = Chance::new(seed, "more");
        let (hosts, cap) = (more.permille(250), *more.pick(&[0, 0, 1, 2]));
        for job in &mut jobs {
            jobs::settle(&mut more, &mut job.body, cap, hosts);
        }
        let mut crowd = Chance::new(seed, "crowd");
        if crowd.permille(300) {
            for job in &mut jobs {
                jobs::join(&mut crowd, &mut job.body);
            }
        }
        let mut poison = Chance::new(seed, "poison");
        let is_poisoned = !is_calm && poison.permille(150);
        if is_poisoned {
            jobs::poison(&mut poison, &mut jobs);
        }
        asks.extend(asks::submissions(&mut more, span));
        let processes = workers.len() + cores;
        let skews = (0..processes)
            .map(|_| Ms::try_from(chance.range(0, 1_800)).unwrap_or(0) - 900)
            .collect();
        let faults = match mood {
            _ if is_calm => Vec::new(),
            Mood::Zombies => faults::freezes(&mut chance, workers.len(), span),
            Mood::Calm | Mood::Storm | Mood::Mixed => faults::faults(&mut chance, processes, span),
        };
        let ends = faults.iter().map(|(at, _, fault)| {
            at + match fault {
                Fault::Crash { down, .. } => *down,
                Fault::Stop(long) | Fault::Freeze(long) | Fault::Cut(long) => *long,
            }
        });
        let calm_from = ends.max().unwrap_or(0).max(span) + 1_000;
        Self {
            seed,
            is_storm: mood == Mood::Storm,
            workers,
            hosts,
            cap,
            cores,
            skews,
            ack_wait: *chance.pick(&[6_000, 12_000, 30_000]),
            weather: if is_calm {
                Weather::default()
            } else {
                faults::weather(&mut chance)
            },
            jobs,
            asks,
            is_poisoned,
            faults,
            calm_from,
        }
    }

    /// Whether nothing goes wrong.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.faults.is_empty() && self.weather.is_fair() && !self.is_poisoned
    }
}

impl Weather {
    /// Whether nothing is lost or late.
    #[must_use]
    pub fn is_fair(&self) -> bool {
        let Self {
            lost_requests,
            lost_answers,
            slow,
            late,
            stale,
            repeated,
        } = *self;
        [lost_requests, lost_answers, slow, late, stale, repeated]
            .iter()
            .all(|rate| *rate == 0)
    }
}

fn worker(chance: &mut Chance) -> WorkerPlan {
    let slots = u32::try_from(chance.range(1, 5)).unwrap_or(1);
    let reserved_high = u32::from(slots > 1 && chance.permille(500));
    WorkerPlan {
        slots,
        reserved_high,
        low_floor: 0,
    }
}

fn priority(chance: &mut Chance) -> Priority {
    *chance.pick(&Priority::ALL)
}

fn time(chance: &mut Chance, span: Ms) -> Ms {
    Ms::try_from(chance.range(0, span.unsigned_abs())).unwrap_or(0)
}
