//! What goes wrong, at random: which faults and how long comes from the seed, what they hit from
//! the moment.

use super::crew::{Kind, Member};
use super::journal::Journal;
use super::proxy::{Mode, Wire};
use super::site::Site;
use crate::process::Signal;
use crate::random::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// The pause between two faults.
const PAUSE_MS: (u64, u64) = (150, 1_500);
/// How long a killed process is away.
const AWAY_MS: (u64, u64) = (0, 4_000);
/// How long a frozen service stays so: up to where its lease is out and its jobs are another's.
const FROZEN_MS: (u64, u64) = (200, 24_000);
/// How long a frozen messaging server stays so.
const SERVER_FROZEN_MS: (u64, u64) = (100, 6_000);
/// How long a wire is bad.
const WIRE_MS: (u64, u64) = (50, 13_000);
/// How much slower a slow wire is.
const SLOW_MS: (u64, u64) = (5, 150);

/// What may be hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The storage services.
    Storage,
    /// The core services.
    Core,
    /// The feedback service.
    Feedback,
    /// The messaging servers.
    Nats,
    /// The wires between them.
    Wires,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Storage,
        Self::Core,
        Self::Feedback,
        Self::Nats,
        Self::Wires,
    ];

    /// As on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Core => "core",
            Self::Feedback => "feedback",
            Self::Nats => "nats",
            Self::Wires => "wires",
        }
    }

    /// How often it's hit, beside the others.
    fn weight(self) -> usize {
        match self {
            Self::Storage => 6,
            Self::Core => 3,
            Self::Feedback | Self::Nats => 1,
            Self::Wires => 4,
        }
    }

    fn kind(self) -> Option<Kind> {
        match self {
            Self::Storage => Some(Kind::Storage),
            Self::Core => Some(Kind::Core),
            Self::Feedback => Some(Kind::Feedback),
            Self::Nats => Some(Kind::Nats),
            Self::Wires => None,
        }
    }
}

/// What is done to one process.
#[derive(Debug, Clone, Copy)]
enum Hurt {
    Kill { away: Duration },
    Restart { away: Duration },
    Freeze { length: Duration },
}

/// Hurts the site until a moment, then lets it be.
#[derive(Debug)]
pub struct Faults {
    /// What runs.
    pub site: Arc<Site>,
    /// What was done.
    pub journal: Arc<Journal>,
    /// What may be hurt.
    pub targets: Vec<Target>,
    /// When it ends.
    pub until: Instant,
    /// How many were done.
    pub count: Arc<AtomicU64>,
    /// One messaging server at a time is away: with fewer than two of three nothing goes on.
    pub quorum: Arc<Mutex<()>>,
}

impl Faults {
    /// Hurts at random; returns when all is well again.
    pub async fn run(self, mut random: Random) {
        let faults = Arc::new(self);
        let (over, seen) = watch::channel(false);
        let mut running = JoinSet::new();
        let mut lots = Vec::new();
        for target in &faults.targets {
            lots.extend(std::iter::repeat_n(*target, target.weight()));
        }
        loop {
            let pause = between(&mut random, PAUSE_MS);
            sleep(pause.min(faults.until.saturating_duration_since(Instant::now()))).await;
            if Instant::now() >= faults.until {
                break;
            }
            let target = *random.pick(&lots);
            faults.begin(target, &mut random, &mut running, &seen);
        }
        over.send_replace(true);
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        faults.journal.note("no more faults");
    }

    fn begin(
        self: &Arc<Self>,
        target: Target,
        random: &mut Random,
        running: &mut JoinSet<()>,
        over: &watch::Receiver<bool>,
    ) {
        let (faults, over) = (Arc::clone(self), over.clone());
        if let Some(kind) = target.kind() {
            let members = self.site.crew.members().iter();
            let members: Vec<_> = members.filter(|m| m.kind() == kind).cloned().collect();
            let member = Arc::clone(random.pick(&members));
            let hurt = hurt(kind, random);
            running.spawn(async move { faults.hurt(&member, hurt, over).await });
            return;
        }
        let length = between(random, WIRE_MS);
        let mode = match random.below(4) {
            0 | 1 => Mode::Cut,
            2 => Mode::Stalled,
            _ => Mode::Slow(between(random, SLOW_MS)),
        };
        let routes = self.site.routes.len();
        if routes > 0 && random.below(3) == 0 {
            let node = usize::try_from(random.below(self.site.nodes() as u64)).unwrap();
            running.spawn(async move { faults.part(node, mode, length, over).await });
            return;
        }
        let links: Vec<&String> = self.site.links.keys().collect();
        let who = (*random.pick(&links)).clone();
        running.spawn(async move { faults.disturb(&who, mode, length, over).await });
    }

