//! What core keeps in mind of each job that isn't over: enough to know when to look at it.
//!
//! It is made from the bucket's rows and events, in any number and order: of each job the row
//! with the largest revision counts. It decides nothing; whoever is due is read anew.

mod brief;

pub(super) use brief::{Brief, BriefDependency};

use super::lines::Lines;
use brief::Place;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};
use virtbus_wire::{
    JobId, StateName, Timestamp,
    envelope::IfInUse,
    protocol::reconcile::{CAPACITY_PAUSE, likely_mode},
    state::{Owner, WaitReason},
};

/// A job that isn't over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Note {
    /// Of its record.
    pub(super) revision: u64,
    /// Which publication is the present one.
    pub(super) generation: u64,
    /// The subject it belongs to.
    pub(super) queue: String,
    /// When the server took the record.
    pub(super) written_at: Timestamp,
    /// When the job was published first.
    pub(super) submitted_at: Timestamp,
    /// The jobs it comes after.
    pub(super) after: Vec<BriefDependency>,
    /// How many of those aren't over; counted only while it waits for them.
    open: usize,
    /// What it's doing.
    pub(super) doing: Doing,
    /// Its place in line, while it doesn't run.
    place: Option<Place>,
    /// The last sweep that found its message.
    pub(super) found_in: u64,
}

/// What a job that isn't over is doing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Doing {
    /// It can be taken.
    Queued,
    /// A worker has it.
    Held(Owner),
    /// It waits for other jobs, and says that it's for this one.
    AfterJob(JobId),
    /// It waits for a time.
    UntilTime(Timestamp),
    /// It waits for a lock.
    ForLock(ForLock),
    /// It waits for something else.
    Otherwise,
}

/// What a job waits for that waits for a lock.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ForLock {
    /// The lock.
    pub(super) resource: String,
    /// Its place in line.
    ticket: u64,
    /// Who may use what the lock stands for without having the lock, if the job waits for that.
    pub(super) user: Option<String>,
}

/// All jobs that aren't over, and when to look at which.
#[derive(Debug, Default)]
pub(super) struct Index {
    notes: BTreeMap<JobId, Note>,
    dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Who waits for which lock.
    pub(super) lines: Lines,
    for_use: BTreeMap<String, BTreeSet<JobId>>,
    times: BinaryHeap<Reverse<(Timestamp, JobId)>>,
    /// The last revision that was read.
    pub(super) revision: u64,
}

impl Index {
    /// Takes in what is under a key now: none when the record is gone. Says who is to be looked
    /// at because of it.
    pub(super) fn learn(
        &mut self,
        job: &JobId,
        revision: u64,
        written_at: Timestamp,
        brief: Option<Brief>,
    ) -> Vec<JobId> {
        self.revision = self.revision.max(revision);
        if self
            .notes
            .get(job)
            .is_some_and(|note| note.revision >= revision)
        {
            return Vec::new();
        }
        let before = self.forget(job);
        let was_open = before.is_some();
        let found_in = before.as_ref().map_or(0, |note| note.found_in);
        let state = brief.as_ref().map(|brief| brief.state);
        let Some(brief) = brief.filter(|brief| !brief.state.is_final()) else {
            let mut due = self.closed(job, was_open, state);
            due.extend(self.behind(before.and_then(|note| note.place)));
            return due;
        };
        let (mut due, place) = (Vec::new(), brief.place());
        let doing = self.index(job, &brief, &mut due);
        let open = match doing {
            Doing::AfterJob(_) => self.count_open(&brief.after),
            Doing::Queued | Doing::Held(_) | Doing::UntilTime(_) => 0,
            Doing::ForLock(_) | Doing::Otherwise => 0,
        };
        let note = Note {
            revision,
            generation: brief.generation,
            queue: brief.queue,
            written_at,
            submitted_at: brief.submitted_at,
            after: brief.after,
            open,
            doing,
            place,
            found_in,
        };
        self.notes.insert(job.clone(), note);
        if !was_open {
            for dependent in self.dependents.get(job).into_iter().flatten() {
                if let Some(note) = self.notes.get_mut(dependent) {
                    note.open += 1;
                }
            }
        }
        due
    }

