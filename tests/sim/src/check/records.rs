//! Records.

use super::{History, Version, Versions, is_final, number, text};
use serde_json::Value;

/// Every acknowledged publication ends in one final record.
pub(super) fn ends(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for job in &history.acked {
        let last = jobs.get(job).and_then(|versions| versions.last());
        let state = last.map(|last| text(&last.value, "state"));
        if !state.is_some_and(is_final) {
            wrong.push(format!(
                "{job} was acknowledged and is {state:?} at the end"
            ));
        }
    }
    wrong
}

/// Records change only as the protocol says.
pub(super) fn changes(jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (job, versions) in jobs {
        wrong.extend(begin(job, &versions[0].value));
        for pair in versions.windows(2) {
            wrong.extend(change(job, &pair[0].value, &pair[1]));
        }
        wrong.extend(in_spite(job, versions));
    }
    wrong
}

/// One that was cancelled as it ran has only succeeded if a claim before its last had its effect.
fn in_spite(job: &str, versions: &[Version]) -> Option<String> {
    let mut committed = None;
    for pair in versions.windows(2) {
        let [before, now] = [&pair[0].value, &pair[1].value];
        if text(before, "phase") == "commit" {
            committed = committed.max(Some(number(before, "claim")));
        }
        let is_so = text(before, "state") == "cancelling" && text(now, "state") == "succeeded";
        if is_so && committed.is_none_or(|claim| claim >= number(now, "claim")) {
            return Some(format!(
                "{job} succeeded though it was cancelled: {}",
                brief(now)
            ));
        }
    }
    None
}

fn begin(job: &str, first: &Value) -> Option<String> {
    let is_legal = match text(first, "state") {
        "queued" | "waiting" | "failed" | "cancelled" => number(first, "claim") == 0,
        "running" => number(first, "claim") == 1,
        _ => false,
    };
    // One that a worker passed on before anybody had made its record is published once more.
    let is_passed_on =
        text(first, "state") == "queued" && !text(first, "queue").starts_with("storage.p.");
    let generation = if is_passed_on { 2 } else { 1 };
    (!is_legal || number(first, "generation") != generation)
        .then(|| format!("{job} begins {}", brief(first)))
}

fn brief(record: &Value) -> String {
    let fields = [
        "state",
        "queue",
        "generation",
        "claim",
        "attempt",
        "tries_left",
        "worker",
        "phase",
    ];
    let fields = fields.map(|field| format!("{field}={}", record[field]));
    fields.join(" ")
}

fn change(job: &str, from: &Value, to: &Version) -> Option<String> {
    let next = &to.value;
    let grown = |field: &str| number(next, field).checked_sub(number(from, field));
    let (claims, generations) = (grown("claim"), grown("generation"));
    let (before, after) = (text(from, "state"), text(next, "state"));
    let same_owner = from["worker"] == next["worker"] && from["boot"] == next["boot"];
    let is_claim = claims == Some(1) && generations == Some(0);
    let is_same = claims == Some(0) && generations == Some(0);
    let is_published = claims == Some(0) && generations == Some(1);
    // What is left of a submission that was refused, before any message of it lay anywhere.
    let is_taken_back =
        from["dedupe"].is_null() && (number(from, "claim"), number(from, "generation")) == (0, 1);
    let is_legal = match (before, after) {
        ("queued", "queued") => is_published,
        ("queued", "running") => is_claim,
        ("queued", "waiting" | "cancelled" | "failed") => is_same,
        ("running", "running") => is_claim || ((is_same || is_published) && same_owner),
        ("cancelling", "cancelling") => is_claim || ((is_same || is_published) && same_owner),
        ("running", "cancelling") => is_same && same_owner,
        ("running", "waiting" | "succeeded" | "failed" | "cancelled") => is_same,
        ("cancelling", "succeeded" | "failed" | "cancelled") => is_same,
        ("waiting", "queued") => is_published,
        ("waiting", "waiting" | "cancelled" | "failed") => is_same,
        ("succeeded" | "failed" | "cancelled", "queued") => is_published,
        ("queued", "") => is_taken_back,
        ("", _) => begin(job, next).is_none(),
        _ => false,
    };
    let attempts = grown("attempt").is_some_and(|grown| grown <= 1);
    (!is_legal || !attempts).then(|| {
        format!(
            "{job} revision {}: {} becomes {}",
            to.revision,
            brief(from),
            brief(next)
        )
    })
}
