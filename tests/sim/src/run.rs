//! One simulation from its seed to its history.

use crate::{
    broker::{
        Broker,
        stream::{Ms, Stored},
    },
    catalogue,
    check::History,
    client::Client,
    disk::Disks,
    hosts::{self, Host},
    net::{BEGIN, Net, World},
    perform::{Faults, Shop},
    plan::{AskPlan, Fault, Plan, SHARED_DISKS, WorkerPlan},
    process::{Process, Role, limits, queues},
    transport::Connection,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use virtbus_bus::Bus;
use virtbus_wire::{Queue, Timestamp, catalog::LIMITS_KEY};

/// How long everything may take to come to rest once nothing goes wrong any more.
const PATIENCE: Ms = 420_000;
/// How much longer it takes where a job kills workers.
const POISON: Ms = 600_000;
/// When, once nothing goes wrong any more, nothing that was sent before can still be on its way.
const ALL_IN: Ms = 30_000;
/// How often processes and rest are looked at.
const LOOK: Ms = 500;

/// How long what is there before the beginning has been there: no replica is that late.
const LONG_AGO: Ms = 60_000;

/// A defect, to see whether the checker finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Locks are written whatever is there.
    LocksWithoutCompare,
    /// Records of jobs are written whatever is there.
    JobsWithoutCompare,
    /// What the system publishes again never arrives, though it's said to.
    WakeUpsDropped,
    /// Effects without a fence.
    NoFence,
    /// Effects of which the catalogue isn't told.
    NoIntent,
    /// Whatever was published before, workers take it for what stands for the job now.
    OldMessagesClaimed,
    /// Workers take jobs of priority `low` first.
    LowFirst,
    /// One job more of a tenant is let run than may be.
    OneTooMany,
    /// Whoever asks for a lock passes all who wait for it.
    TicketsIgnored,
    /// Cancels of jobs that nobody runs are said to be stored, and aren't.
    CancelsForgotten,
    /// Changes of priority are said to be stored, and aren't.
    MovesForgotten,
    /// The last job of a batch gets lost on its way to core.
    LastOfBatchLost,
}

/// What is to happen by itself, in order.
enum Step {
    Publish(usize),
    Copy(usize),
    Ask(usize),
    Fault(usize),
    Thaw(Arc<Connection>),
    Mend(Arc<Connection>),
    Calm,
}

struct Simulation {
    plan: Plan,
    net: Arc<Net>,
    disks: Disks,
    client: Client,
    processes: Vec<Process>,
    steps: Vec<(Ms, Step)>,
}

/// Runs the simulation of a seed. To be called on a paused clock.
pub async fn simulate(seed: u64, defect: Option<Defect>) -> History {
    let plan = Plan::new(seed, BEGIN);
    let mut simulation = Simulation::new(plan, defect);
    let net = Arc::clone(&simulation.net);
    tokio::select! {
        biased;
        end = simulation.run() => simulation.history(end),
        () = net.run() => unreachable!("the network never ends"),
    }
}

impl Simulation {
    fn new(mut plan: Plan, defect: Option<Defect>) -> Self {
        let disks = Disks::default();
        let mut cap = plan.cap;
        match defect {
            Some(Defect::LowFirst) => plan.workers.iter_mut().for_each(prefer_low),
            Some(Defect::OneTooMany) if cap > 0 => cap += 1,
            Some(_) | None => {}
        }
        let net = Net::new(plan.seed, broker(&plan, cap, &disks));
        net.world().defect = defect;
        net.world().weather = plan.weather;
        let shop = Shop {
            net: Arc::clone(&net),
            disks: disks.clone(),
            faults: Faults {
                no_fence: defect == Some(Defect::NoFence),
                no_intent: defect == Some(Defect::NoIntent),
            },
        };
        let workers = plan.workers.iter().enumerate().map(|(own, worker)| {
            let count = plan.workers.len();
            let host = plan.hosts.then_some(Host { own, count });
            (format!("w{own}"), Role::Worker(*worker, shop.clone(), host))
        });
        let cores = (0..plan.cores).map(|n| (format!("c{n}"), Role::Core(cap)));
        let roles = workers.chain(cores).zip(&plan.skews);
        let processes =
            roles.map(|((name, role), skew)| Process::new(name, role, *skew, plan.seed));
        let processes = processes.collect();
        let connection = Connection::new(&net, 0, plan.seed);
        let client = Client {
            bus: Bus::over(connection),
            net: Arc::clone(&net),
            told: Arc::new(Mutex::default()),
        };
        let steps = steps(&plan);
        Self {
            plan,
            net,
            disks,
            client,
            processes,
            steps,
        }
    }

