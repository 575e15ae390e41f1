//! What is published.

use super::{JobPlan, Mood, SHARED_DISKS, priority, time};
use crate::{broker::stream::Ms, chance::Chance, hosts::Looks, kind::params, perform::Deadly};
use serde_json::{Map, Value, json};
use virtbus_wire::Timestamp;

/// Locks that publishers name.
const OWN_LOCKS: [&str; 2] = ["x.a", "x.b"];
/// Who jobs may belong to.
const TENANTS: [&str; 2] = ["acme", "globex"];

pub(super) fn job(
    chance: &mut Chance,
    (n, count): (u64, u64),
    (begin, span): (Ms, Ms),
    mood: Mood,
) -> JobPlan {
    let id = format!("j{n}");
    // Many come at once, as those do that a program submits in a loop.
    let at = match chance.permille(500) {
        true => time(chance, span) / 1_500 * 1_500,
        false => time(chance, span),
    };
    let task = *chance.pick(&["ping", "resize", "resize", "create_disk", "delete_disk"]);
    let disk = match task {
        "resize" => (*chance.pick(&SHARED_DISKS)).to_owned(),
        _ => format!("own-{n}"),
    };
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("id", json!(id));
    set("task", json!(task));
    set("params", params(task, &disk, 1_048_576 + n * 512));
    let ms = match mood {
        Mood::Zombies => *chance.pick(&[3_000, 9_000]),
        Mood::Storm => *chance.pick(&[0, 40, 400, 1_500]),
        Mood::Calm | Mood::Mixed => *chance.pick(&[0, 0, 40, 400, 3_000, 9_000]),
    };
    let fails = *chance.pick(&[0, 0, 0, 0, 1, 2, 9]);
    let effect = match mood {
        Mood::Storm => *chance.pick(&[0, 400, 2_000]),
        Mood::Zombies | Mood::Calm | Mood::Mixed => *chance.pick(&[0, 0, 0, 2_000]),
    };
    let labels = [("ms", ms), ("fails", fails), ("effect", effect)];
    let labels = labels.map(|(name, value)| (name.to_owned(), json!(value.to_string())));
    set("labels", Value::Object(Map::from_iter(labels)));
    set("retry", json!({"max_attempts": chance.range(1, 4)}));
    if chance.permille(300) {
        let lock = *chance.pick(&OWN_LOCKS);
        let mode = if chance.permille(500) {
            "exclusive"
        } else {
            "shared"
        };
        set("locks", json!({mode: [lock]}));
    }
    if chance.permille(200) {
        let before = format!("j{}", chance.range(0, count + 1));
        let on = *chance.pick(&["succeeded", "failed", "cancelled"]);
        set("after", json!([{"job": before, "on": [on, "succeeded"]}]));
    }
    if chance.permille(80) {
        set("timeout_s", json!(chance.range(1, 6)));
    }
    let later = |chance: &mut Chance, high: u64| {
        let at = begin + at + Ms::try_from(chance.range(500, high)).unwrap_or(0);
        json!(Timestamp::from_millis(at))
    };
    if chance.permille(60) {
        let at = later(chance, 8_000);
        set("not_before", at);
    }
    if chance.permille(60) {
        let at = later(chance, 15_000);
        set("expires_at", at);
    }
    JobPlan {
        at,
        id,
        priority: priority(chance),
        body: Value::Object(body),
        copy: chance
            .permille(80)
            .then(|| (time(chance, 10_000), priority(chance))),
    }
}

/// Whose a job is, if tenants have a cap, and what is found out about it before its claim, if
/// workers look.
pub(super) fn settle(chance: &mut Chance, body: &mut Value, cap: u32, hosts: bool) {
    if cap > 0 && chance.permille(500) {
        body["tenant"] = json!(*chance.pick(&TENANTS));
    }
    if hosts && chance.permille(300) {
        let looks = *chance.pick(&Looks::ALL) as u64;
        body["labels"]["look"] = json!(looks.to_string());
    }
}

/// One of the jobs kills each worker that looks at it, or the first two.
pub(super) fn poison(chance: &mut Chance, jobs: &mut [JobPlan]) {
    let count = jobs.len() as u64;
    let which = usize::try_from(chance.range(0, count)).unwrap_or(0);
    let here = [Deadly::Locks, Deadly::Locks, Deadly::Clean, Deadly::Recover];
    let here = *chance.pick(&here) as u64;
    let kills = *chance.pick(&[2, 99, 99]);
    let labels = &mut jobs[which].body["labels"];
    labels["deadly"] = json!(here.to_string());
    labels["kills"] = json!(kills.to_string());
}

/// Most jobs want the same lock: more than its record names wait for it.
pub(super) fn join(chance: &mut Chance, body: &mut Value) {
    if chance.permille(800) {
        let mode = *chance.pick(&["exclusive", "exclusive", "exclusive", "shared"]);
        body["locks"] = json!({mode: [OWN_LOCKS[0]]});
    }
}

/// The jobs of one submission: each after the one before it, or after the first. Some batches
/// can't be accepted, because of their last job.
pub(super) fn batch(chance: &mut Chance, name: &str) -> Value {
    let count = chance.range(2, 5);
    let jobs = (0..count).map(|n| {
        let task = *chance.pick(&["ping", "create_disk"]);
        let id = format!("{name}-{n}");
        let mut job = json!({"id": id, "task": task, "params": params(task, &id, 0), "pool": "p",
            "priority": priority(chance), "labels": {"ms": "40"}});
        if n > 0 {
            let before = -i64::try_from(chance.range(1, n + 1)).unwrap_or(1);
            job["after"] = json!([before]);
        }
        job
    });
    let mut jobs: Vec<Value> = jobs.collect();
    if chance.permille(200)
        && let Some(last) = jobs.last_mut()
    {
        last["params"] = json!({"nobody": "knows"});
    }
    json!({"jobs": jobs})
}
