//! The tasks: one file each, the same steps in the same order in each of them.
//!
//! ```text
//! check → work → intend → (commit: the job's own fence) → effect → publish
//! ```
//! Adding a task is one file with its [`Steps`], and one line in [`known`].
//!
//! `check` reads the catalogue and refuses; `work` may take long and can be stopped; `intend`
//! takes the locks on files and writes to the catalogue that this job is about to change it;
//! after the commit nothing stops; `effect` changes the pool; `publish` says so in the catalogue.

mod adopt_disk;
mod adopt_media;
mod archive_disk;
mod base;
mod check_disk;
mod commit;
pub(crate) mod context;
mod convert;
mod create_disk;
mod delete_disk;
mod delete_media;
mod ends;
pub(crate) mod homes;
mod in_place;
mod move_disk;
pub(crate) mod new_disk;
mod overlay;
mod packed;
mod ping;
mod rebase;
pub(crate) mod relay;
mod resize;
mod restore_disk;
mod snapshot;
mod sparsify;
pub(crate) mod stage;
mod unarchive_disk;

pub(crate) use context::Context;

use crate::{qemu_img::Act, store::Store};
use adopt_disk::AdoptDisk;
use adopt_media::AdoptMedia;
use archive_disk::ArchiveDisk;
use base::Base;
use check_disk::CheckDisk;
use commit::Commit;
use convert::Convert;
use create_disk::CreateDisk;
use delete_disk::DeleteDisk;
use delete_media::DeleteMedia;
use move_disk::MoveDisk;
use overlay::Overlay;
use ping::Ping;
use rebase::Rebase;
use resize::Resize;
use restore_disk::RestoreDisk;
use snapshot::Snapshot;
use sparsify::Sparsify;
use std::{future::Future, pin::Pin};
use unarchive_disk::UnarchiveDisk;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError, JobId, Timestamp,
    state::Progress,
    task::{StorageTask, Task, storage::NewSnapshot},
};
use virtbus_worker::{
    perform::{Assignment, Confirm, Done, Stop},
    process,
};

/// What the steps of a task are tied to while they can be stopped.
pub(crate) struct Pace<'a> {
    /// Nobody has asked yet whether the effect is there.
    pub(crate) is_first: bool,
    /// Stops the tools of the work: for a cancel, a time-out, a shutdown.
    pub(crate) stop: &'a process::Stop,
    /// Stops the tools of the effect, which only a lost claim does: half a resize is worse than a
    /// late one.
    pub(crate) lost: &'a process::Stop,
    /// Takes what is to be told of the progress.
    pub(crate) progress: &'a (dyn Fn(Progress) + Send + Sync),
    /// Takes what must be held until the job's final record is written: the locks on files.
    pub(crate) keep: &'a (dyn Fn(Box<dyn Send>) + Send + Sync),
    /// Hears of each step that was taken, and says whether to go on.
    pub(crate) reached: &'a (dyn Fn(Step) -> Result<(), Stop> + Send + Sync),
}

/// A step of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Check,
    Work,
    Intend,
    Commit,
    Effect,
    Publish,
}

impl<'a> Pace<'a> {
    /// For what an earlier claim began and this one ends: nobody stops it, and nobody watches.
    pub(crate) fn endless(never: &'a process::Stop) -> Self {
        Self {
            is_first: false,
            stop: never,
            lost: never,
            progress: &|_| {},
            keep: &drop,
            reached: &|_| Ok(()),
        }
    }
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

    /// The locks between jobs, as the catalogue says now.
    fn locks(&self) -> impl Future<Output = Result<LockSet, JobError>> + Send;

    /// Removes the temporary files of older claims. What else they left is in the catalogue, the
    /// trash and the image, and is gone on from.
    fn clean(&self) -> impl Future<Output = Result<(), Stop>> + Send {
        async { Ok(()) }
    }

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
///
/// A job's first claim looks for an effect too: the job's record may be older than the pool, put
/// back from a copy of the bucket. Later claims have asked [`Steps::recover`] before their work.
async fn drive<S: Steps>(
    steps: &S,
    pace: &Pace<'_>,
    commit: Later<'_, Result<(), Stop>>,
) -> Result<Done, Stop> {
    if pace.is_first
        && let Some(done) = steps.recover().await?
    {
        return Ok(done);
    }
    let mut plan = match steps.check().await? {
        Checked::Done(done) => return Ok(done),
        Checked::Plan(plan) => plan,
    };
    (pace.reached)(Step::Check)?;
    steps.work(&mut plan, pace).await?;
    (pace.reached)(Step::Work)?;
    steps.intend(&mut plan).await?;
    (pace.reached)(Step::Intend)?;
    commit.await?;
    (pace.reached)(Step::Commit)?;
    steps.effect(&mut plan, pace).await?;
    (pace.reached)(Step::Effect)?;
    let done = steps.publish(&mut plan).await?;
    (pace.reached)(Step::Publish)?;
    (pace.keep)(Box::new(plan));
    Ok(done)
}

/// A future that is kept as such.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Steps`] whose plan is nobody's business: any of the tasks.
pub(crate) trait AnySteps: Send + Sync {
    fn locks(&self) -> Later<'_, Result<LockSet, JobError>>;
    fn clean(&self) -> Later<'_, Result<(), Stop>>;
    fn recover(&self) -> Later<'_, Result<Option<Done>, Stop>>;
    fn abandon(&self) -> Later<'_, Result<(), Stop>>;
    fn drive<'a>(
        &'a self,
        pace: &'a Pace<'_>,
        commit: Later<'a, Result<(), Stop>>,
    ) -> Later<'a, Result<Done, Stop>>;
}

