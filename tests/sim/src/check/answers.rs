//! What was answered about a job was so while it was asked. That it stays so others look for: what
//! only a request may do, how records change, which message a job is claimed with.

use super::{History, Version, Versions, is_final, number, text};
use crate::client::Answer;
use serde_json::Value;

pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for answer in &history.answers {
        let Some(verb) = answer.ask.subject.strip_prefix("virtbus.jobs.") else {
            continue;
        };
        // Whoever got an error knows nothing.
        let Some(outcome) = answer.answer["outcome"].as_str() else {
            continue;
        };
        let id = text(&answer.ask.body, "id");
        let life = jobs.get(id).map_or(&[][..], Vec::as_slice);
        if !was_so(verb, outcome, answer, life) {
            let (sent, came) = (answer.sent, answer.came);
            let told = &answer.answer;
            wrong.push(format!(
                "{id}: {verb} from {sent} to {came} was answered {told}"
            ));
        }
    }
    wrong
}

/// Whether the job was so at some time between request and answer, or became so.
fn was_so(verb: &str, outcome: &str, answer: &Answer, life: &[Version]) -> bool {
    let counted = || {
        life.iter().enumerate().filter(|(place, version)| {
            let next = life.get(place + 1);
            version.at <= answer.came && next.is_none_or(|next| next.at >= answer.sent)
        })
    };
    let was = |is_it: &dyn Fn(&Value) -> bool| counted().any(|(_, version)| is_it(&version.value));
    let became = |is_it: &dyn Fn(&Value, &Value) -> bool| {
        let new = counted().filter(|(_, version)| version.at >= answer.sent);
        let mut changes =
            new.filter_map(|(place, now)| Some((life.get(place.checked_sub(1)?)?, now)));
        changes.any(|(before, now)| is_it(&before.value, &now.value))
    };
    let state =
        |states: &'static [&str]| move |record: &Value| states.contains(&text(record, "state"));
    let is_over = |record: &Value| is_final(text(record, "state"));
    match (verb, outcome) {
        ("cancel", "cancelled") => became(&|before, now| {
            let was_at_rest = state(&["queued", "waiting"])(before);
            was_at_rest && state(&["cancelled"])(now) && !now["cancel"].is_null()
        }),
        ("cancel", "cancelling") => was(&state(&["cancelling"])),
        ("cancel", "too_late") => was(&|record| text(record, "phase") == "commit"),
        ("cancel" | "priority", "already_started") => was(&state(&["running", "cancelling"])),
        ("cancel" | "priority", "already_finished") => was(&is_over),
        ("priority", "changed") => was(&|record| {
            let said = &answer.answer["job"];
            let is_same = ["state", "queue", "priority"].map(|field| said[field] == record[field]);
            let is_same =
                is_same == [true; 3] && number(said, "generation") == number(record, "generation");
            let is_there = text(said, "priority") == text(&answer.ask.body, "priority");
            is_same && is_there && state(&["queued", "waiting"])(record)
        }),
        ("retry", "queued") => became(&|before, now| is_over(before) && state(&["queued"])(now)),
        ("retry", "not_final") => was(&|record| !is_over(record)),
        (_, "unknown") => {
            let was_gone = was(&Value::is_null);
            was_gone || life.first().is_none_or(|first| first.at >= answer.sent)
        }
        _ => false,
    }
}
