//! Whoever sees each change of each record: what no record says afterwards.
//!
//! Events are hints, at most once: a connection that was cut has missed some. The bucket's
//! revisions run without gaps, so a miss shows, and what was held over it isn't judged.

use async_nats::{Client, Message};
use futures_util::StreamExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtbus_testbed::watch::sequence_of;

/// One change of a record, as far as it matters here.
#[derive(Debug, Clone)]
struct Change {
    revision: u64,
    state: String,
    phase: String,
    claim: u64,
    attempt: u64,
    generation: u64,
    worker: String,
    at: String,
}

/// What a claim holds while it works.
#[derive(Debug)]
struct Grip {
    claim: u64,
    /// Names, and whether alone.
    locks: Vec<(String, bool)>,
}

/// Sees everything; judges what it sees.
#[derive(Debug, Default)]
pub struct Witness {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    gaps: u64,
    lives: BTreeMap<String, Vec<Change>>,
    grips: BTreeMap<String, Grip>,
    violations: Vec<(String, String)>,
}

impl Witness {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches, for ever.
    pub async fn watch(&self, client: Client) {
        let mut events = client.subscribe("events.jobs.>").await.unwrap();
        while let Some(event) = events.next().await {
            self.see(&event);
        }
    }

    fn see(&self, event: &Message) {
        let Some(headers) = &event.headers else {
            return;
        };
        let revision = sequence_of(headers);
        let id = event.subject.trim_start_matches("events.jobs.");
        let record: Value = serde_json::from_slice(&event.payload).unwrap_or_default();
        self.inner().see(id, revision, &record);
    }

    /// What broke a rule: the job, and how.
    pub fn violations(&self) -> Vec<(String, String)> {
        self.inner().violations.clone()
    }

    /// How many changes were seen, and how often some were missed.
    pub fn counts(&self) -> (usize, u64) {
        let inner = self.inner();
        (inner.lives.values().map(Vec::len).sum(), inner.gaps)
    }

    /// The life of a job, a line for each change that was seen.
    pub fn life(&self, id: &str) -> String {
        let mut text = String::new();
        let inner = self.inner();
        for change in inner.lives.get(id).into_iter().flatten() {
            let Change {
                revision,
                state,
                phase,
                claim,
                attempt,
                generation,
                worker,
                at,
            } = change;
            writeln!(
                text,
                "  {revision:>7} {at} {state:<10} {phase:<7} generation {generation} claim {claim} \
                 attempt {attempt} {worker}"
            )
            .unwrap();
        }
        text
    }
}

impl Inner {
    fn see(&mut self, id: &str, revision: u64, record: &Value) {
        if revision != self.last + 1 {
            self.gaps += 1;
            self.grips.clear();
        }
        self.last = self.last.max(revision);
        if record.is_null() {
            self.lives.remove(id);
            self.grips.remove(id);
            return;
        }
        let change = change(revision, record);
        if let Some(before) = self.lives.get(id).and_then(|life| life.last()) {
            let broken = broken(before, &change);
            self.violations
                .extend(broken.map(|text| (id.to_owned(), text)));
        }
        self.judge_locks(id, &change, record);
        self.lives.entry(id.to_owned()).or_default().push(change);
    }

    /// No two that work at the same time have the same lock, unless both share it.
    fn judge_locks(&mut self, id: &str, change: &Change, record: &Value) {
        let works = matches!(change.state.as_str(), "running" | "cancelling")
            && matches!(change.phase.as_str(), "work" | "commit");
        if !works {
            self.grips.remove(id);
            return;
        }
        let locks = locks(record);
        for (other, grip) in self.grips.iter().filter(|(other, _)| *other != id) {
            for (name, alone) in &locks {
                let same = grip.locks.iter().find(|(held, _)| held == name);
                if same.is_some_and(|(_, other_alone)| *alone || *other_alone) {
                    let text = format!(
                        "works with lock {name} while {other} (claim {}) does",
                        grip.claim
                    );
                    self.violations.push((id.to_owned(), text));
                }
            }
        }
        let claim = change.claim;
        self.grips.insert(id.to_owned(), Grip { claim, locks });
    }
}

