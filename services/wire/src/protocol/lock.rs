//! Locks: who holds one, who waits, in which order.
//!
//! A lock belongs to a job's *claim*, not to the job: a worker that lost its claim can't release
//! or keep what its successor has. Waiters are ordered by ticket, the same number on every lock of
//! a job, so that two jobs with two locks can't wait for each other.
//!
//! A lock's record names the first [`WAITERS_MAX`] who wait. Of those beyond it says only from
//! which ticket on they are: who they are, their own records say. Nobody with a later ticket gets
//! past them, and core puts them in the list as it drains.
//!
//! A counting lock is shared by so many jobs at most: the limit isn't in its record, whoever asks
//! brings it.

use crate::{id::JobId, time::Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, time::Duration};

/// How long a woken waiter is waited for; afterwards others may pass it.
pub const WAKE_PATIENCE: Duration = Duration::from_secs(30);

/// The most waiters that a lock's record names: about 16 KB, to be read and written for each take.
pub const WAITERS_MAX: usize = if cfg!(feature = "short-lines") {
    4
} else {
    128
};
/// With how many named waiters left a lock's list is filled up again.
pub const WAITERS_LOW: usize = WAITERS_MAX / 2;

/// Held alone, or together with other sharers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// With other sharers.
    Shared,
}

/// One claim of one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    /// The job.
    pub job: JobId,
    /// Its claim.
    pub claim: u64,
    /// Since when, by the holder's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// A job that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiter {
    /// The job.
    pub job: JobId,
    /// Its place: the lower, the sooner.
    pub ticket: u64,
    /// What it wants.
    pub mode: Mode,
    /// When it was woken, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub woken_at: Option<Timestamp>,
}

/// The record of one lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lock {
    /// Who has it alone.
    pub exclusive: Option<Holder>,
    /// Who shares it.
    pub shared: Vec<Holder>,
    /// Who waits, by ticket: the first of them.
    pub waiters: Vec<Waiter>,
    /// The lowest ticket there may be of those who wait and aren't named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond: Option<u64>,
}

/// Who wants a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The job and its claim.
    pub holder: Holder,
    /// Its place, once it has waited for a lock.
    pub ticket: Option<u64>,
    /// What it wants.
    pub mode: Mode,
    /// How many may share it; none = any number.
    pub limit: Option<u32>,
}

/// The job that keeps a claimant from a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// The job: it has the lock, else it's the first in line.
    pub job: JobId,
    /// Since when it has it, by its own clock.
    pub since: Option<Timestamp>,
}

/// The answer to a claimant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// It may have it: write this.
    Taken(Lock),
    /// It must wait, for this job; none = behind somebody in line whom the record doesn't name.
    Refused(Option<Before>),
    /// It must wait: so many share it already, or are about to.
    Full(u32),
    /// A later claim of the same job has it: this claim is lost, and touches nothing.
    Lost,
}

