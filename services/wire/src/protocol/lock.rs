//! Locks: who holds one, who waits, in which order.
//!
//! A lock belongs to a job's *claim*, not to the job: a worker that lost its claim can't release
//! or keep what its successor has. Waiters are ordered by ticket, the same number on every lock of
//! a job, so that two jobs with two locks can't wait for each other.

use crate::{id::JobId, time::Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a woken waiter is waited for; afterwards others may pass it.
pub const WAKE_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Who waits, by ticket.
    pub waiters: Vec<Waiter>,
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
}

/// The answer to a claimant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// It may have it: write this.
    Taken(Lock),
    /// It must wait, for this job's holder if there is one, else behind another waiter.
    Refused(Option<Holder>),
    /// A later claim of the same job has it: this claim is lost, and touches nothing.
    Lost,
}

impl Lock {
    /// Nobody holds it and nobody waits.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.exclusive.is_none() && self.shared.is_empty() && self.waiters.is_empty()
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
            return Take::Refused(Some(holder.clone()));
        }
        let ticket = claimant.ticket.unwrap_or(u64::MAX);
        let is_ahead = |waiter: &&Waiter| {
            let conflicts = claimant.mode == Mode::Exclusive || waiter.mode == Mode::Exclusive;
            let overslept = waiter
                .woken_at
                .is_some_and(|at| now.since(at) > WAKE_PATIENCE);
            waiter.ticket < ticket && conflicts && !overslept
        };
        // Who takes over from an older claim of the job goes on with what that one has: there may
        // be an effect already that nobody but this job may build on.
        let has_it = self.is_held_by(&claimant.holder.job, claimant.mode);
        if !has_it && lock.waiters.iter().any(|waiter| is_ahead(&waiter)) {
            return Take::Refused(None);
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
        let (job, woken_at) = (holder.job.clone(), None);
        lock.waiters.push(Waiter {
            job,
            ticket,
            mode,
            woken_at,
        });
        lock.waiters.sort_by_key(|waiter| waiter.ticket);
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

    /// Who may go on now: the first waiter, or all leading sharers, as far as the holders allow.
    #[must_use]
    pub fn next_in_line(&self) -> Vec<JobId> {
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
                let sharers = self.waiters.iter().take_while(|w| w.mode == Mode::Shared);
                sharers.map(|waiter| waiter.job.clone()).collect()
            }
        }
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
