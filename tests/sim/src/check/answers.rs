//! What was answered to control requests stays true.

use super::{History, Versions, is_final, text};
use serde_json::Value;

pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = submissions(history, jobs);
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

/// What was said of several jobs that were submitted at once.
fn submissions(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    let asked = history.answers.iter();
    for answer in asked.filter(|answer| answer.ask.subject == "virtbus.jobs.submit") {
        let batch = answer.ask.body["jobs"].as_array().into_iter().flatten();
        let batch: Vec<&Value> = batch.collect();
        let cant_be = batch.iter().any(|job| job["params"]["nobody"].is_string());
        let accepted = answer.answer.as_array();
        let count = accepted.map_or(0, Vec::len);
        if count != if accepted.is_some() { batch.len() } else { 0 } || cant_be && count > 0 {
            wrong.push(format!("{} to {:?}", answer.answer, answer.ask.body));
        }
        for (n, job) in batch.iter().enumerate() {
            let first = jobs.get(text(job, "id")).map(|versions| &versions[0].value);
            if cant_be && first.is_some() {
                wrong.push(format!(
                    "{} was made of a batch that can't be",
                    text(job, "id")
                ));
            }
            let last = jobs
                .get(text(job, "id"))
                .and_then(|versions| versions.last());
            if accepted.is_some() && last.is_none_or(|last| last.value.is_null()) {
                wrong.push(format!("{} was accepted and is nowhere", text(job, "id")));
            }
            let back = job["after"][0].as_i64().map(i64::unsigned_abs);
            let back = back.and_then(|back| n.checked_sub(usize::try_from(back).ok()?));
            let named = back.map(|before| text(batch[before], "id"));
            let after = first.map(|record| &record["after"][0]["job"]);
            if let (Some(named), Some(after)) = (named, after)
                && after != named
            {
                wrong.push(format!(
                    "{} comes after {after}, not {named}",
                    text(job, "id")
                ));
            }
        }
    }
    wrong
}
