//! Which message a job is claimed with, and what claims that were lost come to.

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
        wrong.extend(given_up(job, versions));
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

/// So many workers in a row must have been lost for a job to end before its work ever began.
const LOST_MIN: u32 = 5;

/// A job is only given up as one that costs its workers if its tries are spent, or its work never
/// began and each of so many workers in a row was lost before it would have.
fn given_up(job: &str, versions: &[Version]) -> Option<String> {
    let mut lost = 0;
    for pair in versions.windows(2) {
        let [before, now] = [&pair[0].value, &pair[1].value];
        let is_taken_over = number(now, "claim") > number(before, "claim");
        let is_another = before["boot"] != now["boot"];
        match (text(before, "phase"), text(now, "phase")) {
            ("clean" | "locks", "clean" | "locks") if is_taken_over => {
                lost += u32::from(is_another)
            }
            ("clean" | "locks", "clean" | "locks") => {}
            ("clean" | "locks", "") if now["error"]["code"] == "worker.lost" => {
                let is_spent = number(now, "tries_left") == 0;
                let never_began = number(now, "attempt") == 0 && lost >= LOST_MIN;
                if !is_spent && !never_began {
                    let revision = pair[1].revision;
                    return Some(format!(
                        "{job} revision {revision}: given up after {lost} claims"
                    ));
                }
            }
            _ => lost = 0,
        }
    }
    None
}
