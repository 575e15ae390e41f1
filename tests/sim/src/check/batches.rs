//! Of a batch all jobs are accepted, or none.

use super::{History, Versions, text};
use serde_json::Value;

/// What was said of several jobs that were submitted at once.
pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
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