impl<S: Steps + Send> AnySteps for S {
    fn locks(&self) -> Later<'_, Result<LockSet, JobError>> {
        Box::pin(Steps::locks(self))
    }

    fn clean(&self) -> Later<'_, Result<(), Stop>> {
        Box::pin(Steps::clean(self))
    }

    fn recover(&self) -> Later<'_, Result<Option<Done>, Stop>> {
        Box::pin(Steps::recover(self))
    }

    fn abandon(&self) -> Later<'_, Result<(), Stop>> {
        Box::pin(Steps::abandon(self))
    }

    fn drive<'a>(
        &'a self,
        pace: &'a Pace<'_>,
        commit: Later<'a, Result<(), Stop>>,
    ) -> Later<'a, Result<Done, Stop>> {
        Box::pin(drive(self, pace, commit))
    }
}

/// What an earlier claim and this one have in common.
pub(crate) fn is_own(owner: Option<&JobId>, job: &Assignment) -> bool {
    owner == Some(&job.id)
}

pub(crate) use virtbus_worker::done;

pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A task that this service can do.
pub(crate) enum Known<'a> {
    /// Changes nothing that stays, so it has no steps.
    Ping(Ping<'a>),
    /// Changes disks.
    Steps(Box<dyn AnySteps + 'a>),
}

impl<'a> Known<'a> {
    fn steps(steps: impl Steps + Send + 'a) -> Self {
        Self::Steps(Box::new(steps))
    }
}

/// The task of a job, if this service can do it in the pool that the job's queue names.
///
/// # Errors
/// `job.unknown_task`, `pool.not_found`, `pool.unsupported`.
pub(crate) fn known<'a>(store: &'a Store, job: &'a Assignment) -> Result<Known<'a>, JobError> {
    known_as(store, job, None)
}

/// The same, to be put back while whoever is asked says so.
///
/// # Errors
/// As [`known`].
pub(crate) fn known_as<'a>(
    store: &'a Store,
    job: &'a Assignment,
    own: Option<&'a dyn Confirm>,
) -> Result<Known<'a>, JobError> {
    use NewSnapshot as New;
    use StorageTask as Is;
    let snapshot = |at, disk, name, act| Snapshot {
        at,
        disk,
        name,
        act,
    };
    let at = || Context::new(store, job, own);
    let Task::Storage(task) = &job.task else {
        return Err(unknown(job));
    };
    Ok(match task {
        Is::Ping(params) => Known::Ping(Ping { store, job, params }),
        Is::CreateDisk(params) => Known::steps(CreateDisk { at: at()?, params }),
        Is::Resize(params) => Known::steps(Resize { at: at()?, params }),
        Is::Convert(params) => Known::steps(Convert { at: at()?, params }),
        Is::DeleteDisk(params) => Known::steps(DeleteDisk { at: at()?, params }),
        Is::AdoptDisk(params) => Known::steps(AdoptDisk { at: at()?, params }),
        Is::ArchiveDisk(params) => Known::steps(ArchiveDisk { at: at()?, params }),
        Is::UnarchiveDisk(params) => Known::steps(UnarchiveDisk { at: at()?, params }),
        Is::AdoptMedia(params) => Known::steps(AdoptMedia { at: at()?, params }),
        Is::DeleteMedia(params) => Known::steps(DeleteMedia { at: at()?, params }),
        Is::MoveDisk(params) => Known::steps(MoveDisk { at: at()?, params }),
        Is::RestoreDisk(params) => Known::steps(RestoreDisk { at: at()?, params }),
        Is::CreateSnapshot(params) => match &params.kind {
            New::Snapshot(name) => Known::steps(snapshot(at()?, &params.disk, name, Act::Create)),
            New::Overlay(new) => Known::steps(Overlay::new(at()?, &params.disk, new)),
            New::Base(base) => Known::steps(Base {
                at: at()?,
                disk: &params.disk,
                base,
            }),
        },
        Is::RevertSnapshot(params) => {
            let (disk, name) = (&params.disk, &params.snapshot);
            Known::steps(snapshot(at()?, disk, name, Act::Revert))
        }
        Is::DeleteSnapshot(params) => {
            let (disk, name) = (&params.disk, &params.snapshot);
            Known::steps(snapshot(at()?, disk, name, Act::Delete))
        }
        Is::Commit(params) => Known::steps(Commit { at: at()?, params }),
        Is::Rebase(params) => Known::steps(Rebase { at: at()?, params }),
        Is::Sparsify(params) => Known::steps(Sparsify { at: at()?, params }),
        Is::CheckDisk(params) => Known::steps(CheckDisk { at: at()?, params }),
        Is::Upload(_) | Is::FinishUpload(_) | Is::Download(_) | Is::ImportUrl(_) => {
            return Err(unknown(job));
        }
    })
}

fn unknown(job: &Assignment) -> JobError {
    let name = job.task.name();
    let text = format!("this service doesn't know the task {name:?}");
    JobError::new(Code::JobUnknownTask, text).with("task", name)
}
