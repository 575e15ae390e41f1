//! Locks of jobs: one record per lock, taken in byte order, all or none.

use crate::{
    bucket::{Bucket, Slot},
    client::Bus,
    error::{BusError, WriteError},
    jobs::{ChangeError, Jobs},
};
use std::collections::{BTreeMap, HashSet};
use virtbus_wire::{
    Event, JobId, JobState, Timestamp,
    protocol::lock::{Claimant, Holder, Lock, Mode, Take},
    state::WaitReason,
};

/// The bucket's name.
pub const BUCKET: &str = "locks";
/// How often a lock that others change at the same time is tried.
const TRIES_MAX: u32 = 64;

/// What a job needs, by lock name: byte order is the map's own.
pub type LockSet = BTreeMap<String, Mode>;

/// The locks of all jobs.
#[derive(Debug, Clone)]
pub struct Locks {
    records: Bucket<Lock>,
    jobs: Jobs,
}

/// The answer to a job that asked for its locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// It has all of them.
    All,
    /// It has none, and its ticket is in all of them; this one refused it.
    None {
        /// The lock.
        resource: String,
        /// Who has it, if somebody does.
        holder: Option<Holder>,
    },
}

impl Locks {
    /// The bucket `locks`.
    #[must_use]
    pub fn new(bus: &Bus, jobs: &Jobs) -> Self {
        Self {
            records: Bucket::new(bus, BUCKET),
            jobs: jobs.clone(),
        }
    }

    /// Takes every lock of the set for this claim, or none. `ticket` is the job's place in the
    /// waiting lists, should it have to wait; `waited` says whether it has waited before.
    ///
    /// # Errors
    /// When the server doesn't answer; what was taken is given back by the next claim.
    pub async fn take(
        &self,
        set: &LockSet,
        holder: &Holder,
        ticket: u64,
        waited: bool,
    ) -> Result<Granted, WriteError> {
        for (name, mode) in set {
            let ticket_now = waited.then_some(ticket);
            let claimant = Claimant {
                holder: holder.clone(),
                ticket: ticket_now,
                mode: *mode,
            };
            if let Some(by) = self.take_one(name, &claimant).await? {
                self.enlist(set, &holder.job, ticket).await?;
                return Ok(Granted::None {
                    resource: name.clone(),
                    holder: by,
                });
            }
        }
        Ok(Granted::All)
    }

    /// Gives back what this claim holds of these locks, and wakes who waits for them.
    ///
    /// # Errors
    /// When the server doesn't answer; the reconciler does it later then.
    pub async fn release<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
        holder: &Holder,
    ) -> Result<(), WriteError> {
        let mut awake = HashSet::new();
        for name in names {
            for job in self.release_one(name, holder).await? {
                if awake.insert(job.clone()) {
                    self.wake(&job).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether the job would get all its locks now; a hint, since only taking decides.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn would_grant(
        &self,
        set: &LockSet,
        job: &JobId,
        ticket: u64,
    ) -> Result<bool, BusError> {
        for (name, mode) in set {
            let Slot { value, .. } = self.records.slot(name).await?;
            let lock = value.unwrap_or_default();
            let over = self.over(&lock).await?;
            let holder = Holder {
                job: job.clone(),
                claim: u64::MAX,
                since: None,
            };
            let claimant = Claimant {
                holder,
                ticket: Some(ticket),
                mode: *mode,
            };
            let answer = lock.take(&claimant, Timestamp::now(), |id| over.contains(id));
            if matches!(answer, Take::Refused(_)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes a job that waits for a lock, so that it may try again.
    ///
    /// # Errors
    /// When the server doesn't answer; the reconciler does it later then.
    pub async fn wake(&self, job: &JobId) -> Result<(), WriteError> {
        let Some(entry) = self.jobs.get_latest(job).await? else {
            return Ok(());
        };
        let for_lock = matches!(
            &entry.value.state,
            JobState::Waiting(waiting) if matches!(waiting.on, WaitReason::Lock { .. })
        );
        if !for_lock {
            return Ok(());
        }
        match self
            .jobs
            .change(&entry, Event::Publish { round: false })
            .await
        {
            Ok(queued) => {
                if let Err(error) = self.jobs.publish(&queued.value).await {
                    tracing::warn!(%job, %error, "a woken job will be published later");
                }
                Ok(())
            }
            // Somebody else woke or ended it.
            Err(ChangeError::Illegal(_) | ChangeError::Write(WriteError::Conflict(_))) => Ok(()),
            Err(ChangeError::Write(WriteError::Bus(error))) => Err(error.into()),
        }
    }

    /// Takes one lock; none = taken, else who has it.
    async fn take_one(
        &self,
        name: &str,
        claimant: &Claimant,
    ) -> Result<Option<Option<Holder>>, WriteError> {
        for _ in 0..TRIES_MAX {
            let slot = self.records.slot(name).await?;
            let lock = slot.value.unwrap_or_default();
            let over = self.over(&lock).await?;
            match lock.take(claimant, Timestamp::now(), |id| over.contains(id)) {
                Take::Refused(holder) => return Ok(Some(holder)),
                Take::Taken(next) => match self.records.update(name, &next, slot.revision).await {
                    Ok(_) => return Ok(None),
                    Err(WriteError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        Err(WriteError::Conflict(name.to_owned()))
    }

    async fn enlist(&self, set: &LockSet, job: &JobId, ticket: u64) -> Result<(), WriteError> {
        for (name, mode) in set {
            self.change(name, |lock| (lock.enlist(job, ticket, *mode), ()))
                .await?;
        }
        Ok(())
    }

    async fn release_one(&self, name: &str, holder: &Holder) -> Result<Vec<JobId>, WriteError> {
        self.change(name, |lock| {
            let released = lock.release(holder);
            // Nothing of this claim was here: whoever released it has woken the next.
            let awake = if released == *lock {
                Vec::new()
            } else {
                released.next_in_line()
            };
            (released.woken(&awake, Timestamp::now()), awake)
        })
        .await
    }

    /// Writes what `next` makes of the lock, as often as others come between.
    async fn change<A>(
        &self,
        name: &str,
        next: impl Fn(&Lock) -> (Lock, A),
    ) -> Result<A, WriteError> {
        for _ in 0..TRIES_MAX {
            let slot = self.records.slot(name).await?;
            let before = slot.value.unwrap_or_default();
            let (lock, answer) = next(&before);
            if lock == before {
                return Ok(answer);
            }
            let written = if lock.is_unused() {
                self.records.remove(name, slot.revision).await
            } else {
                self.records
                    .update(name, &lock, slot.revision)
                    .await
                    .map(|_| ())
            };
            match written {
                Ok(()) => return Ok(answer),
                Err(WriteError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Conflict(name.to_owned()))
    }

    /// The jobs named in a lock whose record is final or gone.
    async fn over(&self, lock: &Lock) -> Result<HashSet<JobId>, BusError> {
        let mut over = HashSet::new();
        let mut asked = HashSet::new();
        // Those behind the first waiters can't matter yet: a long line costs no reads.
        let holders = lock
            .exclusive
            .iter()
            .chain(&lock.shared)
            .map(|holder| &holder.job);
        let line = lock.waiters.iter().take(FRONT).map(|waiter| &waiter.job);
        for job in holders.chain(line) {
            if asked.insert(job) {
                let record = self.jobs.get_latest(job).await?;
                if record.is_none_or(|entry| entry.value.state.name().is_final()) {
                    over.insert(job.clone());
                }
            }
        }
        Ok(over)
    }
}

/// How many waiters of a line are looked at: the reconciler removes the others that are over.
const FRONT: usize = 8;