    async fn run(&mut self) -> Ms {
        let begin = Instant::now();
        let poison = if self.plan.is_poisoned { POISON } else { 0 };
        let end = self.plan.calm_from + PATIENCE + poison;
        let rests_from = rests_from(&self.plan);
        let (mut now, mut quiet) = (0, 0);
        while now < end && quiet < 2 {
            for process in &mut self.processes {
                process.keep_up(&self.net, BEGIN + now);
            }
            if now > rests_from && self.is_at_rest() {
                quiet += 1;
            } else {
                quiet = 0;
            }
            let next_look = now + LOOK;
            while self.steps.last().is_some_and(|(at, _)| *at <= next_look) {
                let Some((at, step)) = self.steps.pop() else {
                    break;
                };
                sleep_until(at_time(begin, at)).await;
                self.take(step, at);
            }
            sleep_until(at_time(begin, next_look)).await;
            now = next_look;
        }
        BEGIN + now
    }

    fn take(&mut self, step: Step, at: Ms) {
        match step {
            Step::Publish(n) => self.client.publish(&self.plan.jobs[n]),
            Step::Copy(n) => {
                if let Some((_, priority)) = self.plan.jobs[n].copy {
                    self.client.publish_copy(&self.plan.jobs[n], priority);
                }
            }
            Step::Ask(n) => self.client.ask(&self.plan.asks[n]),
            Step::Fault(n) => self.fault(n, at),
            Step::Thaw(connection) => connection.gate().thaw(),
            Step::Mend(connection) => self.net.mend(connection.link()),
            Step::Calm => self.net.world().weather = Default::default(),
        }
    }

    fn fault(&mut self, n: usize, at: Ms) {
        let (_, process, fault) = self.plan.faults[n];
        let process = &mut self.processes[process];
        let connection = process.connection();
        match (fault, connection) {
            (Fault::Crash { down, unnoticed }, _) => {
                process.crash(&self.net, down, unnoticed, BEGIN + at);
            }
            (Fault::Freeze(long), Some(connection)) => {
                connection.gate().freeze();
                self.later(at + long, Step::Thaw(connection));
            }
            (Fault::Cut(long), Some(connection)) => {
                self.net.cut(connection.link(), BEGIN + at + long);
                self.later(at + long, Step::Mend(connection));
            }
            (Fault::Stop(down), _) => process.stop(down, BEGIN + at),
            (Fault::Freeze(_) | Fault::Cut(_), None) => {}
        }
    }

    fn later(&mut self, at: Ms, step: Step) {
        let place = self.steps.partition_point(|(other, _)| *other > at);
        self.steps.insert(place, (at, step));
    }

    fn is_at_rest(&self) -> bool {
        let is_awaited = |(_, step): &(Ms, Step)| match step {
            Step::Publish(_) | Step::Copy(_) => true,
            Step::Ask(n) => !self.plan.asks[*n].ends_another(),
            Step::Fault(_) | Step::Thaw(_) | Step::Mend(_) | Step::Calm => false,
        };
        let is_busy = self.client.told().busy > 0 || self.steps.iter().any(is_awaited);
        !is_busy && left(&self.net.world(), &self.disks).next().is_none()
    }

    fn history(&self, end: Ms) -> History {
        let disks = self.disks.sizes();
        let mut world = self.net.world();
        let left = left(&world, &self.disks).collect();
        let mut told = self.client.told();
        History {
            plan: self.plan.clone(),
            seen: std::mem::take(&mut world.seen),
            effects: std::mem::take(&mut self.disks.pool().effects),
            acked: std::mem::take(&mut told.acked),
            answers: std::mem::take(&mut told.answers),
            left,
            disks,
            end,
            trace: world.trace,
            steps: world.steps,
        }
    }
}

/// Has all slots that may be anybody's go to `low` first.
fn prefer_low(worker: &mut WorkerPlan) {
    worker.low_floor = worker.slots - worker.reserved_high;
}