impl Lock {
    /// Nobody holds it and nobody waits.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        let nobody_waits = self.waiters.is_empty() && self.beyond.is_none();
        self.exclusive.is_none() && self.shared.is_empty() && nobody_waits
    }

    /// The jobs named in it.
    pub fn jobs(&self) -> impl Iterator<Item = &JobId> {
        let holders = self
            .exclusive
            .iter()
            .chain(&self.shared)
            .map(|holder| &holder.job);
        holders.chain(self.waiters.iter().map(|waiter| &waiter.job))
    }

    /// Whether a job stands in line here without being named: it must wait, whoever holds the lock.
    #[must_use]
    pub fn is_beyond(&self, job: &JobId, ticket: u64) -> bool {
        let is_after = self.beyond.is_some_and(|beyond| beyond <= ticket);
        is_after && !self.jobs().any(|named| named == job)
    }

    /// Asks for the lock. `is_over` says of a job whether its record is final or gone: such
    /// holders and waiters are dropped. An entry of the job's own older claim is replaced, whoever
    /// waits.
    #[must_use]
    pub fn take(
        &self,
        claimant: &Claimant,
        now: Timestamp,
        is_over: impl Fn(&JobId) -> bool,
    ) -> Take {
        if self.has_later_claim(&claimant.holder) {
            return Take::Lost;
        }
        let mut lock = self.without(|job| *job == claimant.holder.job || is_over(job));
        let holder = match claimant.mode {
            Mode::Exclusive => lock.exclusive.iter().chain(&lock.shared).next(),
            Mode::Shared => lock.exclusive.as_ref(),
        };
        if let Some(holder) = holder {
            return Take::Refused(Some(Before {
                job: holder.job.clone(),
                since: holder.since,
            }));
        }
        let ticket = claimant.ticket.unwrap_or(u64::MAX);
        let is_ahead = |waiter: &&Waiter| {
            let conflicts = claimant.mode == Mode::Exclusive || waiter.mode == Mode::Exclusive;
            let overslept = waiter
                .woken_at
                .is_some_and(|at| now.since(at) > WAKE_PATIENCE);
            let counts = conflicts || claimant.limit.is_some();
            waiter.ticket < ticket && counts && !overslept
        };
        // Who takes over from an older claim of the job goes on with what that one has: there may
        // be an effect already that nobody but this job may build on.
        let has_it = self.is_held_by(&claimant.holder.job, claimant.mode);
        let mut ahead = lock.waiters.iter().filter(is_ahead);
        let beyond = lock.beyond.is_some_and(|beyond| beyond < ticket);
        match claimant.limit {
            _ if has_it => {}
            Some(limit) => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                if beyond || lock.shared.len() + ahead.count() >= limit {
                    return Take::Full(u32::try_from(lock.shared.len()).unwrap_or(u32::MAX));
                }
            }
            None => {
                let first = ahead.next().map(|waiter| Before {
                    job: waiter.job.clone(),
                    since: None,
                });
                if beyond || first.is_some() {
                    return Take::Refused(first);
                }
            }
        }
        let holder = Holder {
            since: Some(now),
            ..claimant.holder.clone()
        };
        match claimant.mode {
            Mode::Exclusive => lock.exclusive = Some(holder),
            Mode::Shared => lock.shared.push(holder),
        }
        Take::Taken(lock)
    }

    /// The lock with the job in its waiting list; what this claim, or an older one, held of it is
    /// given back. Unchanged when a later claim of the job has it.
    #[must_use]
    pub fn enlist(&self, holder: &Holder, ticket: u64, mode: Mode) -> Self {
        if self.has_later_claim(holder) {
            return self.clone();
        }
        let mut lock = self.without(|other| *other == holder.job);
        if lock.beyond.is_some_and(|beyond| ticket >= beyond) {
            return lock;
        }
        let (job, woken_at) = (holder.job.clone(), None);
        lock.waiters.push(Waiter {
            job,
            ticket,
            mode,
            woken_at,
        });
        lock.waiters.sort_by_key(|waiter| waiter.ticket);
        if lock.waiters.len() > WAITERS_MAX
            && let Some(last) = lock.waiters.pop()
        {
            lock.beyond = Some(last.ticket);
        }
        lock
    }

    /// The lock with its list filled up from those beyond it. `waiting` are all whose own records
    /// say that they wait for this lock, by ticket, with what each most likely wants; when it asks
    /// again it says so itself.
    #[must_use]
    pub fn refilled(&self, waiting: &[(u64, JobId, Mode)]) -> Self {
        let mut lock = self.clone();
        let Some(beyond) = self.beyond.filter(|_| self.waiters.len() <= WAITERS_LOW) else {
            return lock;
        };
        let named: HashSet<&JobId> = self.jobs().collect();
        let left =
            |(ticket, job, _): &&(u64, JobId, Mode)| *ticket >= beyond && !named.contains(job);
        let mut left = waiting.iter().filter(left);
        let room = WAITERS_MAX - self.waiters.len();
        lock.waiters
            .extend(left.by_ref().take(room).map(|(ticket, job, mode)| Waiter {
                job: job.clone(),
                ticket: *ticket,
                mode: *mode,
                woken_at: None,
            }));
        lock.beyond = left.next().map(|(ticket, _, _)| *ticket);
        lock
    }

    /// Whether some claim of the job has the lock in this mode.
    fn is_held_by(&self, job: &JobId, mode: Mode) -> bool {
        let mut holders = match mode {
            Mode::Exclusive => [].iter().chain(&self.exclusive),
            Mode::Shared => self.shared.iter().chain(&self.exclusive),
        };
        holders.any(|holder| holder.job == *job)
    }

    fn has_later_claim(&self, holder: &Holder) -> bool {
        let mut holders = self.exclusive.iter().chain(&self.shared);
        holders.any(|other| other.job == holder.job && other.claim > holder.claim)
    }

    /// The lock without the entry that equals this job *and* claim; nothing else is touched.
    #[must_use]
    pub fn release(&self, holder: &Holder) -> Self {
        let is_it = |other: &Holder| other.job == holder.job && other.claim == holder.claim;
        let mut lock = self.clone();
        lock.exclusive.take_if(|other| is_it(other));
        lock.shared.retain(|other| !is_it(other));
        lock
    }

    /// The lock without everything of the jobs that `is_gone` names.
    #[must_use]
    pub fn without(&self, is_gone: impl Fn(&JobId) -> bool) -> Self {
        let mut lock = self.clone();
        lock.exclusive.take_if(|holder| is_gone(&holder.job));
        lock.shared.retain(|holder| !is_gone(&holder.job));
        lock.waiters.retain(|waiter| !is_gone(&waiter.job));
        lock
    }

    /// Who may go on now: the first waiter, or all leading sharers, as far as the holders and the
    /// limit allow.
    #[must_use]
    pub fn next_in_line(&self, limit: Option<u32>) -> Vec<JobId> {
        if self.exclusive.is_some() {
            return Vec::new();
        }
        let Some(first) = self.waiters.first() else {
            return Vec::new();
        };
        match first.mode {
            Mode::Exclusive if self.shared.is_empty() => vec![first.job.clone()],
            Mode::Exclusive => Vec::new(),
            Mode::Shared => {
                let limit = limit.map_or(usize::MAX, |limit| {
                    usize::try_from(limit).unwrap_or(usize::MAX)
                });
                let room = limit.saturating_sub(self.shared.len());
                let sharers = self.waiters.iter().take_while(|w| w.mode == Mode::Shared);
                sharers
                    .take(room)
                    .map(|waiter| waiter.job.clone())
                    .collect()
            }
        }
    }

    /// The lock without waiters that were woken and didn't come.
    #[must_use]
    pub fn without_overslept(&self, now: Timestamp) -> Self {
        let mut lock = self.clone();
        lock.waiters.retain(|waiter| {
            waiter
                .woken_at
                .is_none_or(|at| now.since(at) <= WAKE_PATIENCE)
        });
        lock
    }

    /// The lock with the wake of these jobs noted.
    #[must_use]
    pub fn woken(&self, jobs: &[JobId], now: Timestamp) -> Self {
        let mut lock = self.clone();
        for waiter in &mut lock.waiters {
            if jobs.contains(&waiter.job) {
                waiter.woken_at = Some(now);
            }
        }
        lock
    }
}
