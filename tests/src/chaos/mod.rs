//! The real thing under faults: thousands of jobs while processes are killed and frozen and
//! connections cut, then an audit that knows only the contract.
//!
//! A run draws its jobs and its faults from one seed. What they meet depends on the moment, so a
//! seed repeats the kind of a run, not its every step: the journal, the logs and the lives of the
//! jobs are kept when something was wrong.

pub mod audit;
pub mod crew;
pub mod faults;
pub mod journal;
pub mod ledger;
pub mod load;
pub mod plan;
pub mod proxy;
pub mod records;
pub mod site;
pub mod witness;

use crate::random::Random;
use crate::{disk, process};
use async_nats::jetstream::{self, Context};
use audit::floors::{self, Effort};
use audit::{Facts, Violation, examples};
use faults::{Faults, Target};
use journal::Journal;
use ledger::{Ledger, Order};
use load::Load;
use plan::{Plan, SOURCE_MIB, SOURCES};
use records::{Held, Records};
use serde_json::json;
use site::{POOL, PUBLISHERS, Site};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use virtbus_testbed::within;
use witness::Witness;

/// How long everything may take to end once the faults are over: a lease, a redelivery, the waits
/// between three attempts, a dependency that never comes, and all of it along a chain of jobs.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// For how long nothing may happen any more, so that a late awakening shows.
const QUIET: Duration = Duration::from_secs(3);
/// How long the first disks may take.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// From here on a run may take a minute more.
const LONG: Duration = Duration::from_secs(120);
/// Who publishes; the others change their minds.
const SENDERS: usize = PUBLISHERS - 1;
/// The most violations that are told in full.
const TOLD: usize = 8;
/// What stands in a log when a service met a bug of its own.
const PANIC: &str = "panicked at";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where jobs and faults are drawn from.
    pub seed: u64,
    /// How long there are faults.
    pub faults: Duration,
    /// Messaging servers: one, or three.
    pub nodes: usize,
    /// What is hurt.
    pub targets: Vec<Target>,
    /// Whether logs and journal stay when all is well, too.
    pub keep: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Figures.
    pub summary: String,
    /// What was wrong, with all that is known of it; empty when all is well.
    pub violations: Vec<String>,
    /// Where logs and journal are, if they stay.
    pub folder: Option<PathBuf>,
}

/// Everything of one run.
struct Run {
    options: Options,
    site: Arc<Site>,
    journal: Arc<Journal>,
    ledger: Arc<Ledger>,
    records: Arc<Records>,
    witness: Arc<Witness>,
    context: Context,
    again: u64,
    faults: u64,
}

/// Runs it in a folder of its own below `parent`, which stays when something was wrong.
pub async fn run(options: Options, parent: &Path) -> Outcome {
    let seed = options.seed;
    let folder = tempfile::Builder::new()
        .prefix(&format!("chaos-{seed}-"))
        .tempdir_in(parent)
        .unwrap()
        .keep();
    let journal = Arc::new(Journal::new(&folder.join("faults.log")));
    journal.note(format!("seed {seed}, {options:?}"));
    let site = Site::start(&folder, options.nodes, &journal).await;
    let site = Arc::new(site);
    let context = jetstream::new(site.client().await);
    let mut run = Run {
        options,
        site,
        journal,
        ledger: Arc::default(),
        records: Arc::default(),
        witness: Arc::default(),
        context,
        again: 0,
        faults: 0,
    };
    let (summary, violations) = run.go().await;
    let told = run.tell(&violations);
    let text = format!("{summary}\n\n{}\n", told.join("\n"));
    fs::write(folder.join("report.txt"), text).unwrap();
    let keep = run.options.keep || !told.is_empty();
    if !keep {
        fs::remove_dir_all(&folder).unwrap();
    }
    let folder = keep.then_some(folder);
    Outcome {
        summary,
        violations: told,
        folder,
    }
}

