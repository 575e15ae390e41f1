//! What must be so when the faults are over, judged by the contract alone.

mod disks;
pub mod floors;
mod promises;

use super::ledger::Line;
use super::records::{self, Held, Records, is_final};
use super::site::Site;
use crate::{disk, process};
use async_nats::jetstream::Context;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;

/// Streams that hold jobs, and nothing once all is done.
const QUEUES: [&str; 3] = ["STORAGE", "HYPERVISOR", "CORE"];
/// The most examples of one kind that are named.
const EXAMPLES: usize = 5;

/// Everything there is to see.
#[derive(Debug, Default)]
pub struct Facts {
    /// What was published.
    pub lines: BTreeMap<String, Line>,
    /// Bucket `jobs`.
    pub records: BTreeMap<String, Held>,
    /// Bucket `disks`.
    pub disks: BTreeMap<String, Held>,
    /// Bucket `locks`.
    pub locks: BTreeMap<String, Held>,
    /// Messages in each stream of jobs.
    pub messages: BTreeMap<String, u64>,
    /// Dead letters.
    pub dead_letters: u64,
    /// Files of the pool.
    pub files: Vec<String>,
    /// Tools that run in the pool.
    pub tools: Vec<String>,
}

/// A rule that doesn't hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The job it's about, if it's about one.
    pub job: Option<String>,
    /// What is wrong.
    pub text: String,
}

impl Violation {
    /// About a job.
    pub fn of(job: &str, text: impl Into<String>) -> Self {
        Self {
            job: Some(job.to_owned()),
            text: text.into(),
        }
    }

    /// About no job that we know.
    pub fn general(text: impl Into<String>) -> Self {
        Self {
            job: None,
            text: text.into(),
        }
    }
}

impl Facts {
    /// Looks everywhere.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn gather(
        site: &Site,
        lines: BTreeMap<String, Line>,
        known: &Records,
        context: &Context,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        known.look(context).await?;
        let mut messages = BTreeMap::new();
        for name in QUEUES {
            let stream = context.get_stream(name).await?;
            messages.insert(name.to_owned(), stream.cached_info().state.messages);
        }
        let dead = context.get_stream("DLQ").await?;
        let root = site.pool_root();
        let tools = process::tools(&root).into_iter().map(|tool| tool.line);
        Ok(Self {
            lines,
            records: known.all(),
            disks: records::read(context, "disks", 1).await?,
            locks: records::read(context, "locks", 1).await?,
            messages,
            dead_letters: dead.cached_info().state.messages,
            files: disk::files(&root),
            tools: tools.collect(),
        })
    }

    /// What isn't over yet.
    pub fn unfinished(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (id, held) in self
            .records
            .iter()
            .filter(|(_, held)| !is_final(&held.value))
        {
            let state = &held.value["state"];
            let waiting = &held.value["waiting"];
            found.push(Violation::of(id, format!("is still {state}, {waiting}")));
        }
        let promised = self.lines.values().filter(|line| line.is_promised());
        for line in promised.filter(|line| !self.records.contains_key(&line.order.id)) {
            let text = "was promised, and has no record";
            found.push(Violation::of(&line.order.id, text));
        }
        for (stream, count) in self.messages.iter().filter(|(_, count)| **count > 0) {
            let text = format!("{count} messages are left in {stream}");
            found.push(Violation::general(text));
        }
        for (name, held) in &self.locks {
            if is_taken(&held.value) {
                let text = format!("lock {name} is left: {}", held.value);
                found.push(Violation::general(text));
            }
        }
        let parts = self.files.iter().filter(|name| name.ends_with(".part"));
        found.extend(parts.map(|name| Violation::general(format!("temporary file {name}"))));
        let tools = self.tools.iter();
        found.extend(tools.map(|line| Violation::general(format!("process {line}"))));
        found
    }

    /// Whatever isn't as it must be, once nothing goes on any more.
    pub fn judge(&self, site: &Site) -> Vec<Violation> {
        let mut found = self.unfinished();
        found.extend(promises::judge(self));
        found.extend(disks::judge(self, &site.pool_root()));
        found
    }

    /// A record; `null` if there is none.
    pub fn record(&self, id: &str) -> &Value {
        self.records
            .get(id)
            .map_or(&Value::Null, |held| &held.value)
    }

    /// How jobs ended: how many, by task, state and code.
    pub fn ends(&self) -> BTreeMap<String, usize> {
        let mut ends = BTreeMap::new();
        for held in self.records.values() {
            let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
            let record = &held.value;
            let (task, state) = (text(&record["task"]), text(&record["state"]));
            let code = text(&record["error"]["code"]);
            let cause = text(&record["error"]["detail"]["cause"]);
            let end = format!("{task} {state} {code} {cause}");
            *ends.entry(end.trim_end().to_owned()).or_default() += 1;
        }
        ends
    }

    /// Jobs that more than one claim worked on.
    pub fn interrupted(&self) -> usize {
        let records = self.records.values();
        let attempts = records.map(|held| held.value["attempt"].as_u64().unwrap_or(0));
        attempts.filter(|attempt| *attempt > 1).count()
    }
}

/// A few of them, in one line.
pub fn examples(violations: &[Violation]) -> String {
    let shown: Vec<String> = violations
        .iter()
        .take(EXAMPLES)
        .map(|violation| match &violation.job {
            Some(job) => format!("{job} {}", violation.text),
            None => violation.text.clone(),
        })
        .collect();
    format!("{}: {}", violations.len(), shown.join("; "))
}

fn is_taken(lock: &Value) -> bool {
    let some = |name: &str| lock[name].as_array().is_some_and(|list| !list.is_empty());
    !lock["exclusive"].is_null() || some("shared") || some("waiters")
}
