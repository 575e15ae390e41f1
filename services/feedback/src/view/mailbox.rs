//! What waits for one session: two lanes and messages, each bounded.
//!
//! The state lane holds changes in order; one too many, and all of them are given up for a new
//! load. The progress lane holds the newest of each job, so it can't overflow.

use super::rows::{Change, Entry};
use axum::extract::ws::Utf8Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virtbus_wire::{JobId, frame::ProgressItem};

/// Changes that wait for one session.
const CHANGES_MAX: usize = 256;
/// Jobs whose progress waits for one session.
const PROGRESS_MAX: usize = 4096;
/// Messages of applications that wait for one session.
const MESSAGES_MAX: usize = 64;

/// What waits for one session.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// How far a job came.
#[derive(Debug)]
pub(crate) struct Step {
    /// The job.
    pub(crate) entry: Arc<Entry>,
    /// How far it came.
    pub(crate) item: ProgressItem,
}

/// What a session finds in its mailbox.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Changes, in order.
    pub(crate) changes: VecDeque<Arc<Change>>,
    /// Whether changes were given up: only a new load helps.
    pub(crate) overflowed: bool,
    /// The newest progress of each job.
    pub(crate) progress: BTreeMap<JobId, Arc<Step>>,
    /// Messages of applications, as frames.
    pub(crate) messages: VecDeque<Utf8Bytes>,
    /// Whether the sequence of changes is another one from now on.
    pub(crate) is_over: bool,
}

impl Waiting {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && !self.overflowed
            && self.progress.is_empty()
            && self.messages.is_empty()
            && !self.is_over
    }
}

impl Mailbox {
    pub(crate) fn change(&self, change: &Arc<Change>) {
        let mut waiting = self.lock();
        if waiting.overflowed {
            return;
        }
        if waiting.changes.len() >= CHANGES_MAX {
            waiting.changes = VecDeque::new();
            waiting.overflowed = true;
        } else {
            waiting.changes.push_back(change.clone());
        }
        drop(waiting);
        self.wake.notify_one();
    }

    pub(crate) fn progress(&self, step: &Arc<Step>) {
        let mut waiting = self.lock();
        let id = &step.item.id;
        if waiting.progress.len() < PROGRESS_MAX || waiting.progress.contains_key(id) {
            waiting.progress.insert(id.clone(), step.clone());
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Whether there was room for it.
    pub(crate) fn message(&self, frame: &Utf8Bytes) -> bool {
        let mut waiting = self.lock();
        let has_room = waiting.messages.len() < MESSAGES_MAX;
        if has_room {
            waiting.messages.push_back(frame.clone());
        }
        drop(waiting);
        self.wake.notify_one();
        has_room
    }

    pub(crate) fn over(&self) {
        self.lock().is_over = true;
        self.wake.notify_one();
    }

    /// Waits until there is something. Safe to cancel.
    pub(crate) async fn filled(&self) {
        loop {
            if !self.lock().is_empty() {
                return;
            }
            self.wake.notified().await;
        }
    }

    /// Everything that waits.
    pub(crate) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds it can leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