impl Run {
    async fn go(&mut self) -> (String, Vec<Violation>) {
        let mut beside = JoinSet::new();
        let (client, witness) = (self.site.client().await, Arc::clone(&self.witness));
        beside.spawn(async move { witness.watch(client).await });
        let (context, records) = (self.context.clone(), Arc::clone(&self.records));
        beside.spawn(async move { records.follow(context).await });
        self.make_sources().await;
        let site = Arc::clone(&self.site);
        beside.spawn(async move { site.crew.care().await });
        self.trouble().await;
        let calm = Instant::now();
        let (facts, mut violations) = self.drain().await;
        let drained = calm.elapsed();
        beside.shutdown().await;
        let seen = self.witness.violations().into_iter();
        violations.extend(seen.map(|(job, text)| Violation::of(&job, text)));
        let effort = Effort {
            length: self.options.faults,
            faults: self.faults,
            at_work: self.options.targets.contains(&Target::Storage),
        };
        violations.extend(floors::judge(&facts, effort));
        let defects = self.site.crew.stop().await;
        violations.extend(defects.into_iter().map(Violation::general));
        violations.extend(self.remains());
        violations.extend(self.unmet());
        (self.summary(&facts, drained), violations)
    }

    /// Disks full of data, that copies are made of.
    async fn make_sources(&self) {
        let params = |disk| json!({"disk": disk, "size": SOURCE_MIB * disk::MIB, "format": "raw"});
        let load = self.load(Instant::now());
        for source in SOURCES {
            let order = Order {
                id: format!("setup-{source}"),
                subject: format!("storage.{POOL}.high"),
                body: json!({"task": "create_disk", "params": params(source)}),
            };
            load.send(&self.context, &order).await;
            within(FIRST_LIMIT, "the first disks", async || {
                match self.records.state(&order.id).as_deref() {
                    Some("succeeded") => Ok(()),
                    other => Err(other.map(str::to_owned)),
                }
            })
            .await;
            let path = disk::path(&self.site.pool_root(), source, "raw");
            disk::fill(&path, SOURCE_MIB);
        }
    }

    fn load(&self, until: Instant) -> Load {
        Load {
            ledger: Arc::clone(&self.ledger),
            records: Arc::clone(&self.records),
            journal: Arc::clone(&self.journal),
            until,
            give_up: until + DRAIN_LIMIT,
            again: AtomicU64::new(0),
        }
    }

    /// Jobs and faults, side by side.
    async fn trouble(&mut self) {
        let mut random = Random::new(self.options.seed);
        let until = Instant::now() + self.options.faults;
        let load = Arc::new(self.load(until));
        let mut parts = JoinSet::new();
        for number in 0..PUBLISHERS {
            let (load, random) = (Arc::clone(&load), random.fork());
            let client = self.site.client_of(&format!("publisher-{number}")).await;
            if number < SENDERS {
                parts.spawn(load.publish(client, number, random));
            } else {
                parts.spawn(load.meddle(client, random));
            }
        }
        let count = Arc::new(AtomicU64::new(0));
        let faults = Faults {
            site: Arc::clone(&self.site),
            journal: Arc::clone(&self.journal),
            targets: self.options.targets.clone(),
            until,
            count: Arc::clone(&count),
            quorum: Arc::new(Mutex::new(())),
        };
        parts.spawn(faults.run(random.fork()));
        while let Some(ended) = parts.join_next().await {
            ended.unwrap();
        }
        self.faults = count.load(Ordering::Relaxed);
        // A dependency that never comes is waited for a minute: not in a short run.
        let never = usize::from(self.options.faults >= LONG);
        let client = self.site.client().await;
        load.publish_the_missing(&client, never).await;
        let mut plan = Plan::new(PUBLISHERS, random.fork());
        load.submit_several(&client, &mut plan).await;
        self.again = load.again.load(Ordering::Relaxed);
    }