    fn count_open(&self, after: &[BriefDependency]) -> usize {
        let mut jobs: Vec<&JobId> = after.iter().map(|before| &before.job).collect();
        jobs.sort_unstable();
        jobs.dedup();
        let open = jobs.into_iter().filter(|job| self.notes.contains_key(*job));
        open.count()
    }

    /// Takes in that a job is over, or that its record is gone, and says which of those that come
    /// after it need a look: who can't come true any more, and who waited for it last. What the
    /// others say that they wait for is put right by the sweep: one job after a thousand must not
    /// be looked at a thousand times.
    fn closed(&mut self, job: &JobId, was_open: bool, state: Option<StateName>) -> Vec<JobId> {
        let mut due = Vec::new();
        for dependent in self.dependents.get(job).into_iter().flatten() {
            let Some(note) = self.notes.get_mut(dependent) else {
                continue;
            };
            if was_open {
                note.open = note.open.saturating_sub(1);
            }
            let Some(state) = state else { continue };
            let mut asked = note.after.iter().filter(|before| before.job == *job);
            let is_unmet = asked.any(|before| !before.on.contains(&state));
            if is_unmet || note.open == 0 {
                due.push(dependent.clone());
            }
        }
        due
    }

    /// Who may go on because a job left its place in line without ever holding the lock: nobody
    /// releases what it didn't have.
    fn behind(&self, place: Option<Place>) -> Vec<JobId> {
        let places = place.into_iter().flat_map(|place| {
            let ticket = place.ticket;
            place.locks.into_iter().map(move |lock| (lock, ticket))
        });
        let behind = places.map(|(lock, ticket)| self.lines.behind(&lock, ticket));
        behind.flatten().collect()
    }

    /// Notes when a job is to be looked at, and says what it's doing.
    fn index(&mut self, job: &JobId, brief: &Brief, due: &mut Vec<JobId>) -> Doing {
        let may_expire = matches!(brief.state, StateName::Queued | StateName::Waiting);
        if let Some(end) = brief.expires_at.filter(|_| may_expire) {
            self.times.push(Reverse((end, job.clone())));
        }
        let owner = brief.worker.clone().zip(brief.boot);
        let Some(waiting) = &brief.waiting else {
            let held = matches!(brief.state, StateName::Running | StateName::Cancelling);
            let owner = owner.filter(|_| held);
            return owner.map_or(Doing::Queued, |(worker, boot)| {
                Doing::Held(Owner { worker, boot })
            });
        };
        match &waiting.on {
            WaitReason::Dependency { job: on, .. } => {
                for before in &brief.after {
                    let dependents = self.dependents.entry(before.job.clone()).or_default();
                    dependents.insert(job.clone());
                }
                // The other job may have ended between the look at it and this record.
                due.push(job.clone());
                Doing::AfterJob(on.clone())
            }
            WaitReason::Time { until, .. } => {
                self.times.push(Reverse((*until, job.clone())));
                Doing::UntilTime(*until)
            }
            WaitReason::Lock {
                resource, holder, ..
            } => {
                let user = holder.clone().filter(|_| brief.if_in_use == IfInUse::Wait);
                if user.is_some() {
                    let waiters = self.for_use.entry(resource.clone()).or_default();
                    waiters.insert(job.clone());
                }
                // The lock may have been released between the look at it and this record.
                due.push(job.clone());
                self.line_up(job, brief, resource.clone(), user)
            }
            WaitReason::Transfer { expires_at, .. } => {
                self.times.push(Reverse((*expires_at, job.clone())));
                Doing::Otherwise
            }
            WaitReason::Capacity { .. } => {
                let again = waiting.since.after(CAPACITY_PAUSE);
                self.times.push(Reverse((again, job.clone())));
                Doing::Otherwise
            }
            WaitReason::Tenant { .. } => {
                let Some(lock) = brief.tenant_lock() else {
                    return Doing::Otherwise;
                };
                due.push(job.clone());
                self.line_up(job, brief, lock, None)
            }
        }
    }

