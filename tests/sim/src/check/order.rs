//! High before low.

use super::{History, Versions, number, text};
use crate::broker::stream::Ms;
use std::collections::BTreeMap;

/// How long something more urgent may lie unseen: requests are on their way.
const UNSEEN: Ms = 100;

/// As long as nothing goes wrong: nobody claims a job while the message of a more urgent one lies
/// there that nobody was given yet.
pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let is_paused = history
        .plan
        .asks
        .iter()
        .any(|ask| ask.subject.ends_with("pause"));
    // A worker's own queues are nobody else's business: what lies there isn't passed.
    if !history.plan.is_calm() || history.plan.hosts || is_paused {
        return Vec::new();
    }
    let mut given: BTreeMap<u64, Ms> = BTreeMap::new();
    for (at, _, seq, _) in &history.seen.given {
        given.entry(*seq).or_insert(*at);
    }
    let mut wrong = Vec::new();
    for (job, versions) in jobs {
        let mut claims = 0;
        for version in versions {
            let (before, now) = (claims, number(&version.value, "claim"));
            claims = now;
            if now == before {
                continue;
            }
            let (at, rank) = (version.at, rank(text(&version.value, "queue")));
            let passed = history.seen.queued.iter().find(|lay| {
                let first = given.get(&lay.seq);
                let unseen = first.is_some_and(|first| *first > at + UNSEEN);
                self::rank(&lay.subject) < rank && unseen && lay.at + UNSEEN < at
            });
            if let Some(passed) = passed {
                wrong.push(format!("{job} was claimed at {at} before {passed:?}"));
            }
        }
    }
    wrong
}

fn rank(subject: &str) -> u8 {
    match subject.rsplit('.').next() {
        Some("high") => 0,
        Some("default") => 1,
        _ => 2,
    }
}
