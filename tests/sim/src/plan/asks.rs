//! What is asked of core.

use super::{AskPlan, jobs, priority, time};
use crate::{broker::stream::Ms, chance::Chance};
use serde_json::{Value, json};

pub(super) fn asks(chance: &mut Chance, count: u64, span: Ms) -> Vec<AskPlan> {
    let mut asks = Vec::new();
    for _ in 0..chance.range(0, 6) {
        let at = time(chance, span);
        let id = format!("j{}", chance.range(0, count));
        let queue = format!("storage.p.{}", priority(chance));
        let mut ask = |at: Ms, subject: &'static str, body: Value| {
            asks.push(AskPlan { at, subject, body });
        };
        match chance.range(0, 11) {
            10 => {
                let until = at + 1_000 + time(chance, 5_000);
                let body = json!({"worker": "w0"});
                ask(at, "virtbus.workers.drain", body.clone());
                ask(until, "virtbus.workers.undrain", body);
            }
            0..4 => {
                let force = chance.permille(300);
                ask(at, "virtbus.jobs.cancel", json!({"id": id, "force": force}));
            }
            4..7 => {
                let to = priority(chance).to_string();
                ask(
                    at,
                    "virtbus.jobs.priority",
                    json!({"id": id, "priority": to}),
                );
            }
            7 => ask(at, "virtbus.jobs.retry", json!({"id": id})),
            8 => asks.extend(pause_of(chance, &queue, at)),
            _ => ask(
                at,
                "virtbus.queues.purge",
                json!({"queue": queue, "reason": "to see"}),
            ),
        }
    }
    asks
}

/// The pause of some queue, and its end.
pub(super) fn pause(chance: &mut Chance, at: Ms) -> [AskPlan; 2] {
    let queue = format!("storage.p.{}", priority(chance));
    pause_of(chance, &queue, at)
}

fn pause_of(chance: &mut Chance, queue: &str, at: Ms) -> [AskPlan; 2] {
    let until = at + 1_000 + time(chance, 5_000);
    let body = json!({"queue": queue, "reason": "to see"});
    let ask = |at, subject| AskPlan {
        at,
        subject,
        body: body.clone(),
    };
    [
        ask(at, "virtbus.queues.pause"),
        ask(until, "virtbus.queues.resume"),
    ]
}

/// Submissions of several jobs at once.
pub(super) fn submissions(chance: &mut Chance, span: Ms) -> Vec<AskPlan> {
    let count = *chance.pick(&[0, 0, 1, 2]);
    let submissions = (0..count).map(|n| AskPlan {
        // Who serves a queue must be known before anything is accepted for it.
        at: 1_000 + time(chance, span),
        subject: "virtbus.jobs.submit",
        body: jobs::batch(chance, &format!("b{n}")),
    });
    submissions.collect()
}
