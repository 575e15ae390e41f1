//! What was published and asked, and what was answered: all an outsider knows.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A job as it was meant.
#[derive(Debug, Clone)]
pub struct Order {
    /// The job's id.
    pub id: String,
    /// Where it's published.
    pub subject: String,
    /// The message.
    pub body: Value,
}

/// What a publisher knows of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Nobody answered yet.
    None,
    /// The stream, or the control service, took it.
    Given,
    /// The control service refused it: it must never exist.
    Refused,
}

/// One question about a job, after it was published.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `cancel`, `priority` or `retry`.
    pub verb: &'static str,
    /// The request.
    pub question: Value,
    /// The answer's outcome; empty when there was none.
    pub outcome: String,
}

/// One job of the ledger.
#[derive(Debug, Clone)]
pub struct Line {
    /// The job.
    pub order: Order,
    /// Whether it was taken.
    pub promise: Promise,
    /// How often it was sent.
    pub sent: u32,
    /// What was asked for since.
    pub asked: Vec<Asked>,
}

impl Line {
    /// Whether this was ever asked for, answered or not.
    pub fn was_asked(&self, verb: &str) -> bool {
        self.asked.iter().any(|asked| asked.verb == verb)
    }

    /// Whether somebody promised that it's done.
    pub fn is_promised(&self) -> bool {
        self.promise == Promise::Given
    }

    /// The jobs it comes after, by id.
    fn dependencies(&self) -> impl Iterator<Item = String> {
        let after = self.field("after").as_array().into_iter().flatten();
        let ids = after.filter_map(|dependency| dependency["job"].as_str());
        ids.map(str::to_owned)
    }

    /// A field of the message.
    pub fn field(&self, name: &str) -> &Value {
        &self.order.body[name]
    }
}

/// All jobs, by id and in the order they were first sent.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: BTreeMap<String, Line>,
    order: Vec<String>,
    batches: usize,
}

impl Ledger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a job is about to be sent.
    pub fn sending(&self, order: &Order) {
        let mut inner = self.inner();
        if !inner.lines.contains_key(&order.id) {
            inner.order.push(order.id.clone());
            let line = Line {
                order: order.clone(),
                promise: Promise::None,
                sent: 0,
                asked: Vec::new(),
            };
            inner.lines.insert(order.id.clone(), line);
        }
        if let Some(line) = inner.lines.get_mut(&order.id) {
            line.sent += 1;
        }
    }

    /// Notes what became of it.
    pub fn promised(&self, id: &str, promise: Promise) {
        if let Some(line) = self.inner().lines.get_mut(id) {
            line.promise = promise;
        }
    }

    /// Notes that the control service took several jobs in one request.
    pub fn took_several(&self) {
        self.inner().batches += 1;
    }

    /// Requests of several jobs that the control service took.
    pub fn batches(&self) -> usize {
        self.inner().batches
    }

    /// Notes a question and its answer.
    pub fn asked(&self, id: &str, asked: Asked) {
        if let Some(line) = self.inner().lines.get_mut(id) {
            line.asked.push(asked);
        }
    }

    /// Jobs that were promised.
    pub fn promises(&self) -> usize {
        let inner = self.inner();
        let lines = inner.lines.values();
        lines.filter(|line| line.is_promised()).count()
    }

    /// The last ones that were sent.
    pub fn recent(&self, count: usize) -> Vec<String> {
        let inner = self.inner();
        inner.order[inner.order.len().saturating_sub(count)..].to_vec()
    }

    /// What others come after, and nobody published.
    pub fn missing(&self) -> BTreeSet<String> {
        let inner = self.inner();
        let named = inner.lines.values().flat_map(|line| line.dependencies());
        named.filter(|id| !inner.lines.contains_key(id)).collect()
    }

    /// All of it.
    pub fn lines(&self) -> BTreeMap<String, Line> {
        self.inner().lines.clone()
    }
}
