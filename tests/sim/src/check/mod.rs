//! The checker: it looks at what was stored, done and answered, and knows nothing of the code.
//!
//! | promise | looked for in |
//! |---|---|
//! | every acknowledged publication ends in one final record | records |
//! | records change only as the protocol says | records |
//! | a job is claimed with the message that stands for it, from its own queue, and no older one | records, publications |
//! | a job is given up for lost workers only if its tries are spent, or five were lost in a row before it began | records |
//! | one effect of what succeeded, none of what didn't | the pool |
//! | an effect happens under the job's locks | the pool, locks |
//! | the catalogue says so before an effect, and what came of it after | the pool, the catalogue |
//! | never more jobs of a tenant than its cap | records |
//! | of a batch all jobs are accepted, or none | answers, records |
//! | never more holders than a lock allows, none of them taken off | locks |
//! | first come, first served | locks |
//! | high before low, as long as nothing goes wrong | deliveries, records |
//! | nothing is moved, cancelled or begun anew that nobody asked for | requests, records |
//! | an answer to a control request is true | answers, records |
//! | nothing is left | everything |

mod answers;
mod asked;
mod batches;
mod catalogue;
mod claims;
mod effects;
mod locks;
mod order;
mod records;
mod tenants;

use crate::{broker::stream::Ms, client::Answer, disk::Effect, net::Seen, plan::Plan};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// Everything that happened in one simulation.
#[derive(Debug)]
pub struct History {
    /// What it was to be.
    pub plan: Plan,
    /// What was stored, published and given out.
    pub seen: Seen,
    /// What happened to the pool.
    pub effects: Vec<Effect>,
    /// Jobs whose publication was acknowledged.
    pub acked: Vec<String>,
    /// Answers to control requests.
    pub answers: Vec<Answer>,
    /// What is left: messages, locks, files that were begun, jobs and disks that aren't settled.
    pub left: Vec<String>,
    /// The disks that are there at the end, and their sizes.
    pub disks: BTreeMap<String, u64>,
    /// When it ended.
    pub end: Ms,
    /// A hash of all messages.
    pub trace: u64,
    /// How many messages there were.
    pub steps: u64,
}

/// What is looked for, each by itself: a row of the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Every acknowledged publication ends.
    Ends,
    /// Records change as the protocol says.
    Changes,
    /// A claim is made with the message that stands for the job.
    Claims,
    /// One effect, or none.
    Effects,
    /// Effects under locks.
    Fences,
    /// The catalogue tells of them.
    Catalogue,
    /// Caps of tenants.
    Tenants,
    /// All of a batch, or none.
    Batches,
    /// Holders of locks.
    Holders,
    /// First come, first served.
    Lines,
    /// High before low.
    Order,
    /// What only a request may do.
    Asked,
    /// Answers are true.
    Answers,
    /// Nothing is left.
    Rest,
}

/// A promise that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.how)
    }
}

/// A stored version of something.
#[derive(Debug, Clone)]
struct Version {
    at: Ms,
    revision: u64,
    /// Null when it's gone.
    value: Value,
}

/// All versions of everything in a bucket, by key.
type Versions = BTreeMap<String, Vec<Version>>;

fn versions(history: &History, prefix: &str) -> Versions {
    let mut all = Versions::new();
    for (at, subject, revision, payload) in &history.seen.stored {
        let Some(key) = subject.strip_prefix(prefix) else {
            continue;
        };
        let version = Version {
            at: *at,
            revision: *revision,
            value: serde_json::from_slice(payload).unwrap_or_default(),
        };
        all.entry(key.to_owned()).or_default().push(version);
    }
    all
}

/// What is wrong with a history; nothing if nothing is.
#[must_use]
pub fn check(history: &History) -> Vec<Broken> {
    let jobs = versions(history, "$KV.jobs.");
    let locks = versions(history, "$KV.locks.");
    let left = (!history.left.is_empty()).then(|| format!("left: {:?}", history.left));
    let found = [
        (Promise::Ends, records::ends(history, &jobs)),
        (Promise::Changes, records::changes(&jobs)),
        (Promise::Claims, claims::check(history, &jobs)),
        (Promise::Effects, effects::check(history, &jobs)),
        (Promise::Fences, locks::fences(history, &jobs, &locks)),
        (Promise::Catalogue, catalogue::check(history, &jobs)),
        (Promise::Tenants, tenants::check(history, &jobs)),
        (Promise::Batches, batches::check(history, &jobs)),
        (Promise::Holders, locks::holders(history, &jobs, &locks)),
        (Promise::Lines, locks::lines(history, &jobs, &locks)),
        (Promise::Order, order::check(history, &jobs)),
        (Promise::Asked, asked::check(history, &jobs)),
        (Promise::Answers, answers::check(history, &jobs)),
        (Promise::Rest, left.into_iter().collect()),
    ];
    let found = found.into_iter();
    let broken =
        |(promise, all): (_, Vec<String>)| all.into_iter().map(move |how| Broken { promise, how });
    found.flat_map(broken).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

fn is_final(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}

/// The version that counted at a time.
fn version_at(versions: &[Version], at: Ms) -> Option<&Version> {
    versions.iter().rfind(|version| version.at <= at)
}
