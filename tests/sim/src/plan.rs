//! What happens in one simulation: made from the seed alone, before it begins.

use crate::{broker::stream::Ms, chance::Chance, net::Weather, perform::params};
use serde_json::{Map, Value, json};
use virtbus_wire::{Priority, Timestamp};

/// A worker and its slots.
#[derive(Debug, Clone, Copy)]
pub struct WorkerPlan {
    /// Jobs that run at once.
    pub slots: u32,
    /// Of them, kept for `high`.
    pub reserved_high: u32,
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
    /// Its workers.
    pub workers: Vec<WorkerPlan>,
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
    /// Anything happens.
    Mixed,
}

const MOODS: [Mood; 8] = [
    Mood::Calm,
    Mood::Calm,
    Mood::Zombies,
    Mood::Zombies,
    Mood::Mixed,
    Mood::Mixed,
    Mood::Mixed,
    Mood::Mixed,
];

/// Disks that are there from the beginning.
pub const SHARED_DISKS: [&str; 2] = ["d-a", "d-b"];
const OWN_LOCKS: [&str; 2] = ["x.a", "x.b"];

impl Plan {
    /// The simulation of this seed; `begin` is when it begins.
    #[must_use]
    pub fn new(seed: u64, begin: Ms) -> Self {
        let mut chance = Chance::new(seed, "plan");
        let mood = *chance.pick(&MOODS);
        let is_calm = mood == Mood::Calm;
        let workers: Vec<WorkerPlan> = (0..chance.range(1, 4))
            .map(|_| worker(&mut chance))
            .collect();
        let cores = if chance.permille(300) { 2 } else { 1 };
        let span: Ms = *chance.pick(&[3_000, 8_000, 20_000]);
        let count = chance.range(2, 14);
        let jobs: Vec<JobPlan> = (0..count)
            .map(|n| job(&mut chance, (n, count), (begin, span), mood))
            .collect();
        let after = if mood == Mood::Zombies { 25_000 } else { 5_000 };
        let asks = asks(&mut chance, count, span + after);
        let processes = workers.len() + cores;
        let skews = (0..processes)
            .map(|_| Ms::try_from(chance.range(0, 1_800)).unwrap_or(0) - 900)
            .collect();
        let faults = match mood {
            Mood::Calm => Vec::new(),
            Mood::Zombies => freezes(&mut chance, workers.len(), span),
            Mood::Mixed => faults(&mut chance, processes, span),
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
            workers,
            cores,
            skews,
            ack_wait: *chance.pick(&[6_000, 12_000, 30_000]),
            weather: if is_calm {
                Weather::default()
            } else {
                weather(&mut chance)
            },
            jobs,
            asks,
            faults,
            calm_from,
        }
    }

    /// Whether nothing goes wrong.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.faults.is_empty() && self.weather.is_fair()
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
    }
}

fn weather(chance: &mut Chance) -> Weather {
    let rates: [u64; 4] = match chance.range(0, 4) {
        0 => [0; 4],
        1 => [5, 5, 50, 0],
        2 => [20, 20, 100, 10],
        _ => [100, 100, 300, 50],
    };
    let [lost_requests, lost_answers, slow, late] = rates;
    let stale = *chance.pick(&[0, 0, 500, 5_000]);
    let repeated = *chance.pick(&[0, 0, 100, 1_000]);
    Weather {
        lost_requests,
        lost_answers,
        slow,
        late,
        stale,
        repeated,
    }
}

fn priority(chance: &mut Chance) -> Priority {
    *chance.pick(&Priority::ALL)
}

fn time(chance: &mut Chance, span: Ms) -> Ms {
    Ms::try_from(chance.range(0, span.unsigned_abs())).unwrap_or(0)
}

