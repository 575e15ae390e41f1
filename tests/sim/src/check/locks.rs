//! Holders, waiters, and effects under locks.

use super::{History, Version, Versions, is_final, text, version_at};
use crate::broker::stream::Ms;
use serde_json::Value;

/// After this a woken waiter may be passed.
const WAKE_PATIENCE: Ms = 30_000;
/// How far two clocks may be apart.
const CLOCKS_APART: Ms = 2_000;

/// How many may share a lock.
fn limit(history: &History, name: &str) -> usize {
    match name.strip_prefix("tenant.") {
        Some(_) => usize::try_from(history.plan.cap).unwrap_or(usize::MAX),
        None => usize::MAX,
    }
}

/// Each version of a lock with the one before it.
fn pairs(versions: &[Version]) -> impl Iterator<Item = (&Value, &Version)> {
    let befores = versions.iter().map(|version| &version.value);
    std::iter::once(&Value::Null).chain(befores).zip(versions)
}

/// Never more holders than a lock allows, and none that still works is taken off.
pub(super) fn holders(history: &History, jobs: &Versions, locks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, versions) in locks {
        let limit = limit(history, name);
        for (before, version) in pairs(versions) {
            let lock = &version.value;
            let sharers = list(lock, "shared").count();
            if (lock["exclusive"].is_object() && sharers > 0) || sharers > limit {
                wrong.push(format!("{name} revision {}: {lock}", version.revision));
            }
            wrong.extend(lost(name, before, version, jobs));
        }
    }
    wrong
}

/// First come, first served.
pub(super) fn lines(history: &History, jobs: &Versions, locks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, versions) in locks {
        let limit = limit(history, name);
        let pairs = pairs(versions);
        wrong.extend(pairs.filter_map(|(before, now)| passed(name, before, now, jobs, limit)));
    }
    wrong
}

fn list<'a>(lock: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    lock[field].as_array().into_iter().flatten()
}

fn held_by(lock: &Value) -> impl Iterator<Item = (&str, &str)> {
    let exclusive = lock["exclusive"].is_object().then(|| &lock["exclusive"]);
    let exclusive = exclusive
        .into_iter()
        .map(|holder| (text(holder, "job"), "exclusive"));
    exclusive.chain(list(lock, "shared").map(|holder| (text(holder, "job"), "shared")))
}

fn is_over(jobs: &Versions, job: &str, at: Ms) -> bool {
    let version = jobs.get(job).and_then(|versions| version_at(versions, at));
    version.is_none_or(|version| is_final(text(&version.value, "state")))
}

/// Somebody who waited longer was passed.
fn passed(
    name: &str,
    before: &Value,
    version: &Version,
    jobs: &Versions,
    limit: usize,
) -> Option<String> {
    let lock = &version.value;
    let had = |job: &str| held_by(before).any(|(other, _)| other == job);
    let (job, mode) = held_by(lock).find(|(job, _)| !had(job))?;
    // A claim that stood still while another ended its job is about to find that out.
    if is_over(jobs, job, version.at) {
        return None;
    }
    // Its record keeps the ticket of an earlier wait, also while it's in no line.
    let record = jobs
        .get(job)
        .and_then(|versions| version_at(versions, version.at));
    // One that is only looked at and given up goes before all: an older claim of it had the lock.
    if record.is_some_and(|record| text(&record.value, "state") == "cancelling") {
        return None;
    }
    let ticket = record.and_then(|record| record.value["ticket"].as_u64());
    let ticket = ticket.unwrap_or(u64::MAX);
    let mut ahead = list(before, "waiters").filter(|waiter| {
        let conflicts = mode == "exclusive" || text(waiter, "mode") == "exclusive";
        let is_ahead = waiter["ticket"]
            .as_u64()
            .is_some_and(|first| first < ticket);
        let woken = waiter["woken_at"]
            .as_str()
            .and_then(|text| text.parse().ok());
        let overslept = woken.is_some_and(|woken: virtbus_wire::Timestamp| {
            version.at - woken.as_millis() > WAKE_PATIENCE - CLOCKS_APART
        });
        let other = text(waiter, "job");
        let counts = conflicts || limit < usize::MAX;
        other != job && counts && is_ahead && !overslept && !is_over(jobs, other, version.at)
    });
    if limit < usize::MAX {
        // Where so many may share it, those ahead only need to find room.
        let living = held_by(before).filter(|(job, _)| !is_over(jobs, job, version.at));
        let room = limit.saturating_sub(living.count());
        ahead.nth(room.saturating_sub(1))
    } else {
        ahead.next()
    }
    .map(|passed| {
        let (other, revision) = (text(passed, "job"), version.revision);
        format!("{name} revision {revision}: {job} passed {other}: {before}")
    })
}

/// A holder whose job still runs was taken off.
fn lost(name: &str, before: &Value, version: &Version, jobs: &Versions) -> Option<String> {
    let lock = &version.value;
    let has = |job: &str| held_by(lock).any(|(other, _)| other == job);
    let (job, _) = held_by(before).find(|(job, _)| !has(job))?;
    let record = jobs
        .get(job)
        .and_then(|versions| version_at(versions, version.at))?;
    let phase = text(&record.value, "phase");
    let is_held = text(&record.value, "state") == "running" && matches!(phase, "work" | "commit");
    is_held.then(|| {
        let revision = version.revision;
        format!("{name} revision {revision}: {job} lost it in phase {phase}: {before} {lock}")
    })
}

/// A claim that stood still past its fence keeps the operating system's lock, not the job's: its
/// successor may have given those back, to wait for it. Only as long as the job isn't over.
fn is_of_a_frozen_claim(claim: u64, record: &Value) -> bool {
    let state = text(record, "state");
    let is_running = matches!(state, "running" | "cancelling");
    let is_another = record["claim"].as_u64() != Some(claim) || !is_running;
    is_another && !is_final(state)
}

/// Every effect on a disk happens while its job has the disk's lock, and those of its own.
pub(super) fn fences(history: &History, jobs: &Versions, locks: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for effect in &history.effects {
        let record = jobs
            .get(&effect.job)
            .and_then(|versions| version_at(versions, effect.at));
        if record.is_some_and(|record| is_of_a_frozen_claim(effect.claim, &record.value)) {
            continue;
        }
        let own = record
            .map(|record| record.value["locks"].clone())
            .unwrap_or_default();
        let own = ["exclusive", "shared"].map(|mode| own[mode].clone());
        let own = own
            .iter()
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str);
        let names = own
            .map(str::to_owned)
            .chain([format!("disk.{}", effect.disk)]);
        for name in names {
            let lock = locks
                .get(&name)
                .and_then(|versions| version_at(versions, effect.at));
            let has_it =
                lock.is_some_and(|lock| held_by(&lock.value).any(|(job, _)| job == effect.job));
            if !has_it {
                let lock = lock.map(|lock| &lock.value);
                wrong.push(format!("{effect:?} without {name}: {lock:?}"));
            }
        }
    }
    wrong
}
