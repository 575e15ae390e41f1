//! What a service does with a job: the one seam between the loop and the tasks.

use crate::{keeper::Keeper, stop::StopSignal};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Class, JobError, JobId, Label, Queue, Record,
    state::{Owner, Phase, Progress, WaitReason},
    task::Task,
};

/// What a job that succeeded says.
pub type Done = Map<String, Value>;

/// Tells how many bytes are free in each pool. It waits for nothing: a beat must not.
pub type Free = Box<dyn Fn() -> BTreeMap<Label, u64> + Send + Sync>;

/// A service's work. The loop calls, for each claim, in this order: [`clean`](Self::clean) if there
/// were older claims, [`locks`](Self::locks), then, with the locks held,
/// [`recover`](Self::recover) if there were older claims, [`run`](Self::run), `recover` again if
/// that failed past its fence, and [`abandon`](Self::abandon) when the job ends or parks without effect.
/// Each may be called again by a later claim, on another host: all of them are idempotent. What
/// takes nothing and leaves nothing needs only [`run`](Self::run).
pub trait Perform: Send + Sync + 'static {
    /// Whose queues these tasks come from.
    fn class(&self) -> Class;

    /// What tells, with each beat, how many bytes are free in each pool.
    fn free(&self) -> Free {
        Box::new(BTreeMap::new)
    }

    /// How many jobs lend their slots to others once they have had them for a while: those that may
    /// hang in what only another job ends.
    fn lent_max(&self) -> u32 {
        0
    }

    /// Whether this very worker should claim a queued job, asked right before it would. The job may
    /// have been delivered `deliveries` times. Decides nothing that a later claim relies on.
    fn look(&self, job: &Record, deliveries: u64) -> impl Future<Output = Look> + Send {
        let _ = (job, deliveries);
        async { Look::Claim }
    }

    /// The locks the task takes beside the publisher's own, as the catalogue says now. Asked once
    /// more when they are held; if the answer differs, they are given back and taken anew. It must
    /// not fail because an earlier claim's effect is there: that is looked for after it.
    fn locks(&self, job: &Assignment) -> impl Future<Output = Result<LockSet, JobError>> + Send {
        let _ = job;
        async { Ok(LockSet::new()) }
    }

    /// Removes what older claims of this job left behind, before anything else.
    fn clean(&self, job: &Assignment) -> impl Future<Output = Result<(), JobError>> + Send {
        let _ = job;
        async { Ok(()) }
    }

    /// The result, if an effect of a claim until now is there, whole; none if there is none and, by the
    /// fence, none can come any more. While an earlier claim that can't be reached may still have
    /// its effect, it says [`Stop::Earlier`], and is asked again.
    fn recover(&self, job: &Assignment) -> impl Future<Output = Result<Option<Done>, Stop>> + Send {
        let _ = job;
        async { Ok(None) }
    }

    /// The work and its effect, in the order of the protocol. [`Run::commit`] is the fence.
    fn run(&self, job: &Assignment, run: &Run) -> impl Future<Output = Result<Done, Stop>> + Send;

    /// Puts back what was begun, such as a disk's former state, since there will be no effect. A
    /// claim that wasn't granted its locks calls it without them, before the job is parked. It
    /// fails as long as an earlier claim may still have its effect: a final state waits for it.
    /// What was begun may be a later claim's by now, if this worker was frozen: `own` is asked
    /// after it was read, and before it's changed by CAS.
    fn abandon(
        &self,
        job: &Assignment,
        own: &dyn Confirm,
    ) -> impl Future<Output = Result<(), JobError>> + Send {
        let _ = (job, own);
        async { Ok(()) }
    }
}

/// Asks the server whether what a job began is still to be put back by who asks.
pub trait Confirm: Send + Sync {
    /// Nobody else does anything with the job, or did so before this was asked.
    ///
    /// # Errors
    /// [`Stop::Lost`] when somebody may; when there's no answer.
    fn confirm(&self) -> Confirmed<'_>;
}

/// What [`Confirm::confirm`] comes to.
pub type Confirmed<'a> = Pin<Box<dyn Future<Output = Result<(), Stop>> + Send + 'a>>;

/// What a worker finds out about a job before it claims it.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// It should.
    Claim,
    /// It should, and nobody else may from then on: the job goes to this queue of its own.
    ClaimHere(Queue),
    /// Another worker of the queue should have it: it's offered again after this time.
    HandBack(Duration),
    /// It belongs on another queue.
    Pass(Queue),
    /// Something must come first.
    Wait(WaitReason),
}

/// A job as it was claimed.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The job.
    pub id: JobId,
    /// This claim's number: it's in temporary names and lock entries.
    pub claim: u64,
    /// Who claimed it.
    pub owner: Owner,
    /// What to do.
    pub task: Task,
    /// The record as it was claimed.
    pub record: Record,
}

/// Why work ended without being done.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// It can't be done, or not now.
    Failed(JobError),
    /// It was told to, and has.
    Stopped,
    /// The claim is lost: nothing more may be changed.
    Lost,
    /// Something must come first; nothing was begun. What waits on `lock`, for a use that is no
    /// job's lock, keeps its place in line for all its locks.
    Wait(WaitReason),
    /// An earlier claim of the same job, frozen or cut off and out of reach, has what this one
    /// needs, such as the OS lock on a disk. It's waited for, and costs no try.
    Earlier(JobError),
}

impl From<JobError> for Stop {
    fn from(error: JobError) -> Self {
        Self::Failed(error)
    }
}

/// What running work may tell and ask.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) stop: StopSignal,
    pub(crate) progress: watch::Sender<Option<Progress>>,
    pub(crate) kept: Kept,
}

/// What is held until a job's ending is written.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<Box<dyn Send>>>>);

impl Kept {
    /// Lets everything go.
    pub(crate) fn drop_all(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Kept({kept})")
    }
}

impl Run {
    /// Keeps something, such as the OS lock on a disk, until the job's final record is written:
    /// it's dropped between that and the release of the job's locks.
    pub fn keep(&self, held: impl Send + 'static) {
        self.kept
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(held));
    }

    /// Tells how far the work came; what goes back is left out. Cheap: it's sent on at most a few
    /// times a second.
    pub fn progress(&self, progress: Progress) {
        self.progress
            .send_modify(|told| *told = Some(progress.after(told.as_ref())));
    }

    /// Whether, and why, the work must end: for tools, and for waits of its own.
    #[must_use]
    pub fn stop(&self) -> &StopSignal {
        &self.stop
    }

    /// The fence: from here on the job can't be cancelled, and whoever lost its claim before gets
    /// no further. Call it last before the effect, with the intent written and the OS lock held.
    ///
    /// # Errors
    /// When the job was cancelled, the worker stops, or the claim is lost: there must be no effect.
    pub async fn commit(&self) -> Result<(), Stop> {
        if self.stop.why().is_some() {
            return Err(Stop::Stopped);
        }
        self.keeper.enter(Phase::Commit).await
    }
}