/// What is left of jobs, what is seen most easily first.
fn left<'a>(world: &'a World, disks: &Disks) -> impl Iterator<Item = String> + use<'a> {
    let of = |stream: &str| {
        let stream = world.broker.stream(stream).into_iter();
        stream.flat_map(|stream| stream.messages())
    };
    let live =
        |stored: &&Stored| !stored.payload.is_empty() && stored.header("KV-Operation").is_none();
    let messages = of("STORAGE").map(|stored| format!("message {} {}", stored.subject, stored.seq));
    let parts = disks.parts().into_iter();
    let parts = parts.map(|job| format!("begun by {job}"));
    let locks = of("KV_locks").filter(live);
    let locks = locks.map(|stored| format!("lock {}", stored.subject));
    let unsettled = |stored: &Stored, states: &[&str], wanted: bool| {
        // What can't be read isn't settled either.
        let record: Stated<'_> = serde_json::from_slice(&stored.payload).unwrap_or_default();
        let text = || String::from_utf8_lossy(&stored.payload);
        (states.contains(&record.state) == wanted).then(|| format!("{} {}", stored.subject, text()))
    };
    let open = of("KV_jobs").filter(live);
    let open = open
        .filter_map(move |stored| unsettled(stored, &["succeeded", "failed", "cancelled"], false));
    let changing = of("KV_disks").filter(live);
    let changing =
        changing.filter_map(move |stored| unsettled(stored, &["creating", "changing"], true));
    messages
        .chain(parts)
        .chain(locks)
        .chain(open)
        .chain(changing)
}

/// What matters here of a record.
#[derive(Default, Deserialize)]
struct Stated<'a> {
    state: &'a str,
}

/// The server with what is there before the beginning: pools, limits, disks.
fn broker(plan: &Plan, cap: u32, disks: &Disks) -> Broker {
    let own: Vec<usize> = (0..plan.workers.len()).filter(|_| plan.hosts).collect();
    let all = own.iter().flat_map(|worker| hosts::queues(*worker));
    let all: Vec<Queue> = queues().into_iter().chain(all).collect();
    let mut broker = Broker::new(&all, plan.ack_wait);
    let mut put = |key: String, value: Value| {
        let payload = Bytes::from(value.to_string());
        broker.put(&format!("$KV.{key}"), payload, BEGIN - LONG_AGO);
    };
    put("pools.p".to_owned(), json!({"pool": "p"}));
    for name in own.into_iter().map(hosts::name) {
        put(format!("pools.{name}"), json!({"pool": name}));
    }
    put(format!("pools.{LIMITS_KEY}"), json!(limits(cap)));
    let trashed = plan
        .jobs
        .iter()
        .filter(|job| job.body["task"] == "delete_disk");
    let trashed = trashed.filter_map(|job| job.body["params"]["disk"].as_str());
    for disk in SHARED_DISKS.into_iter().chain(trashed) {
        disks.add(disk);
        let record = catalogue::ready(1, Timestamp::from_millis(BEGIN));
        put(format!("{}.{disk}", catalogue::DISKS), json!(record));
    }
    broker
}

fn at_time(begin: Instant, at: Ms) -> Instant {
    begin + Duration::from_millis(u64::try_from(at).unwrap_or(0))
}

/// From when on all may be over. A retry of which its client has long heard nothing may still be
/// on its way to core, and begins a job anew that was over.
fn rests_from(plan: &Plan) -> Ms {
    let is_retry = |ask: &AskPlan| ask.subject == "virtbus.jobs.retry";
    let late = if plan.asks.iter().any(is_retry) {
        ALL_IN
    } else {
        0
    };
    plan.calm_from + late
}

/// What the plan has happen, the next at the end.
fn steps(plan: &Plan) -> Vec<(Ms, Step)> {
    let mut steps = Vec::new();
    for (n, job) in plan.jobs.iter().enumerate() {
        steps.push((job.at, Step::Publish(n)));
        steps.extend(job.copy.map(|(after, _)| (job.at + after, Step::Copy(n))));
    }
    let asks = plan.asks.iter().enumerate();
    steps.extend(asks.map(|(n, ask)| (ask.at, Step::Ask(n))));
    // A pause that was late may have come after the resume: in the end nothing is paused.
    let asks = plan.asks.iter().enumerate();
    let ends = asks.filter(|(_, ask)| ask.ends_another());
    steps.extend(ends.map(|(n, _)| (plan.calm_from + ALL_IN, Step::Ask(n))));
    let faults = plan.faults.iter().enumerate();
    steps.extend(faults.map(|(n, (at, ..))| (*at, Step::Fault(n))));
    steps.push((plan.calm_from, Step::Calm));
    steps.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    steps
}
