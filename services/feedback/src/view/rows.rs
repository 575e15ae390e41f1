//! The rows themselves: pure, without waiting and without time.
//!
//! All jobs that haven't ended, and a bounded tail of those that have. What falls off the tail
//! leaves as a record does that is gone, so a client holds what the view holds and its memory is
//! bounded, too. Removals are remembered for who comes back, up to the horizon: whoever was away
//! longer begins with a snapshot.

use super::packed::Packed;
use crate::{config, sight::Sight};
use axum::extract::ws::Utf8Bytes;
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    hash::{Hash, Hasher},
    io,
    sync::{Arc, OnceLock},
};
use virtbus_wire::{
    JobId, Tenant, User,
    frame::Filter,
    row::{Outline, Row},
};

/// A job as it is shown.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Who may see it, and for which filters it is.
    pub(crate) job: Outline,
    /// All that's shown of it.
    pub(crate) row: Packed,
}

impl Entry {
    pub(crate) fn new(row: Row) -> io::Result<Self> {
        Ok(Self {
            row: Packed::new(&row)?,
            job: row.into(),
        })
    }
}

/// A job's entry, to be found by the job's id.
#[derive(Debug)]
struct ById(Arc<Entry>);

impl Borrow<JobId> for ById {
    fn borrow(&self) -> &JobId {
        &self.0.job.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.job.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.job.id == other.0.job.id
    }
}

impl Eq for ById {}

/// What happened to one job.
#[derive(Debug)]
pub(crate) struct Change {
    /// The job.
    pub(crate) id: JobId,
    /// The place in the sequence of changes.
    pub(crate) seq: u64,
    /// The job as it was, if the view had it.
    pub(crate) before: Option<Arc<Entry>>,
    /// The job as it is, unless it's gone.
    pub(crate) after: Option<Arc<Entry>>,
    /// The frames of this change, made once for the subscription number nearly everyone uses.
    pub(crate) frames: CommonFrames,
}

/// Frames that many clients get.
#[derive(Debug, Default)]
pub(crate) struct CommonFrames {
    /// To who sees the job now.
    pub(crate) here: OnceLock<Utf8Bytes>,
    /// To who doesn't any more.
    pub(crate) left: OnceLock<Utf8Bytes>,
}

impl Change {
    fn new(id: JobId, seq: u64, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>) -> Self {
        let frames = CommonFrames::default();
        Self {
            id,
            seq,
            before,
            after,
            frames,
        }
    }
}

/// From where on somebody wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// All that is there.
    Start,
    /// What changed after this.
    After(u64),
    /// Nothing but what is to come.
    Now,
}

/// What somebody has to be told to be up to date.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// The place in the sequence of changes that this brings one to.
    pub(crate) seq: u64,
    /// Jobs as they are, in the order of their last change.
    pub(crate) rows: Vec<Arc<Entry>>,
    /// Jobs to drop.
    pub(crate) left: Vec<JobId>,
    /// Whether it begins anew although less was asked for.
    pub(crate) is_anew: bool,
}

/// A job that the view has no more.
#[derive(Debug)]
struct Gone {
    seq: u64,
    id: JobId,
    user: Option<User>,
    tenant: Option<Tenant>,
}

/// The rows.
#[derive(Debug)]
pub(crate) struct Rows {
    limits: config::View,
    by_id: HashSet<ById>,
    by_seq: BTreeMap<u64, Arc<Entry>>,
    /// Revisions of jobs that have ended.
    ended: BTreeSet<u64>,
    gone: VecDeque<Gone>,
    /// What was removed up to here may be forgotten.
    horizon: u64,
    /// Up to here the rows are loaded at once, not as they changed.
    loading: u64,
    last: u64,
}

impl Rows {
    /// No rows yet; what happened up to `loading` is about to be loaded.
    pub(crate) fn new(limits: config::View, loading: u64) -> Self {
        Self {
            limits,
            by_id: HashSet::new(),
            by_seq: BTreeMap::new(),
            ended: BTreeSet::new(),
            gone: VecDeque::new(),
            horizon: 0,
            loading,
            last: 0,
        }
    }

