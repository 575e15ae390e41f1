//! Locks of jobs: one record per lock, taken in byte order, all or none.

use crate::{
    bucket::Bucket,
    client::Bus,
    error::{BusError, WriteError},
    jobs::{ChangeError, Jobs},
    limits::Limits,
    lines::LongLines,
};
use std::collections::{BTreeMap, HashSet};
use virtbus_wire::{
    Event, JobId, JobState, Timestamp,
    protocol::lock::{Before, Claimant, Holder, Lock, Mode, Take},
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
    limits: Limits,
    long: LongLines,
}

/// A job that asks for its locks.
struct Asked<'a> {
    holder: &'a Holder,
    /// Before whom it may take them; none = behind all who wait.
    place: Option<u64>,
    /// Its place should it have to wait.
    ticket: u64,
}

/// The answer to a job that asked for its locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// It has all of them.
    All,
    /// A later claim of the job has one of them: this claim is lost.
    Lost,
    /// It has none, and its ticket is in all of them if it waits; this one refused it.
    None {
        /// The lock.
        resource: String,
        /// Who has it, or is the first in its line, where its record says that.
        before: Option<Before>,
    },
    /// The same, refused by a counting lock: so many share it, and so many may.
    Full {
        /// How many do.
        running: u32,
        /// How many may.
        limit: u32,
    },
}

impl Locks {
    /// The bucket `locks`.
    #[must_use]
    pub fn new(bus: &Bus, jobs: &Jobs) -> Self {
        let records = Bucket::new(bus, BUCKET);
        Self {
            long: LongLines::new(&records),
            records,
            jobs: jobs.clone(),
            limits: jobs.limits().clone(),
        }
    }

    /// The limits of counting locks.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The lines that were found to be long as somebody asked to get in.
    #[must_use]
    pub fn long_lines(&self) -> &LongLines {
        &self.long
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
        let asked = Asked {
            holder,
            place: waited.then_some(ticket),
            ticket,
        };
        let (granted, beyond) = self.take_all(set, &asked).await?;
        if matches!(granted, Granted::None { .. } | Granted::Full { .. }) {
            let mut rest = set.clone();
            if let Some(name) = beyond {
                self.long.met(name);
                rest.remove(name);
            }
            self.enlist(&rest, holder, ticket).await?;
        }
        Ok(granted)
    }

    /// Takes every lock of the set before all who wait, or none; the job doesn't get in line.
    ///
    /// # Errors
    /// As [`Locks::take`].
    pub async fn try_take(&self, set: &LockSet, holder: &Holder) -> Result<Granted, WriteError> {
        let asked = Asked {
            holder,
            place: Some(0),
            ticket: 0,
        };
        let (granted, _) = self.take_all(set, &asked).await?;
        if matches!(granted, Granted::None { .. } | Granted::Full { .. }) {
            self.release(set.keys(), holder).await?;
        }
        Ok(granted)
    }

