//! A running worker: what all its jobs share.

use crate::{
    attempt::{Attempt, Ending},
    claim::{Room, Settled},
    config::WorkConfig,
    metrics::Counts,
    perform::{Assignment, Perform},
    process::Way,
    slots::{Kind, Slots},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{
    Bus, BusError, Delivery, Entry, Jobs,
    lease::{Leases, Standing, Trust},
    limits::tenant_lock,
    locks::{LockSet, Locks},
};
use virtbus_daemon::Fatal;
use virtbus_wire::{
    Envelope, Event, JobError, JobId, Record, WorkerId,
    protocol::{
        lock::{Holder, Mode},
        poison::is_poison,
    },
    state::Owner,
    task::Task,
};

/// How often an ending is written when the server doesn't answer, before the claim is given up.
const FINISHES_MAX: u32 = 10;
/// The wait between two of those.
const FINISH_AGAIN: Duration = Duration::from_secs(1);
/// How often a message is tried here that could not be settled, or whose claim was given up.
const CLAIMS_MAX: u32 = 100;
/// The wait between two of those, shorter than `ack_wait`.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// What a message has come to.
pub(crate) enum Handled {
    /// It's over.
    Over,
    /// Another should have it, or we later.
    HandBack(Duration),
    /// Its job is another's.
    Lost,
    /// Its job isn't over, and may be ours without anything going on.
    Open,
}

/// What all jobs of one worker share.
#[derive(Debug)]
pub(crate) struct Worker<P> {
    pub(crate) bus: Bus,
    pub(crate) jobs: Jobs,
    pub(crate) locks: Locks,
    pub(crate) leases: Leases,
    pub(crate) id: WorkerId,
    pub(crate) perform: P,
    pub(crate) slots: Slots,
    /// Who goes first among the jobs that run.
    pub(crate) way: Way,
    pub(crate) work: WorkConfig,
    pub(crate) counts: Counts,
    pub(crate) standing: watch::Receiver<Standing>,
    /// What this process really runs.
    pub(crate) claims: Claims,
    /// Cancelled when jobs that still run must end.
    pub(crate) hard_stop: CancellationToken,
    /// In milliseconds, as the server's consumers say.
    pub(crate) ack_wait: AtomicU64,
}

impl<P: Perform> Worker<P> {
    /// How long a message is ours without a sign of life.
    pub(crate) fn ack_wait(&self) -> Duration {
        Duration::from_millis(self.ack_wait.load(Ordering::Relaxed))
    }

    /// Who claims: this process as it's called now.
    pub(crate) fn owner(&self) -> Owner {
        Owner {
            worker: self.id.clone(),
            boot: self.standing.borrow().boot,
        }
    }

    /// What of a message decides which slot it needs. One that can't be decoded needs any.
    pub(crate) fn kind(&self, delivery: &Delivery) -> Kind {
        let class = self.perform.class();
        let task = Envelope::decode(delivery.payload())
            .and_then(|job| Task::restore(class, &job.task, &job.params));
        let is_long = task.is_ok_and(|task| task.is_long());
        Kind {
            priority: delivery.queue.priority(),
            is_long,
        }
    }

    /// Does with a message what is to be done with it, to the end. A claim of ours that we gave up
    /// must be ours again: others see that its owner lives, and would let the message lie.
    pub(crate) async fn handle(self: Arc<Self>, delivery: Delivery, mut room: Room) {
        for _ in 0..CLAIMS_MAX {
            if self.standing.borrow().trust != Trust::Held {
                break;
            }
            match self.try_to_handle(&delivery, &mut room).await {
                Handled::Over => return self.acknowledge(&delivery).await,
                Handled::HandBack(delay) => return delivery.hand_back(Some(delay)).await,
                Handled::Lost => return,
                Handled::Open => {}
            }
            delivery.keep().await;
            tokio::select! {
                () = self.hard_stop.cancelled() => break,
                () = tokio::time::sleep(OPEN_AGAIN) => {}
            }
        }
        delivery.hand_back(Some(OPEN_AGAIN)).await;
    }

    async fn try_to_handle(self: &Arc<Self>, delivery: &Delivery, room: &mut Room) -> Handled {
        match self.settle(delivery, room).await {
            Ok(Settled::HandBack(delay)) => Handled::HandBack(delay),
            Ok(Settled::Over) => Handled::Over,
            Ok(Settled::Claimed(entry, running)) => {
                let handled = self.run_claimed(delivery, *entry).await;
                drop(running);
                handled
            }
            Err(error) => {
                tracing::warn!(%error, queue = %delivery.queue, "a message could not be settled");
                match error {
                    // Its job may be ours all the same: perhaps only the answer was lost.
                    BusError::Unreachable { .. } => Handled::Open,
                    BusError::Refused { .. }
                    | BusError::TooLarge { .. }
                    | BusError::Corrupt { .. } => Handled::HandBack(OPEN_AGAIN),
                }
            }
        }
    }

    async fn acknowledge(&self, delivery: &Delivery) {
        if let Err(error) = delivery.ack().await {
            // It comes again, and is found to be over.
            tracing::debug!(%error, "a message was not acknowledged");
        }
    }

    /// Runs a claimed job to its ending.
    async fn run_claimed(self: &Arc<Self>, delivery: &Delivery, entry: Entry<Record>) -> Handled {
        let (id, number) = (entry.value.id.clone(), entry.value.claim);
        let name = entry.value.task.clone();
        tracing::info!(job = %id, task = name, queue = %delivery.queue, claim = number, "claimed");
        self.counts.claimed(&entry.value);
        if is_poison(&entry.value) {
            return self.end_poison(delivery, &entry).await;
        }
        let class = self.perform.class();
        let task = match Task::restore(class, &entry.value.task, &entry.value.params) {
            Ok(task) => task,
            Err(error) => return self.fail_undecodable(&entry, error).await,
        };
        let kind = Kind {
            priority: delivery.queue.priority(),
            is_long: task.is_long(),
        };
        let _first = kind.may_use_reserved().then(|| self.way.first());
        let attempt = Arc::new(Attempt::new(self, entry, task));
        let (ending, held) = attempt.supervise(delivery).await;
        if matches!(ending, Ending::Open) {
            return Handled::Open;
        }
        for _ in 0..FINISHES_MAX {
            match attempt.finish(delivery, ending.clone(), &held).await {
                Ok(Some(record)) => {
                    self.counts.ended(&record);
                    let state = record.state.name();
                    tracing::info!(job = %id, task = name, %state, attempt = record.attempt, "ended");
                    return Handled::Over;
                }
                Ok(None) => {
                    tracing::warn!(job = %id, claim = number, "the claim was lost");
                    return Handled::Lost;
                }
                Err(error) => {
                    tracing::warn!(job = %id, %error, "the ending could not be written yet");
                    tokio::time::sleep(FINISH_AGAIN).await;
                }
            }
        }
        Handled::Open
    }

    /// Ends a job whose record another version of us wrote, or damaged: it can't be run here.
    async fn fail_undecodable(&self, entry: &Entry<Record>, error: JobError) -> Handled {
        tracing::error!(job = %entry.value.id, %error, "a record that was accepted can't be decoded");
        match self.jobs.change(entry, Event::Fail(error)).await {
            Ok(_) => Handled::Over,
            Err(_) => Handled::Open,
        }
    }

    /// The lock that counts the running jobs of a job's tenant, if their number is limited.
    pub(crate) async fn tenant_lock(&self, record: &Record) -> Result<Option<String>, BusError> {
        let (class, limits) = (self.perform.class(), self.locks.limits());
        limits.lock_of(class, record.tenant.as_ref()).await
    }

    /// What a job needs, with its publisher's own locks.
    pub(crate) async fn lock_set(&self, job: &Assignment) -> Result<LockSet, JobError> {
        let mut set = self.perform.locks(job).await?;
        let own = &job.record.locks;
        for lock in &own.shared {
            set.entry(lock.to_string()).or_insert(Mode::Shared);
        }
        for lock in &own.exclusive {
            set.insert(lock.to_string(), Mode::Exclusive);
        }
        let counting = self.tenant_lock(&job.record).await;
        let counting = counting.map_err(|error| JobError::internal(error.to_string()))?;
        set.extend(counting.map(|lock| (lock, Mode::Shared)));
        Ok(set)
    }

    /// Releases what the claim of a job that is over may still hold.
    pub(crate) async fn release_remains(&self, record: &Record) {
        // The last claim of one that was poison took none.
        if record.claim == 0 || is_poison(record) {
            return;
        }
        let mut names: LockSet = LockSet::new();
        for object in &record.objects {
            names.insert(object.clone(), Mode::Shared);
        }
        let own = &record.locks;
        for lock in own.exclusive.iter().chain(&own.shared) {
            names.insert(lock.to_string(), Mode::Shared);
        }
        if let Some(tenant) = &record.tenant {
            names.insert(tenant_lock(self.perform.class(), tenant), Mode::Shared);
        }
        if names.is_empty() {
            return;
        }
        if let Some(job) = self.assignment(record) {
            // What can't be asked for now, the reconciler finds.
            names.extend(self.perform.locks(&job).await.unwrap_or_default());
        }
        let holder = Holder {
            job: record.id.clone(),
            claim: record.claim,
            since: None,
        };
        let released: Result<(), _> = self.locks.release(names.keys(), &holder).await;
        if let Err(error) = released {
            tracing::warn!(job = %record.id, %error, "locks will be released by the reconciler");
        }
    }

    pub(crate) fn assignment(&self, record: &Record) -> Option<Assignment> {
        let task = Task::restore(self.perform.class(), &record.task, &record.params).ok()?;
        let (id, claim) = (record.id.clone(), record.claim);
        Some(Assignment {
            id,
            claim,
            owner: self.owner(),
            task,
            record: record.clone(),
        })
    }
}

/// The claims whose work goes on in this process. A record that names this process for any other
/// claim is as good as one of a dead owner: its message comes to be claimed anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<Counted>>);

/// How many deliveries try, or run, each claim: of several copies of a job only one gets it, and
/// those that lose must not make it look given up.
type Counted = HashMap<(JobId, u64), usize>;

/// Says that a claim's work goes on, or is about to, until dropped.
#[derive(Debug)]
pub(crate) struct Running {
    all: Claims,
    claim: (JobId, u64),
}

impl Claims {
    /// Says so of a claim before it's written: whoever reads it finds it running.
    pub(crate) fn begin(&self, job: &JobId, claim: u64) -> Running {
        let claim = (job.clone(), claim);
        *self.lock().entry(claim.clone()).or_default() += 1;
        Running {
            all: self.clone(),
            claim,
        }
    }

    /// Whether no work goes on.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether the work of this claim goes on in this process.
    pub(crate) fn contain(&self, job: &JobId, claim: u64) -> bool {
        self.lock().contains_key(&(job.clone(), claim))
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.claim) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.claim);
            }
        }
    }
}

/// What the server says of its consumers is believed from the first answer on.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A worker that can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process of this name runs on this host.
    #[error("another process runs as worker {0} on this host")]
    Running(WorkerId),
    /// Another process took this worker's name.
    #[error("another process took over as worker {0}")]
    Replaced(WorkerId),
    /// The lock file can't be had.
    #[error("the worker's lock file can't be used: {0}")]
    LockFile(std::io::Error),
    /// Its slots make no sense.
    #[error(transparent)]
    Slots(#[from] crate::slots::InvalidSlots),
    /// The messaging connection is closed for good.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl From<ServeError> for Fatal {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Slots(error) => Self::config("work", error),
            ServeError::LockFile(error) => Self::config("state_dir", error),
            error @ (ServeError::Running(_) | ServeError::Replaced(_)) => {
                Self::config("worker.id", error)
            }
            ServeError::Bus(error) => Self::Unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_loses_the_claim_does_not_make_it_look_given_up() {
        let (claims, job) = (Claims::default(), JobId::new());
        let winner = claims.begin(&job, 1);
        drop(claims.begin(&job, 1));
        assert!(claims.contain(&job, 1));
        drop(winner);
        assert!(!claims.contain(&job, 1));
    }
}