fn change(revision: u64, record: &Value) -> Change {
    let number = |name: &str| record[name].as_u64().unwrap_or_default();
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let moment = record["timeline"].as_array().and_then(|t| t.last());
    let at = moment.and_then(|moment| moment["at"].as_str());
    Change {
        revision,
        state: text("state"),
        phase: text("phase"),
        claim: number("claim"),
        attempt: number("attempt"),
        generation: number("generation"),
        worker: text("worker"),
        at: at.unwrap_or_default().to_owned(),
    }
}

/// What a change of a record may never do.
fn broken(before: &Change, now: &Change) -> Option<String> {
    let was_final = matches!(before.state.as_str(), "succeeded" | "failed" | "cancelled");
    if now.revision <= before.revision {
        return None;
    }
    if was_final && now.generation <= before.generation {
        return Some(format!(
            "was {} at {}, then {} at {}",
            before.state, before.revision, now.state, now.revision
        ));
    }
    if now.claim < before.claim || now.generation < before.generation {
        return Some(format!(
            "a number of its record went down at {}",
            now.revision
        ));
    }
    None
}

/// What a job holds while it works: what its task takes itself, and the publisher's own.
fn locks(record: &Value) -> Vec<(String, bool)> {
    let param = |name: &str| {
        let id = record["params"][name].as_str().unwrap_or_default();
        format!("disk.{id}")
    };
    let mut found = match record["task"].as_str() {
        Some("create_disk" | "resize" | "delete_disk") => vec![(param("disk"), true)],
        Some("convert") => vec![(param("disk"), false), (param("to"), true)],
        Some(_) | None => Vec::new(),
    };
    for (kind, alone) in [("exclusive", true), ("shared", false)] {
        let names = record["locks"][kind].as_array().into_iter().flatten();
        found.extend(names.filter_map(|name| Some((name.as_str()?.to_owned(), alone))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(changes: &[(&str, Value)]) -> Vec<String> {
        let mut inner = Inner::default();
        for (number, (id, record)) in changes.iter().enumerate() {
            inner.see(id, number as u64 + 1, record);
        }
        let texts = inner.violations.into_iter();
        texts.map(|(id, text)| format!("{id}: {text}")).collect()
    }

    fn at_work(claim: u64, locks: &Value) -> Value {
        json!({"state": "running", "phase": "work", "task": "ping", "claim": claim, "locks": locks})
    }

    #[test]
    fn two_that_share_a_lock_are_well_and_two_of_which_one_is_alone_are_not() {
        let shared = json!({"shared": ["x.a"]});
        let alone = json!({"exclusive": ["x.a"]});
        let fine = [("a", at_work(1, &shared)), ("b", at_work(1, &shared))];
        assert_eq!(seen(&fine), Vec::<String>::new());
        let bad = [("a", at_work(1, &shared)), ("b", at_work(1, &alone))];
        assert_eq!(
            seen(&bad),
            ["b: works with lock x.a while a (claim 1) does"]
        );
        let over = json!({"state": "succeeded", "claim": 1});
        let after = [
            ("a", at_work(1, &alone)),
            ("a", over),
            ("b", at_work(1, &alone)),
        ];
        assert_eq!(seen(&after), Vec::<String>::new());
    }

    #[test]
    fn what_was_held_before_a_miss_is_not_judged() {
        let mut inner = Inner::default();
        let alone = json!({"exclusive": ["x.a"]});
        inner.see("a", 1, &at_work(1, &alone));
        inner.see("b", 3, &at_work(1, &alone));
        assert_eq!((inner.violations.len(), inner.gaps), (0, 1));
    }

    #[test]
    fn a_final_state_is_left_by_another_generation_alone() {
        let over = json!({"state": "failed", "generation": 1});
        let again = json!({"state": "queued", "generation": 2});
        let wrong = json!({"state": "running", "generation": 1});
        assert_eq!(
            seen(&[("a", over.clone()), ("a", again)]),
            Vec::<String>::new()
        );
        assert_eq!(seen(&[("a", over), ("a", wrong)]).len(), 1);
    }
}
