//! The tasks: one file each, the same steps in the same order in each of them.
//!
//! ```text
//! check → work → intend → (commit: the job's own fence) → effect → publish
//! ```
//! `check` reads the catalogue and refuses; `work` may take long and can be stopped; `intend`
//! takes the locks on files and writes to the catalogue that this job is about to change it;
//! after the commit nothing stops; `effect` changes the pool; `publish` says so in the catalogue.

pub(crate) mod context;
mod convert;
mod create_disk;
mod delete_disk;
pub(crate) mod new_disk;
mod ping;
mod resize;

pub(crate) use context::Context;

use crate::store::Store;
use convert::Convert;
use create_disk::CreateDisk;
use delete_disk::DeleteDisk;
use ping::Ping;
use resize::Resize;
use std::future::Future;
use virtbus_wire::{
    Code, JobError, JobId, Timestamp,
    state::Progress,
    task::{StorageTask, Task},
};
use virtbus_worker::{
    perform::{Assignment, Done, Stop},
    process,
};

/// What the steps of a task are tied to while they can be stopped.
pub(crate) struct Pace<'a> {
    /// Stops the tools of the work: for a cancel, a time-out, a shutdown.
    pub(crate) stop: &'a process::Stop,
    /// Stops the tools of the effect, which only a lost claim does: half a resize is worse than a
    /// late one.
    pub(crate) lost: &'a process::Stop,
    /// Takes what is to be told of the progress.
    pub(crate) progress: &'a (dyn Fn(Progress) + Send + Sync),
    /// Takes what must be held until the job's final record is written: the locks on files.
    pub(crate) keep: &'a (dyn Fn(Box<dyn Send>) + Send + Sync),
}

/// What a check says.
pub(crate) enum Checked<P> {
    /// What is asked for is so already.
    Done(Done),
    /// This is to be done.
    Plan(P),
}

/// The steps of a task that changes disks.
pub(crate) trait Steps: Sync {
    /// What is to be done, and what was done of it so far. Dropping it gives back what it holds.
    type Plan: Send + Sync + 'static;

    /// Reads the catalogue, and refuses what can't be.
    fn check(&self) -> impl Future<Output = Result<Checked<Self::Plan>, Stop>> + Send;

    /// What takes long and changes nothing that anybody sees.
    fn work(
        &self,
        plan: &mut Self::Plan,
        pace: &Pace<'_>,
    ) -> impl Future<Output = Result<(), Stop>> + Send;

    /// Takes the locks on files, and writes the intent to the catalogue.
    fn intend(&self, plan: &mut Self::Plan) -> impl Future<Output = Result<(), Stop>> + Send;

    /// Changes the pool.
    fn effect(
        &self,
        plan: &mut Self::Plan,
        pace: &Pace<'_>,
    ) -> impl Future<Output = Result<(), Stop>> + Send;

    /// Writes the result to the catalogue, on top of the intent.
    fn publish(&self, plan: &mut Self::Plan) -> impl Future<Output = Result<Done, Stop>> + Send;

    /// The result, if an earlier claim's effect is there; what was missing of it is done.
    fn recover(&self) -> impl Future<Output = Result<Option<Done>, Stop>> + Send;

    /// Puts back what an intent of this job began.
    fn abandon(&self) -> impl Future<Output = Result<(), Stop>> + Send;
}

/// All steps in order. `commit` is the fence between the intent and the effect.
pub(crate) async fn drive<S: Steps>(
    steps: &S,
    pace: &Pace<'_>,
    commit: impl Future<Output = Result<(), Stop>> + Send,
) -> Result<Done, Stop> {
    let mut plan = match steps.check().await? {
        Checked::Done(done) => return Ok(done),
        Checked::Plan(plan) => plan,
    };
    steps.work(&mut plan, pace).await?;
    steps.intend(&mut plan).await?;
    commit.await?;
    steps.effect(&mut plan, pace).await?;
    let done = steps.publish(&mut plan).await?;
    (pace.keep)(Box::new(plan));
    Ok(done)
}

/// What an earlier claim and this one have in common.
pub(crate) fn is_own(owner: Option<&JobId>, job: &Assignment) -> bool {
    owner == Some(&job.id)
}

pub(crate) use virtbus_worker::done;

pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// The tasks that this service can do.
pub(crate) enum Known<'a> {
    Ping(Ping<'a>),
    CreateDisk(CreateDisk<'a>),
    Resize(Resize<'a>),
    Convert(Convert<'a>),
    DeleteDisk(DeleteDisk<'a>),
}

/// The task of a job, if this service can do it in the pool that the job's queue names.
///
/// # Errors
/// `job.unknown_task`, `pool.not_found`, `pool.unsupported`.
pub(crate) fn known<'a>(store: &'a Store, job: &'a Assignment) -> Result<Known<'a>, JobError> {
    let at = || Context::new(store, job);
    match &job.task {
        Task::Storage(StorageTask::Ping(params)) => Ok(Known::Ping(Ping { store, job, params })),
        Task::Storage(StorageTask::CreateDisk(params)) => {
            Ok(Known::CreateDisk(CreateDisk { at: at()?, params }))
        }
        Task::Storage(StorageTask::Resize(params)) => {
            Ok(Known::Resize(Resize { at: at()?, params }))
        }
        Task::Storage(StorageTask::Convert(params)) => {
            Ok(Known::Convert(Convert { at: at()?, params }))
        }
        Task::Storage(StorageTask::DeleteDisk(params)) => {
            Ok(Known::DeleteDisk(DeleteDisk { at: at()?, params }))
        }
        Task::Storage(_) | Task::Hypervisor(_) | Task::Core(_) => {
            let name = job.task.name();
            let text = format!("this service doesn't know the task {name:?}");
            Err(JobError::new(Code::JobUnknownTask, text).with("task", name))
        }
    }
}