    /// Waits until all is over and nothing goes on; then everything is judged.
    async fn drain(&self) -> (Facts, Vec<Violation>) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut last = Facts::default();
        loop {
            let lines = self.ledger.lines();
            let looked = Facts::gather(&self.site, lines, &self.records, &self.context).await;
            let left = match &looked {
                Ok(facts) => facts.unfinished(),
                Err(error) => vec![Violation::general(error.to_string())],
            };
            if let Ok(facts) = looked {
                last = facts;
            }
            self.journal.note(format!("left {}", examples(&left)));
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            sleep(LOOK).await;
        }
        sleep(QUIET).await;
        let lines = self.ledger.lines();
        if let Ok(facts) = Facts::gather(&self.site, lines, &self.records, &self.context).await {
            last = facts;
        }
        let violations = last.judge(&self.site);
        (last, violations)
    }

    /// What no process may leave: others, and the traces of a panic.
    fn remains(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for process in process::of_folder(&self.site.folder) {
            // The one that watches over this folder.
            if !process.line.contains("warden") {
                let text = format!("process {} is left: {}", process.pid, process.line);
                found.push(Violation::general(text));
            }
        }
        for entry in fs::read_dir(self.site.folder.join("log"))
            .unwrap()
            .flatten()
        {
            let log = fs::read(entry.path()).unwrap();
            let log = String::from_utf8_lossy(&log);
            let panics = log.lines().filter(|line| line.contains(PANIC));
            found.extend(panics.map(|line| Violation::general(line.to_owned())));
        }
        found
    }

    /// What a run must have met, or it shows nothing of it.
    fn unmet(&self) -> Option<Violation> {
        let none = self.ledger.batches() == 0;
        none.then(|| Violation::general("no request of several jobs was ever accepted"))
    }

    fn summary(&self, facts: &Facts, drained: Duration) -> String {
        let (changes, gaps) = self.witness.counts();
        let mut text = format!(
            "seed {}, {} messaging server(s): {} jobs promised, {} requests of several accepted, \
             {} records, {} sent again; {} notes of faults; {} attempted more than once; \
             {} dead letters; {changes} changes seen with {gaps} gaps; all over {:.1} s after the \
             faults\n",
            self.options.seed,
            self.options.nodes,
            self.ledger.promises(),
            self.ledger.batches(),
            facts.records.len(),
            self.again,
            self.journal.len(),
            facts.interrupted(),
            facts.dead_letters,
            drained.as_secs_f64(),
        );
        for (end, count) in facts.ends() {
            writeln!(text, "  {count:>6} {end}").unwrap();
        }
        let mut asked: BTreeMap<String, usize> = BTreeMap::new();
        for question in facts.lines.values().flat_map(|line| &line.asked) {
            let name = format!("{} {}", question.verb, question.outcome);
            *asked.entry(name).or_default() += 1;
        }
        writeln!(text, "  asked {asked:?}\n  {} faults", self.faults).unwrap();
        text
    }

    /// Each violation with the job's own words.
    fn tell(&self, violations: &[Violation]) -> Vec<String> {
        let all = self.records.all();
        let lines = self.ledger.lines();
        let mut told = Vec::new();
        for (number, violation) in violations.iter().enumerate() {
            let mut text = violation.text.clone();
            if let Some(job) = &violation.job {
                text = format!("{job}: {text}");
                if number < TOLD {
                    let record = all.get(job).map(|held| format!("{:#}", held.value));
                    let line = lines.get(job).map(|line| format!("{line:?}"));
                    let (record, line) = (record.unwrap_or_default(), line.unwrap_or_default());
                    let life = self.witness.life(job);
                    write!(text, "\npublished {line}\nrecord {record}\nlife\n{life}").unwrap();
                    for other in neighbours(&all, job) {
                        let life = self.witness.life(&other);
                        write!(text, "life of {other}, on the same\n{life}").unwrap();
                    }
                }
            }
            told.push(text);
        }
        told
    }
}

/// The other jobs that work on what this one does.
fn neighbours(all: &BTreeMap<String, Held>, job: &str) -> Vec<String> {
    let objects = |held: &Held| {
        held.value["objects"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let own = all.get(job).map(objects).unwrap_or_default();
    let shares = |held: &Held| objects(held).iter().any(|object| own.contains(object));
    let others = all.iter().filter(|(id, held)| *id != job && shares(held));
    others.map(|(id, _)| id.clone()).collect()
}
