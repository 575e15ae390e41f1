//! What was answered to control requests stays true.

use super::{History, Versions, is_final, text};

pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for answer in &history.answers {
        let id = text(&answer.ask.body, "id");
        let Some(versions) = jobs.get(id) else {
            continue;
        };
        let later = versions.iter().filter(|version| version.at >= answer.came);
        let outcome = text(&answer.answer, "outcome");
        // Also if the answer to that was lost.
        let retried =
            history.plan.asks.iter().any(|other| {
                other.subject == "virtbus.jobs.retry" && text(&other.body, "id") == id
            });
        let of = |subject: &str| answer.ask.subject == subject;
        if of("virtbus.jobs.cancel") && outcome == "cancelled" && !retried {
            let last = versions.last().map(|last| text(&last.value, "state"));
            if last != Some("cancelled") {
                wrong.push(format!("{id} was answered cancelled and is {last:?}"));
            }
        }
        let asked_again = history.plan.asks.iter().filter(|other| {
            other.subject == "virtbus.jobs.priority" && text(&other.body, "id") == id
        });
        if of("virtbus.jobs.priority") && outcome == "changed" && asked_again.count() == 1 {
            let queue = format!(".{}", text(&answer.ask.body, "priority"));
            let other = later.into_iter().find(|version| {
                let is_there = text(&version.value, "queue").ends_with(&queue);
                !is_there && !is_final(text(&version.value, "state"))
            });
            if let Some(other) = other {
                wrong.push(format!("{id} was moved to {queue}, and is {}", other.value));
            }
        }
    }
    wrong
}
