//! What only a request may do to a job: move it, cancel it, begin it anew.

use super::{History, Version, Versions, is_final, number, text};
use crate::net::BEGIN;
use serde_json::Value;

/// Who cancels what is left of a batch that was refused.
const SUBMIT: &str = "virtbus.jobs.submit";

/// A change of a job's record.
struct Change<'a> {
    history: &'a History,
    job: &'a str,
    before: &'a Value,
    now: &'a Version,
}

/// Nothing of that happens to a job for which nobody asked until then.
pub(super) fn check(history: &History, jobs: &Versions) -> Vec<String> {
    let mut wrong = Vec::new();
    for (job, versions) in jobs {
        for pair in versions.windows(2) {
            let (before, now) = (&pair[0].value, &pair[1]);
            // Removed, or made anew.
            if before.is_null() || now.value.is_null() {
                continue;
            }
            let change = Change {
                history,
                job,
                before,
                now,
            };
            wrong.extend(change.unasked().map(|what| {
                let (revision, now) = (now.revision, &now.value);
                format!("{job} is {what} at revision {revision}: {before} becomes {now}")
            }));
        }
    }
    wrong
}

impl<'a> Change<'a> {
    /// What it does without having been asked to.
    fn unasked(&self) -> Option<&'static str> {
        let differs = |field: &str| self.before[field] != self.now.value[field];
        let is_cancel = self.before["cancel"].is_null() && differs("cancel");
        let [from, to] = self.both("state");
        if differs("queue") && !self.may_move() {
            Some("moved")
        } else if is_cancel && !self.may_cancel() {
            Some("cancelled")
        } else if is_final(from) && !is_final(to) && self.asked("retry").next().is_none() {
            Some("begun anew")
        } else {
            None
        }
    }

    fn both(&self, field: &str) -> [&'a str; 2] {
        [self.before, &self.now.value].map(|record| text(record, field))
    }

    /// What was asked of the job until then, answered or not.
    fn asked(&self, verb: &'static str) -> impl Iterator<Item = &'a Value> {
        let (job, until) = (self.job, self.now.at);
        let asks = self.history.plan.asks.iter();
        let asks = asks.filter(move |ask| {
            let is_it = ask.subject.strip_prefix("virtbus.jobs.") == Some(verb);
            is_it && text(&ask.body, "id") == job && BEGIN + ask.at <= until
        });
        asks.map(|ask| &ask.body)
    }

    /// Only what nobody runs is moved, to where it was asked to go. Workers may pass it on to
    /// queues of their own, or claim it there.
    fn may_move(&self) -> bool {
        let [from, to] = self.both("queue").map(|queue| queue.rsplit_once('.'));
        let (Some((from, _)), Some((to, priority))) = (from, to) else {
            return false;
        };
        if self.history.plan.hosts && to.starts_with("storage.h") {
            return true;
        }
        let claims = [self.before, &self.now.value].map(|record| number(record, "claim"));
        let is_at_rest = matches!(
            self.both("state"),
            ["queued", "queued"] | ["waiting", "waiting"]
        );
        let mut asked = self.asked("priority");
        let was_asked = asked.any(|body| text(body, "priority") == priority);
        from == to && is_at_rest && claims[0] == claims[1] && was_asked
    }

    fn may_cancel(&self) -> bool {
        let mut asks = self.history.plan.asks.iter();
        text(&self.now.value["cancel"], "by") == SUBMIT
            || self.asked("cancel").next().is_some()
            || asks.any(|ask| ask.subject == "virtbus.queues.purge")
    }
}
