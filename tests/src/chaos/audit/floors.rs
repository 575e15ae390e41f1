//! What must have happened at all: a run in which nothing did shows nothing.
//!
//! The floors lie far below what is seen on two busy processors (some fifteen jobs and one fault a
//! second), so that none of them measures the machine.

use super::{Facts, Violation};
use std::collections::BTreeSet;
use std::time::Duration;

/// Jobs that somebody was promised, in each second of faults.
const JOBS_PER_S: u64 = 2;
/// Seconds of faults, for each of which one was done.
const FAULT_S: u64 = 5;
/// Seconds of faults, for each of which one job was attempted more than once.
const AGAIN_S: u64 = 20;
/// Seconds of faults, for each of which one change of mind was answered.
const ANSWER_S: u64 = 20;
/// From here on each outcome that isn't rare has come.
const LONG: Duration = Duration::from_secs(240);
/// Those.
const OUTCOMES: [(&str, &str); 8] = [
    ("cancel", "cancelled"),
    ("cancel", "cancelling"),
    ("cancel", "already_started"),
    ("cancel", "already_finished"),
    ("priority", "changed"),
    ("priority", "already_started"),
    ("priority", "already_finished"),
    ("retry", "queued"),
];

/// What of a run is compared, beside what is seen afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How long there were faults.
    pub length: Duration,
    /// How many there were.
    pub faults: u64,
    /// Whether those were hurt that do the work.
    pub at_work: bool,
}

/// What didn't happen, or not often enough.
pub fn judge(facts: &Facts, effort: Effort) -> Vec<Violation> {
    let seconds = effort.length.as_secs();
    let again = match effort.at_work {
        true => seconds / AGAIN_S,
        false => 0,
    };
    let promised = facts.lines.values().filter(|line| line.is_promised());
    let asked = facts.lines.values().flat_map(|line| &line.asked);
    let answered = asked.filter(|asked| !asked.outcome.is_empty());
    let answers: Vec<(&str, &str)> = answered
        .map(|asked| (asked.verb, asked.outcome.as_str()))
        .collect();
    let counts = [
        (
            "jobs promised",
            promised.count() as u64,
            seconds * JOBS_PER_S,
        ),
        ("faults", effort.faults, seconds / FAULT_S),
        ("jobs attempted again", facts.interrupted() as u64, again),
        (
            "changes of mind answered",
            answers.len() as u64,
            seconds / ANSWER_S,
        ),
    ];
    let few = counts.into_iter().filter(|(_, count, floor)| count < floor);
    let few = few.map(|(what, count, floor)| format!("{count} {what}, fewer than {floor}"));
    let come: BTreeSet<(&str, &str)> = answers.into_iter().collect();
    let must_come = OUTCOMES.iter().filter(|_| effort.length >= LONG);
    let missing = must_come.filter(|outcome| !come.contains(*outcome));
    let missing = missing.map(|(verb, outcome)| format!("no {verb} was answered {outcome}"));
    few.chain(missing).map(Violation::general).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::ledger::{Asked, Line, Order, Promise};
    use crate::chaos::records::Held;
    use serde_json::{Value, json};

    /// A run of so many jobs, of which each was asked about in all ways.
    fn facts(jobs: usize) -> Facts {
        let mut facts = Facts::default();
        for number in 0..jobs {
            let id = format!("p0-{number}");
            let asked = OUTCOMES.map(|(verb, outcome)| Asked {
                verb,
                question: Value::Null,
                outcome: outcome.to_owned(),
            });
            let (subject, body) = (String::new(), Value::Null);
            let order = Order {
                id: id.clone(),
                subject,
                body,
            };
            let line = Line {
                order,
                promise: Promise::Given,
                sent: 1,
                asked: asked.into(),
            };
            facts.lines.insert(id.clone(), line);
            let (revision, value) = (1, json!({"attempt": 2}));
            facts.records.insert(id, Held { revision, value });
        }
        facts
    }

    fn told(facts: &Facts, seconds: u64, faults: u64) -> Vec<String> {
        let length = Duration::from_secs(seconds);
        let effort = Effort {
            length,
            faults,
            at_work: true,
        };
        let found = judge(facts, effort);
        found.into_iter().map(|violation| violation.text).collect()
    }

    #[test]
    fn a_run_in_which_nothing_happened_shows_nothing() {
        let told = told(&Facts::default(), 40, 0);
        assert_eq!(told.len(), 4, "{told:?}");
    }

    #[test]
    fn a_short_run_needs_a_little_of_each_and_a_long_one_every_outcome() {
        let mut facts = facts(600);
        assert_eq!(told(&facts, 300, 60), Vec::<String>::new());
        for line in facts.lines.values_mut() {
            line.asked.retain(|asked| asked.outcome != "cancelling");
        }
        assert_eq!(told(&facts, 40, 8), Vec::<String>::new());
        assert_eq!(told(&facts, 300, 60), ["no cancel was answered cancelling"]);
        assert_eq!(told(&facts, 40, 7), ["7 faults, fewer than 8"]);
    }
}
