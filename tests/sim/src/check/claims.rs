//! Which message a job is claimed with.

use super::{History, Version, Versions, number, text};
use serde_json::Value;

/// What was published before stands for nothing any more: never is a job claimed with a message of
/// another generation than its record's, or from a queue that isn't the record's.
pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (job, versions) in jobs {
        let mut before = &Value::Null;
        for version in versions {
            if number(&version.value, "claim") > number(before, "claim") {
                wrong.extend(claim(history, job, before, version));
            }
            before = &version.value;
        }
    }
    wrong
}

fn claim(history: &History, job: &str, before: &Value, claim: &Version) -> Option<String> {
    let seq = number(&claim.value, "seq");
    let queued = &history.seen.queued;
    let place = queued.binary_search_by_key(&seq, |message| message.seq);
    let message = place.ok().map(|place| &queued[place]);
    // The claim itself may bind the job to the worker's own queue: where it was counts.
    let stood = if before.is_null() {
        &claim.value
    } else {
        before
    };
    let is_bound = before.is_null() && history.plan.hosts;
    let stands = message.is_some_and(|message| {
        let is_there = is_bound || message.subject == text(stood, "queue");
        is_there && message.generation == number(stood, "generation")
    });
    (!stands).then(|| {
        let (queue, generation) = (text(stood, "queue"), number(stood, "generation"));
        let revision = claim.revision;
        format!("{job} revision {revision}: of generation {generation} on {queue}, claimed with {message:?}")
    })
}