    /// Takes the locks in order up to the first that is refused. With that, the lock in whose line
    /// the job stands already, if it's one that doesn't name all who wait.
    async fn take_all<'a>(
        &self,
        set: &'a LockSet,
        asked: &Asked<'_>,
    ) -> Result<(Granted, Option<&'a String>), WriteError> {
        for (name, mode) in set {
            let claimant = Claimant {
                holder: asked.holder.clone(),
                ticket: asked.place,
                mode: *mode,
                limit: self.limits.of_lock(name).await?,
            };
            let (answer, is_beyond) = self.take_one(name, &claimant, asked.ticket).await?;
            let beyond = is_beyond.then_some(name);
            match answer {
                Take::Taken(_) => {}
                Take::Full(running) => {
                    let limit = claimant.limit.unwrap_or(running);
                    return Ok((Granted::Full { running, limit }, beyond));
                }
                Take::Lost => return Ok((Granted::Lost, None)),
                Take::Refused(before) => {
                    let resource = name.clone();
                    return Ok((Granted::None { resource, before }, beyond));
                }
            }
        }
        Ok((Granted::All, None))
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
        let mut awake = Vec::new();
        for name in names {
            awake.extend(self.release_one(name, holder).await?);
        }
        self.wake_all(awake).await
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
            JobState::Waiting(waiting)
                if matches!(waiting.on, WaitReason::Lock { .. } | WaitReason::Tenant { .. })
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

    async fn wake_all(&self, jobs: Vec<JobId>) -> Result<(), WriteError> {
        let mut awake = HashSet::new();
        for job in jobs {
            if awake.insert(job.clone()) {
                self.wake(&job).await?;
            }
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.records.bus().now()
    }

    /// Takes one lock, if it may be had; with whether the job is refused as one of those beyond
    /// its list, by its ticket.
    async fn take_one(
        &self,
        name: &str,
        claimant: &Claimant,
        ticket: u64,
    ) -> Result<(Take, bool), WriteError> {
        for _ in 0..TRIES_MAX {
            let slot = self.records.slot(name).await?;
            let lock = slot.value.unwrap_or_default();
            let is_beyond = lock.is_beyond(&claimant.holder.job, ticket);
            // With so many in line it doesn't matter who of them is over.
            let over = match is_beyond {
                true => HashSet::new(),
                false => self.over(&lock).await?,
            };
            let answer = lock.take(claimant, self.now(), |id| over.contains(id));
            let Take::Taken(next) = &answer else {
                return Ok((answer, is_beyond));
            };
            match self.records.update(name, next, slot.revision).await {
                Ok(_) => return Ok((answer, false)),
                Err(WriteError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Conflict(name.to_owned()))
    }

    /// Puts the job in line for each lock and gives back those it had taken. Who may go on by
    /// that, and couldn't before, is woken: jobs that wait for the same use of a disk would else
    /// wake each other in turn.
    ///
    /// # Errors
    /// When the server doesn't answer; it can be done again.
    pub async fn enlist(
        &self,
        set: &LockSet,
        holder: &Holder,
        ticket: u64,
    ) -> Result<(), WriteError> {
        let mut awake = Vec::new();
        for (name, mode) in set {
            let next = |lock: &Lock| lock.enlist(holder, ticket, *mode);
            let limit = self.limits.of_lock(name).await?;
            let newly = |before: &Lock, after: &Lock| {
                let could = before.next_in_line(limit);
                let mut can = after.next_in_line(limit);
                can.retain(|job| *job != holder.job && !could.contains(job));
                can
            };
            awake.extend(self.change(name, next, newly).await?);
        }
        self.wake_all(awake).await
    }

    async fn release_one(&self, name: &str, holder: &Holder) -> Result<Vec<JobId>, WriteError> {
        // Where nothing of this claim is, whoever released it has woken the next.
        let limit = self.limits.of_lock(name).await?;
        let all = |_: &Lock, after: &Lock| after.next_in_line(limit);
        self.change(name, |lock| lock.release(holder), all).await
    }

    /// Writes what `next` makes of the lock, as often as others come between, with the wake of
    /// those whom `awake` names by the lock before and after: of the jobs that aren't over.
    async fn change(
        &self,
        name: &str,
        next: impl Fn(&Lock) -> Lock,
        awake: impl Fn(&Lock, &Lock) -> Vec<JobId>,
    ) -> Result<Vec<JobId>, WriteError> {
        for tried in 0..TRIES_MAX {
            let slot = self.records.slot(name).await?;
            let before = slot.value.unwrap_or_default();
            let changed = next(&before);
            if changed == before {
                // After a conflict the change may have been ours, its acknowledgement lost and the
                // lock changed since: nobody was woken then.
                let may_be_ours = tried > 0;
                return Ok(if may_be_ours {
                    awake(&Lock::default(), &before)
                } else {
                    Vec::new()
                });
            }
            let over = self.over(&changed).await?;
            let living = changed.without(|job| over.contains(job));
            let awake = awake(&before, &living);
            let lock = living.woken(&awake, self.now());
            let written = if lock.is_unused() {
                self.records.remove(name, slot.revision).await
            } else {
                self.records
                    .update(name, &lock, slot.revision)
                    .await
                    .map(|_| ())
            };
            match written {
                Ok(()) => return Ok(awake),
                Err(WriteError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Conflict(name.to_owned()))
    }

    /// Whether a job that is in line for a lock would be granted it now; then its wake is noted
    /// there, so that others may pass it should it oversleep. One that isn't in line, and isn't
    /// beyond the list either, has to ask again to be.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn calls(&self, name: &str, holder: &Holder, ticket: u64) -> Result<bool, BusError> {
        let slot = self.records.slot(name).await?;
        let lock = slot.value.unwrap_or_default();
        let Some(waiter) = lock.waiters.iter().find(|waiter| waiter.job == holder.job) else {
            return Ok(lock.beyond.is_none_or(|beyond| ticket < beyond));
        };
        let over = self.over(&lock).await?;
        let claimant = Claimant {
            holder: holder.clone(),
            ticket: Some(waiter.ticket),
            mode: waiter.mode,
            limit: self.limits.of_lock(name).await?,
        };
        let now = self.now();
        match lock.take(&claimant, now, |job| over.contains(job)) {
            Take::Refused(_) | Take::Full(_) | Take::Lost => return Ok(false),
            Take::Taken(_) => {}
        }
        let woken = lock.woken(std::slice::from_ref(&holder.job), now);
        match self.records.update(name, &woken, slot.revision).await {
            Ok(_) => Ok(true),
            // Somebody changed it: the next look sees how.
            Err(WriteError::Conflict(_)) => Ok(false),
            Err(WriteError::Bus(error)) => Err(error),
        }
    }

    /// The jobs named in a lock whose record is final or gone: of the holders all, of the line
    /// those before its first living one. Who stands behind can't matter yet.
    async fn over(&self, lock: &Lock) -> Result<HashSet<JobId>, BusError> {
        let mut over = HashSet::new();
        for holder in lock.exclusive.iter().chain(&lock.shared) {
            if self.is_over(&holder.job).await? {
                over.insert(holder.job.clone());
            }
        }
        for waiter in &lock.waiters {
            if !self.is_over(&waiter.job).await? {
                break;
            }
            over.insert(waiter.job.clone());
        }
        Ok(over)
    }

    async fn is_over(&self, job: &JobId) -> Result<bool, BusError> {
        let record = self.jobs.get_latest(job).await?;
        Ok(record.is_none_or(|entry| entry.value.state.name().is_final()))
    }
}