    async fn hurt(&self, member: &Member, hurt: Hurt, mut over: watch::Receiver<bool>) {
        let token = match member.kind() {
            Kind::Nats => match self.quorum.try_lock() {
                Ok(token) => Some(token),
                Err(_) => return,
            },
            Kind::Core | Kind::Storage | Kind::Feedback => None,
        };
        let Some(mut patient) = member.hold() else {
            return;
        };
        self.journal.note(format!("{}: {hurt:?}", member.name()));
        self.count.fetch_add(1, Ordering::Relaxed);
        match hurt {
            Hurt::Kill { away } | Hurt::Restart { away } => {
                let signal = match hurt {
                    Hurt::Restart { .. } => Signal::TERM,
                    Hurt::Kill { .. } | Hurt::Freeze { .. } => Signal::KILL,
                };
                patient.end(signal).await;
                rest(away, &mut over).await;
                patient.start();
            }
            Hurt::Freeze { length } => {
                patient.freeze();
                rest(length, &mut over).await;
                patient.thaw();
            }
        }
        self.journal.note(format!("{}: well", member.name()));
        drop(token);
    }

    async fn disturb(&self, who: &str, mode: Mode, length: Duration, over: watch::Receiver<bool>) {
        let wires: Vec<&Wire> = self.site.links[who].iter().collect();
        self.bend(&wires, who, mode, length, over).await;
    }

    /// One messaging server loses the others.
    async fn part(&self, node: usize, mode: Mode, length: Duration, over: watch::Receiver<bool>) {
        let Ok(_token) = self.quorum.try_lock() else {
            return;
        };
        let touched = self.site.routes.iter();
        let touched = touched.filter(|route| route.from == node || route.to == node);
        let wires: Vec<&Wire> = touched.map(|route| &route.wire).collect();
        let name = format!("routes of nats-{}", node + 1);
        self.bend(&wires, &name, mode, length, over).await;
    }

    async fn bend(
        &self,
        wires: &[&Wire],
        name: &str,
        mode: Mode,
        length: Duration,
        mut over: watch::Receiver<bool>,
    ) {
        self.journal
            .note(format!("{name}: {mode:?} for {length:?}"));
        self.count.fetch_add(1, Ordering::Relaxed);
        for wire in wires {
            wire.set(mode);
        }
        rest(length, &mut over).await;
        for wire in wires {
            wire.set(Mode::Open);
        }
        self.journal.note(format!("{name}: open"));
    }
}

fn hurt(kind: Kind, random: &mut Random) -> Hurt {
    let away = between(random, AWAY_MS);
    let frozen = match kind {
        Kind::Nats => SERVER_FROZEN_MS,
        Kind::Core | Kind::Storage | Kind::Feedback => FROZEN_MS,
    };
    let length = between(random, frozen);
    match random.below(10) {
        0..=4 => Hurt::Kill { away },
        5 => Hurt::Restart { away },
        _ => Hurt::Freeze { length },
    }
}

/// A length of time, short ones more often.
fn between(random: &mut Random, (from, to): (u64, u64)) -> Duration {
    let span = random.below(to - from + 1);
    let span = if random.below(3) > 0 { span / 4 } else { span };
    Duration::from_millis(from + span)
}

/// Waits; not longer than the faults last.
async fn rest(length: Duration, over: &mut watch::Receiver<bool>) {
    let end = Instant::now() + length;
    tokio::select! {
        () = sleep_until(end) => {}
        _ = over.wait_for(|over| *over) => {}
    }
}
