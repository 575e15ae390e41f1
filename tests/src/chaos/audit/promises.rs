//! Records against what was published, asked and answered.

use super::{Facts, Violation};
use crate::chaos::ledger::{Line, Promise};
use serde_json::Value;
use std::time::Duration;
use virtbus_wire::Timestamp;

/// How far clocks and looks may be apart.
const TOLERANCE: Duration = Duration::from_secs(1);

pub(super) fn judge(facts: &Facts) -> Vec<Violation> {
    let mut found = Vec::new();
    for id in facts.records.keys() {
        match facts.lines.get(id) {
            None => found.push(Violation::of(id, "has a record, and nobody published it")),
            Some(line) if line.promise == Promise::Refused => {
                found.push(Violation::of(id, "has a record, and was refused"));
            }
            Some(line) => {
                let broken = of_job(facts, line);
                found.extend(broken.into_iter().map(|text| Violation::of(id, text)));
            }
        }
    }
    found
}

fn of_job(facts: &Facts, line: &Line) -> Vec<String> {
    let record = facts.record(&line.order.id);
    let mut found = Vec::new();
    found.extend(end(line, record));
    // Another attempt has rules of its own.
    if !line.was_asked("retry") {
        found.extend(cancel(line, record));
        found.extend(priority(line, record));
        found.extend(times(line, record));
    }
    found.extend(dependencies(facts, line, record));
    found
}

fn code(record: &Value) -> &str {
    record["error"]["code"].as_str().unwrap_or_default()
}

fn is(record: &Value, state: &str) -> bool {
    record["state"] == state
}

/// Whether a job may end like this.
fn end(line: &Line, record: &Value) -> Option<String> {
    let has_after = !line.field("after").is_null();
    let is_disk = record["task"] != "ping" && record["task"] != "feedback";
    let must_fail = line.field("params")["fail"] == true;
    if is(record, "succeeded") && must_fail {
        return Some("succeeded, and was told to fail".to_owned());
    }
    let fits = match (record["state"].as_str().unwrap_or_default(), code(record)) {
        ("failed", "worker.lost" | "job.attempts_exhausted") => true,
        ("failed", "tool.failed") => must_fail,
        ("failed", "job.expired") => !line.field("expires_at").is_null(),
        // A cycle.
        ("failed", "job.invalid_params" | "job.dependency_missing") => has_after || is_disk,
        ("failed", code) => is_disk && code.starts_with("disk."),
        ("cancelled", "job.dependency_unmet") => has_after,
        ("cancelled", "") => line.was_asked("cancel"),
        ("cancelled", _) => false,
        (_, code) => code.is_empty(),
    };
    (!fits).then(|| format!("ended {} with {}", record["state"], record["error"]))
}

/// What an answer to a cancel promised.
fn cancel(line: &Line, record: &Value) -> Option<String> {
    let asked = line.asked.iter().filter(|asked| asked.verb == "cancel");
    let told = |outcome: &str| asked.clone().any(|asked| asked.outcome == outcome);
    let state = &record["state"];
    if told("cancelled") && !is(record, "cancelled") {
        return Some(format!("cancelled by its answer, and {state}"));
    }
    // An earlier claim may have had its effect already.
    let may_be_done = record["claim"].as_u64() > Some(1);
    if told("cancelling") && is(record, "succeeded") && !may_be_done {
        return Some(format!("cancelling by its answer, and {state}"));
    }
    let alone = asked.clone().count() == 1;
    if told("too_late") && alone && is(record, "cancelled") {
        return Some(format!("too late to cancel by its answer, and {state}"));
    }
    None
}

/// What an answer to a change of priority promised.
fn priority(line: &Line, record: &Value) -> Option<String> {
    let mut asked = line.asked.iter().filter(|asked| asked.verb == "priority");
    let mut effective = asked.clone();
    if asked.any(|asked| asked.outcome.is_empty()) {
        return None;
    }
    let changed = effective.find(|asked| asked.outcome == "changed")?;
    if effective.any(|asked| asked.outcome == "changed") {
        return None;
    }
    let wanted = changed.question["priority"].as_str().unwrap_or_default();
    let queue = record["queue"].as_str().unwrap_or_default();
    let fits = record["priority"] == wanted && queue.ends_with(wanted);
    (!fits).then(|| {
        format!(
            "{wanted} by the answer, and {} on {queue}",
            record["priority"]
        )
    })
}

/// Never started early, never late.
fn times(line: &Line, record: &Value) -> Option<String> {
    let time = |value: &Value| -> Option<Timestamp> { serde_json::from_value(value.clone()).ok() };
    let began = time(&record["started_at"])?;
    if let Some(earliest) = time(line.field("not_before"))
        && began.after(TOLERANCE) < earliest
    {
        return Some(format!("started at {began}, before {earliest}"));
    }
    let latest = time(line.field("expires_at"))?;
    let is_late = began > latest.after(TOLERANCE);
    is_late.then(|| format!("started at {began}, after {latest}"))
}

/// Nothing ran before what it comes after had ended as it asked.
fn dependencies(facts: &Facts, line: &Line, record: &Value) -> Vec<String> {
    if line.was_asked("retry") || record["attempt"].as_u64() == Some(0) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for dependency in record["after"].as_array().into_iter().flatten() {
        let id = dependency["job"].as_str().unwrap_or_default();
        let known = facts.lines.get(id);
        if known.is_some_and(|line| line.was_asked("retry")) {
            continue;
        }
        let state = &facts.record(id)["state"];
        let on = dependency["on"].as_array();
        let wanted = on.map_or(state == "succeeded", |on| on.contains(state));
        if !wanted {
            found.push(format!("ran, although {id} it comes after is {state}"));
        }
    }
    found
}
