//! A storm: many change their minds about one or two jobs, several in the same moments.

use super::{AskPlan, JobPlan, asks::pause, priority, time};
use crate::{broker::stream::Ms, chance::Chance};
use serde_json::{Value, json};

/// How far apart those are mostly who ask in the same moment: about as long as a claim takes.
const TOGETHER: Ms = 20;
/// How long after a job was published somebody has heard of it, mostly.
const HEARD: Ms = 4;
/// And the others.
const APART: Ms = 800;

/// What is asked about these jobs.
pub(super) fn asks(chance: &mut Chance, jobs: &[JobPlan], span: Ms) -> Vec<AskPlan> {
    let mut moments: Vec<Ms> = jobs.iter().map(|job| job.at + HEARD).collect();
    let first = moments.iter().copied().min().unwrap_or(0);
    moments.extend((0..chance.range(1, 5)).map(|_| first + time(chance, span)));
    let mut asks: Vec<AskPlan> = (0..chance.range(10, 31))
        .map(|_| ask(chance, jobs, &moments))
        .collect();
    // Where nobody takes them, jobs lie long enough to be moved.
    if chance.permille(500) {
        let at = time(chance, span) / 2;
        asks.extend(pause(chance, at));
    }
    asks
}

fn ask(chance: &mut Chance, jobs: &[JobPlan], moments: &[Ms]) -> AskPlan {
    let near = if chance.permille(700) {
        TOGETHER
    } else {
        APART
    };
    let at = *chance.pick(moments) + time(chance, near);
    let id = &chance.pick(jobs).id;
    let (subject, body) = match chance.range(0, 10) {
        0..5 => {
            let to = priority(chance).to_string();
            ("virtbus.jobs.priority", json!({"id": id, "priority": to}))
        }
        5..8 => ("virtbus.jobs.cancel", cancel(chance, id)),
        _ => ("virtbus.jobs.retry", json!({"id": id})),
    };
    AskPlan { at, subject, body }
}

fn cancel(chance: &mut Chance, id: &str) -> Value {
    let mut body = json!({"id": id});
    let flag = *chance.pick(&["", "", "force", "only_waiting"]);
    if !flag.is_empty() {
        body[flag] = json!(true);
    }
    body
}
