//! One subscription of a session: what it has been told, and what it has yet to be told.

use super::frames::{self, Remainder, Seen};
use crate::{
    sight::Sight,
    view::{Change, Entry, Load, Step},
};
use axum::extract::ws::Utf8Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use virtbus_wire::{
    JobId,
    frame::{Filter, Sub},
};

/// One subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    filter: Filter,
    /// The rest of a load; then changes are told one by one.
    remainder: Option<Remainder>,
    /// What changed up to here has been told, or is in the remainder.
    seq: u64,
    /// Between two progress frames; none: progress isn't wanted.
    progress_every: Option<Duration>,
    /// The newest progress of each job that hasn't been sent.
    progress: BTreeMap<JobId, Arc<Step>>,
    /// When the next progress frame may go.
    progress_at: Duration,
}

impl Subscription {
    pub(super) fn new(sub: &Sub) -> Self {
        let hertz = u32::try_from(sub.progress_hz.get()).unwrap_or(u32::MAX);
        Self {
            filter: sub.filter.clone(),
            remainder: None,
            seq: 0,
            progress_every: (hertz > 0).then(|| Duration::from_secs(1) / hertz.max(1)),
            progress: BTreeMap::new(),
            progress_at: Duration::ZERO,
        }
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn fill(&mut self, load: Load) {
        self.seq = load.seq;
        self.progress.clear();
        self.remainder = Some(Remainder::new(load.seq, load.rows, load.left));
    }

    pub(super) fn is_filling(&self) -> bool {
        self.remainder.is_some()
    }

    pub(super) fn next_of_load(&mut self, id: u32) -> Option<Utf8Bytes> {
        let (frame, is_last) = self.remainder.as_mut()?.next(id);
        if is_last {
            self.remainder = None;
        }
        Some(frame)
    }

    /// The frame of a change, if it's one for this subscription.
    pub(super) fn change(&mut self, id: u32, sight: &Sight, change: &Change) -> Option<Utf8Bytes> {
        // What fell off the tail has no place of its own: several may share one.
        if change.seq < self.seq || (change.seq == self.seq && change.after.is_some()) {
            return None;
        }
        self.seq = change.seq;
        let matches = |entry: &Option<Arc<Entry>>| {
            entry.as_ref().is_some_and(|entry| self.wants(sight, entry))
        };
        let seen = match (matches(&change.before), matches(&change.after)) {
            (_, true) => Seen::Here,
            (true, false) => Seen::Left,
            (false, false) => return None,
        };
        if change
            .after
            .as_ref()
            .is_none_or(|entry| entry.job.state.is_final())
        {
            self.progress.remove(&change.id);
        }
        Some(frames::change(id, change, seen))
    }

    /// Keeps the newest progress of the jobs that it's about.
    pub(super) fn note(&mut self, sight: &Sight, progress: &BTreeMap<JobId, Arc<Step>>) {
        if self.progress_every.is_none() {
            return;
        }
        for (id, step) in progress {
            if self.wants(sight, &step.entry) {
                self.progress.insert(id.clone(), step.clone());
            }
        }
    }

    /// When [`Subscription::progress_due`] has something to send.
    pub(super) fn due_at(&self) -> Option<Duration> {
        (!self.progress.is_empty()).then_some(self.progress_at)
    }

    /// The progress frame, if there is something to tell and it's time.
    pub(super) fn progress_due(&mut self, id: u32, at: Duration) -> Option<Utf8Bytes> {
        let every = self.progress_every?;
        if self.due_at()? > at {
            return None;
        }
        self.progress_at = at + every;
        let steps = std::mem::take(&mut self.progress);
        Some(frames::progress(id, &steps))
    }

    fn wants(&self, sight: &Sight, entry: &Entry) -> bool {
        sight.sees_job(&entry.job) && self.filter.matches(&entry.job)
    }
}