    fn line_up(
        &mut self,
        job: &JobId,
        brief: &Brief,
        resource: String,
        user: Option<String>,
    ) -> Doing {
        let ticket = brief.ticket.unwrap_or(u64::MAX);
        let mode = likely_mode(&brief.task, &brief.objects, &brief.locks, &resource);
        self.lines.join(&resource, ticket, job, mode);
        Doing::ForLock(ForLock {
            resource,
            ticket,
            user,
        })
    }

    /// Drops what is noted of a job, but not its times: those are looked at and found stale.
    fn forget(&mut self, job: &JobId) -> Option<Note> {
        let note = self.notes.remove(job)?;
        for before in &note.after {
            drop_from(&mut self.dependents, &before.job, job);
        }
        if let Doing::ForLock(lock) = &note.doing {
            self.lines.leave(&lock.resource, lock.ticket, job);
            drop_from(&mut self.for_use, &lock.resource, job);
        }
        Some(note)
    }

    /// The jobs whose time has come.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<JobId> {
        let mut due = Vec::new();
        while let Some(Reverse((time, _))) = self.times.peek() {
            if *time > now {
                break;
            }
            if let Some(Reverse((_, job))) = self.times.pop() {
                due.push(job);
            }
        }
        due
    }

    /// When the next time comes.
    pub(super) fn next_time(&self) -> Option<Timestamp> {
        self.times.peek().map(|Reverse((time, _))| *time)
    }

    /// One job's note.
    pub(super) fn note(&self, job: &JobId) -> Option<&Note> {
        self.notes.get(job)
    }

    /// The locks that stand for what may be in use, each with the jobs that wait for the end of
    /// that and with the user each waits for.
    pub(super) fn uses(&self) -> impl Iterator<Item = (&str, Vec<(&JobId, &str)>)> {
        self.for_use.iter().map(|(resource, jobs)| {
            let user = |job| match &self.notes.get(job)?.doing {
                Doing::ForLock(lock) => lock.user.as_deref(),
                Doing::Queued | Doing::Held(_) | Doing::AfterJob(_) => None,
                Doing::UntilTime(_) | Doing::Otherwise => None,
            };
            let jobs = jobs.iter().filter_map(|job| Some((job, user(job)?)));
            (resource.as_str(), jobs.collect())
        })
    }

    /// The jobs that are over, or that nobody has seen, and that others come after that no worker
    /// has yet.
    pub(super) fn needed(&self) -> BTreeSet<&JobId> {
        let notes = self.notes.values();
        let before = notes
            .filter(|note| !matches!(note.doing, Doing::Held(_)))
            .flat_map(|note| note.after.iter().map(|before| &before.job));
        before
            .filter(|job| !self.notes.contains_key(*job))
            .collect()
    }

    /// Notes that this sweep found a message, and says whether it's the one that its job needs,
    /// or a copy of it that a worker of the queue drops.
    pub(super) fn found(
        &mut self,
        job: &JobId,
        generation: u64,
        subject: &str,
        sweep: u64,
    ) -> bool {
        let Some(note) = self.notes.get_mut(job) else {
            return false;
        };
        let is_present = note.generation == generation && note.queue == subject;
        if is_present {
            note.found_in = sweep;
        }
        is_present && matches!(note.doing, Doing::Queued | Doing::Held(_))
    }

    /// All notes.
    pub(super) fn notes(&self) -> impl Iterator<Item = (&JobId, &Note)> {
        self.notes.iter()
    }
}

fn drop_from<K: Ord>(map: &mut BTreeMap<K, BTreeSet<JobId>>, key: &K, job: &JobId) {
    if let Some(jobs) = map.get_mut(key) {
        jobs.remove(job);
        if jobs.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
