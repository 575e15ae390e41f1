//! The checker: it looks at what was stored, done and answered, and knows nothing of the code.
//!
//! | promise | looked for in |
//! |---|---|
//! | every acknowledged publication ends in one final record | records |
//! | records change only as the protocol says | records |
//! | one effect of what succeeded, none of what didn't | the pool |
//! | an effect happens under the job's locks | the pool, locks |
//! | the catalogue says so before an effect, and what came of it after | the pool, the catalogue |
//! | never more jobs of a tenant than its cap | records |
//! | of a batch all jobs are accepted, or none | answers, records |
//! | never more holders than a lock allows; first come, first served | locks |
//! | high before low, as long as nothing goes wrong | deliveries, records |
//! | an answer to a control request stays true | answers, records |
//! | nothing is left | everything |

mod answers;
mod catalogue;
mod locks;
mod order;
mod records;
mod tenants;

use crate::{broker::stream::Ms, client::Answer, disk::Effect, plan::Plan};
use bytes::Bytes;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// Everything that happened in one simulation.
#[derive(Debug)]
pub struct History {
    /// What it was to be.
    pub plan: Plan,
    /// What was stored: when, under which subject, as which revision.
    pub stored: Vec<(Ms, Arc<str>, u64, Bytes)>,
    /// What was published to work queues: when, where, sequence.
    pub queued: Vec<(Ms, String, u64)>,
    /// What was given to workers: when, from which queue, sequence, to which start of a process.
    pub given: Vec<(Ms, String, u64, usize)>,
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
    for (at, subject, revision, payload) in &history.stored {
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
pub fn check(history: &History) -> Vec<String> {
    let jobs = versions(history, "$KV.jobs.");
    let locks = versions(history, "$KV.locks.");
    let mut wrong = records::check(history, &jobs);
    wrong.extend(locks::check(history, &jobs, &locks));
    wrong.extend(order::check(history, &jobs));
    wrong.extend(answers::check(history, &jobs));
    wrong.extend(catalogue::check(history, &jobs));
    wrong.extend(tenants::check(history, &jobs));
    if !history.left.is_empty() {
        wrong.push(format!("left: {:?}", history.left));
    }
    wrong
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