    /// The revision up to which the rows are complete.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn get(&self, id: &JobId) -> Option<&Arc<Entry>> {
        self.by_id.get(id).map(|ById(entry)| entry)
    }

    /// Notes that everything up to this revision is known.
    pub(crate) fn reached(&mut self, seq: u64) {
        self.last = self.last.max(seq);
    }

    /// Puts a job in its place, and returns what changed: the job, and what fell off the tail.
    pub(crate) fn put(&mut self, entry: Entry) -> Vec<Change> {
        let (id, seq) = (entry.job.id.clone(), entry.job.seq);
        if self.get(&id).is_some_and(|held| held.job.seq >= seq) {
            return Vec::new();
        }
        self.reached(seq);
        let before = self.take(&id);
        // Somebody else's now: for who saw the one before it's gone.
        if let Some(before) = before.as_ref().filter(|before| {
            (&before.job.user, &before.job.tenant) != (&entry.job.user, &entry.job.tenant)
        }) {
            self.remember(before, seq);
        }
        if entry.job.state.is_final() {
            self.ended.insert(seq);
        }
        let after = Arc::new(entry);
        self.by_seq.insert(seq, after.clone());
        self.by_id.insert(ById(after.clone()));
        let mut changes = vec![Change::new(id, seq, before, Some(after))];
        while self.ended.len() > self.limits.ended_max {
            let oldest = self.ended.first().and_then(|seq| self.by_seq.get(seq));
            let Some(oldest) = oldest.map(|entry| entry.job.id.clone()) else {
                break;
            };
            // Who was away may hold it, whenever it changed last.
            changes.extend(self.remove(&oldest, self.last.max(self.loading)));
        }
        changes
    }

    /// Takes a job away: its record is gone.
    pub(crate) fn remove(&mut self, id: &JobId, seq: u64) -> Option<Change> {
        self.reached(seq);
        let Some(before) = self.take(id) else {
            // Whose it was isn't known, so nobody can be told.
            if seq <= self.loading {
                self.forget(seq);
            }
            return None;
        };
        self.remember(&before, seq);
        Some(Change::new(id.clone(), seq, Some(before), None))
    }

    fn take(&mut self, id: &JobId) -> Option<Arc<Entry>> {
        let ById(entry) = self.by_id.take(id)?;
        self.by_seq.remove(&entry.job.seq);
        self.ended.remove(&entry.job.seq);
        Some(entry)
    }

    fn remember(&mut self, entry: &Entry, seq: u64) {
        self.gone.push_back(Gone {
            seq,
            id: entry.job.id.clone(),
            user: entry.job.user.clone(),
            tenant: entry.job.tenant.clone(),
        });
        while self.gone.len() > self.limits.gone_max {
            if let Some(forgotten) = self.gone.pop_front() {
                self.forget(forgotten.seq);
            }
        }
    }

    /// Removals up to this revision aren't known.
    pub(crate) fn forget(&mut self, seq: u64) {
        self.horizon = self.horizon.max(seq);
    }

    /// Whether someone who knows everything up to `seq` can be told just the rest.
    pub(crate) fn can_resume(&self, seq: u64) -> bool {
        (self.horizon..=self.last).contains(&seq)
    }

    /// What somebody who sees this, and wants that, has to be told.
    pub(crate) fn load(&self, sight: &Sight, filter: &Filter, from: From) -> Load {
        let seq = self.last;
        match from {
            From::Now => Load {
                seq,
                ..Load::default()
            },
            From::After(after) if self.can_resume(after) => {
                let (rows, left) = self.changed(sight, filter, after);
                Load {
                    seq,
                    rows,
                    left,
                    is_anew: false,
                }
            }
            From::Start | From::After(_) => {
                let all = self.by_seq.values();
                let wanted =
                    |entry: &&Arc<Entry>| sight.sees_job(&entry.job) && filter.matches(&entry.job);
                Load {
                    seq,
                    rows: all.filter(wanted).cloned().collect(),
                    left: Vec::new(),
                    is_anew: from != From::Start,
                }
            }
        }
    }

    fn changed(&self, sight: &Sight, filter: &Filter, after: u64) -> (Vec<Arc<Entry>>, Vec<JobId>) {
        let (mut rows, mut left) = (Vec::new(), Vec::new());
        let later = self.gone.iter().rev().take_while(|gone| gone.seq > after);
        for gone in later {
            let is_back = self.get(&gone.id);
            let is_shown = is_back
                .is_some_and(|entry| sight.sees_job(&entry.job) && filter.matches(&entry.job));
            if !is_shown && sight.sees(gone.user.as_ref(), gone.tenant.as_ref()) {
                left.push(gone.id.clone());
            }
        }
        let changed = self.by_seq.range(after.saturating_add(1)..);
        for (_, entry) in changed {
            if !sight.sees_job(&entry.job) {
                continue;
            }
            if filter.matches(&entry.job) {
                rows.push(entry.clone());
            } else {
                // Whether it matched before isn't known; dropping what isn't held is harmless.
                left.push(entry.job.id.clone());
            }
        }
        (rows, left)
    }
}