fn job(
    chance: &mut Chance,
    (n, count): (u64, u64),
    (begin, span): (Ms, Ms),
    mood: Mood,
) -> JobPlan {
    let id = format!("j{n}");
    // Many come at once, as those do that a program submits in a loop.
    let at = match chance.permille(500) {
        true => time(chance, span) / 1_500 * 1_500,
        false => time(chance, span),
    };
    let task = *chance.pick(&["ping", "resize", "resize", "create_disk", "delete_disk"]);
    let disk = match task {
        "resize" => (*chance.pick(&SHARED_DISKS)).to_owned(),
        _ => format!("own-{n}"),
    };
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("id", json!(id));
    set("task", json!(task));
    set("params", params(task, &disk, 1_000_000 + n * 512));
    let ms = match mood {
        Mood::Zombies => *chance.pick(&[3_000, 9_000]),
        Mood::Calm | Mood::Mixed => *chance.pick(&[0, 0, 40, 400, 3_000, 9_000]),
    };
    let fails = *chance.pick(&[0, 0, 0, 0, 1, 2, 9]);
    let effect = *chance.pick(&[0, 0, 0, 2_000]);
    let labels = [("ms", ms), ("fails", fails), ("effect", effect)];
    let labels = labels.map(|(name, value)| (name.to_owned(), json!(value.to_string())));
    set("labels", Value::Object(Map::from_iter(labels)));
    set("retry", json!({"max_attempts": chance.range(1, 4)}));
    if chance.permille(300) {
        let lock = *chance.pick(&OWN_LOCKS);
        let mode = if chance.permille(500) {
            "exclusive"
        } else {
            "shared"
        };
        set("locks", json!({mode: [lock]}));
    }
    if chance.permille(200) {
        let before = format!("j{}", chance.range(0, count + 1));
        let on = *chance.pick(&["succeeded", "failed", "cancelled"]);
        set("after", json!([{"job": before, "on": [on, "succeeded"]}]));
    }
    if chance.permille(80) {
        set("timeout_s", json!(chance.range(1, 6)));
    }
    let later = |chance: &mut Chance, high: u64| {
        let at = begin + at + Ms::try_from(chance.range(500, high)).unwrap_or(0);
        json!(Timestamp::from_millis(at))
    };
    if chance.permille(60) {
        let at = later(chance, 8_000);
        set("not_before", at);
    }
    if chance.permille(60) {
        let at = later(chance, 15_000);
        set("expires_at", at);
    }
    JobPlan {
        at,
        id,
        priority: priority(chance),
        body: Value::Object(body),
        copy: chance
            .permille(80)
            .then(|| (time(chance, 10_000), priority(chance))),
    }
}

fn asks(chance: &mut Chance, count: u64, span: Ms) -> Vec<AskPlan> {
    let mut asks = Vec::new();
    for _ in 0..chance.range(0, 6) {
        let at = time(chance, span);
        let id = format!("j{}", chance.range(0, count));
        let queue = format!("storage.p.{}", priority(chance));
        let mut ask = |at: Ms, subject: &'static str, body: Value| {
            asks.push(AskPlan { at, subject, body });
        };
        match chance.range(0, 11) {
            10 => {
                let until = at + 1_000 + time(chance, 5_000);
                let body = json!({"worker": "w0"});
                ask(at, "virtbus.workers.drain", body.clone());
                ask(until, "virtbus.workers.undrain", body);
            }
            0..4 => {
                let force = chance.permille(300);
                ask(at, "virtbus.jobs.cancel", json!({"id": id, "force": force}));
            }
            4..7 => {
                let to = priority(chance).to_string();
                ask(
                    at,
                    "virtbus.jobs.priority",
                    json!({"id": id, "priority": to}),
                );
            }
            7 => ask(at, "virtbus.jobs.retry", json!({"id": id})),
            8 => {
                let until = at + 1_000 + time(chance, 5_000);
                let body = json!({"queue": queue, "reason": "to see"});
                ask(at, "virtbus.queues.pause", body.clone());
                ask(until, "virtbus.queues.resume", body);
            }
            _ => ask(
                at,
                "virtbus.queues.purge",
                json!({"queue": queue, "reason": "to see"}),
            ),
        }
    }
    asks
}

/// Workers that stand still, most for longer than their leases last.
fn freezes(chance: &mut Chance, workers: usize, span: Ms) -> Vec<(Ms, usize, Fault)> {
    let freezes = (0..chance.range(1, 4)).map(|_| {
        let at = 200 + time(chance, span + 6_000);
        let worker = usize::try_from(chance.range(0, workers as u64)).unwrap_or(0);
        (at, worker, Fault::Freeze(12_000 + time(chance, 28_000)))
    });
    freezes.collect()
}

fn faults(chance: &mut Chance, processes: usize, span: Ms) -> Vec<(Ms, usize, Fault)> {
    let count = chance.range(0, 5);
    let mut faults = Vec::new();
    for _ in 0..count {
        let at = 200 + time(chance, span + 10_000);
        let process = usize::try_from(chance.range(0, processes as u64)).unwrap_or(0);
        let long = 1 + *chance.pick(&[200, 3_000, 12_000, 25_000]) + time(chance, 3_000);
        let fault = match chance.range(0, 7) {
            0..2 => Fault::Crash {
                down: long,
                unnoticed: chance.permille(300),
            },
            2..4 => Fault::Freeze(long),
            4..6 => Fault::Cut(long),
            _ => Fault::Stop(long),
        };
        faults.push((at, process, fault));
    }
    faults
}
