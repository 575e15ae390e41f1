//! The tasks: one file each, the same steps in the same order in each of them.
//!
//! ```text
//! check → work → intend → (commit: the job's own fence) → effect → publish
//! ```
//! `check` asks the catalogue and libvirt, and refuses; `work` may wait for a guest and can be
//! stopped; `intend` writes to the catalogue what is about to be; after the commit nothing stops;
//! `effect` calls libvirt; `publish` makes the catalogue say what libvirt says then.
//!
//! Each step asks what is so before it acts: all of them can be run again.

mod check_domain;
mod commit;
mod context;
mod create_snapshot;
mod delete_domain;
mod delete_snapshot;
mod merge;
mod overlays;
mod reset_domain;
mod resize;
mod resume_domain;
mod revert_snapshot;
mod start_domain;
mod stop_domain;

use crate::{
    domains::Domains,
    watch::{Step, Watch},
};
use check_domain::CheckDomain;
use commit::Commit;
use context::Context;
use create_snapshot::CreateSnapshot;
use delete_domain::DeleteDomain;
use delete_snapshot::DeleteSnapshot;
use overlays::Overlays;
use reset_domain::ResetDomain;
use resize::Resize;
use resume_domain::ResumeDomain;
use revert_snapshot::RevertSnapshot;
use start_domain::StartDomain;
use std::future::Future;
use stop_domain::StopDomain;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, JobError,
    task::{HypervisorTask, Ping, Task, hypervisor::NewSnapshot},
};
use virtbus_worker::{Assignment, Done, Run, Stop};

/// What a check says.
pub(crate) enum Checked<P> {
    /// What is asked for is so already.
    Done(Done),
    /// This is to be done.
    Plan(P),
}

/// The steps of a task about one domain.
pub(crate) trait Steps: Sync {
    /// What is to be done, and what was done of it so far. Dropping it gives back what it holds.
    type Plan: Send + Sync + 'static;

    /// The locks beside the one on the domain itself.
    fn locks(&self) -> impl Future<Output = Result<LockSet, JobError>> + Send {
        async { Ok(LockSet::new()) }
    }

    /// Removes what older claims left that is in the way.
    fn clean(&self) -> impl Future<Output = Result<(), JobError>> + Send {
        async { Ok(()) }
    }

    /// Asks the catalogue and libvirt, and refuses what can't be.
    fn check(&self) -> impl Future<Output = Result<Checked<Self::Plan>, Stop>> + Send;

    /// What may take long, and is stopped when the job is.
    fn work(
        &self,
        plan: &mut Self::Plan,
        run: &Run,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        let _ = (plan, run);
        async { Ok(()) }
    }

    /// Writes to the catalogue what is about to be.
    fn intend(&self, plan: &mut Self::Plan) -> impl Future<Output = Result<(), Stop>> + Send {
        let _ = plan;
        async { Ok(()) }
    }

    /// Calls libvirt.
    fn effect(
        &self,
        plan: &mut Self::Plan,
        run: &Run,
    ) -> impl Future<Output = Result<(), Stop>> + Send;

    /// Writes to the catalogue what is so now.
    fn publish(&self, plan: Self::Plan) -> impl Future<Output = Result<Done, Stop>> + Send;

    /// The result, if an earlier claim's effect is there; what was missing of it is done.
    fn recover(&self) -> impl Future<Output = Result<Option<Done>, JobError>> + Send {
        async { Ok(None) }
    }

    /// Puts back what an intent of this job began.
    fn abandon(&self) -> impl Future<Output = Result<(), JobError>> + Send {
        async { Ok(()) }
    }
}

/// All steps of a task in order.
pub(crate) async fn drive<S: Steps>(
    steps: &S,
    run: &Run,
    (task, watch): (&str, &Watch),
) -> Result<Done, Stop> {
    let checked = watch.step(task, Step::Check, steps.check()).await?;
    let mut plan = match checked {
        Checked::Done(done) => return Ok(done),
        Checked::Plan(plan) => plan,
    };
    let work = steps.work(&mut plan, run);
    watch.step(task, Step::Work, work).await?;
    let intend = steps.intend(&mut plan);
    watch.step(task, Step::Intend, intend).await?;
    watch.step(task, Step::Commit, run.commit()).await?;
    let effect = steps.effect(&mut plan, run);
    watch.step(task, Step::Effect, effect).await?;
    let publish = steps.publish(plan);
    watch.step(task, Step::Publish, publish).await
}

/// The tasks that this service can do.
pub(crate) enum Known<'a> {
    Ping(&'a Ping),
    CheckDomain(CheckDomain<'a>),
    StartDomain(StartDomain<'a>),
    StopDomain(StopDomain<'a>),
    ResumeDomain(ResumeDomain<'a>),
    ResetDomain(ResetDomain<'a>),
    CreateSnapshot(CreateSnapshot<'a>),
    Overlays(Overlays<'a>),
    RevertSnapshot(RevertSnapshot<'a>),
    DeleteSnapshot(DeleteSnapshot<'a>),
    Resize(Resize<'a>),
    Commit(Commit<'a>),
    DeleteDomain(DeleteDomain<'a>),
}

/// The same for every task with steps.
macro_rules! each_with_steps {
    ($known:expr, $ping:ident => $pong:expr, $steps:ident => $value:expr) => {
        match $known {
            $crate::task::Known::Ping($ping) => $pong,
            $crate::task::Known::CheckDomain($steps) => $value,
            $crate::task::Known::StartDomain($steps) => $value,
            $crate::task::Known::StopDomain($steps) => $value,
            $crate::task::Known::ResumeDomain($steps) => $value,
            $crate::task::Known::ResetDomain($steps) => $value,
            $crate::task::Known::CreateSnapshot($steps) => $value,
            $crate::task::Known::Overlays($steps) => $value,
            $crate::task::Known::RevertSnapshot($steps) => $value,
            $crate::task::Known::DeleteSnapshot($steps) => $value,
            $crate::task::Known::Resize($steps) => $value,
            $crate::task::Known::Commit($steps) => $value,
            $crate::task::Known::DeleteDomain($steps) => $value,
        }
    };
}
pub(crate) use each_with_steps;

/// The task of a job.
///
/// # Errors
/// `job.unknown_task` for one of another class.
pub(crate) fn known<'a>(domains: &'a Domains, job: &'a Assignment) -> Result<Known<'a>, JobError> {
    let Task::Hypervisor(task) = &job.task else {
        let name = job.task.name();
        let text = format!("this service doesn't know the task {name:?}");
        return Err(JobError::new(Code::JobUnknownTask, text).with("task", name));
    };
    let at = |domain| Context {
        domains,
        job,
        domain,
    };
    Ok(match task {
        HypervisorTask::Ping(ping) => Known::Ping(ping),
        HypervisorTask::CheckDomain(params) => Known::CheckDomain(CheckDomain {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::StartDomain(params) => Known::StartDomain(StartDomain {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::StopDomain(params) => Known::StopDomain(StopDomain {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::ResumeDomain(params) => Known::ResumeDomain(ResumeDomain {
            at: at(&params.domain),
        }),
        HypervisorTask::ResetDomain(params) => Known::ResetDomain(ResetDomain {
            at: at(&params.domain),
        }),
        HypervisorTask::CreateSnapshot(params) => match &params.kind {
            NewSnapshot::Snapshot(snapshot) => Known::CreateSnapshot(CreateSnapshot {
                at: at(&params.domain),
                snapshot,
            }),
            NewSnapshot::Overlays(overlays) => Known::Overlays(Overlays {
                at: at(&params.domain),
                overlays,
                quiesce: params.quiesce,
            }),
        },
        HypervisorTask::RevertSnapshot(params) => Known::RevertSnapshot(RevertSnapshot {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::DeleteSnapshot(params) => Known::DeleteSnapshot(DeleteSnapshot {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::Resize(params) => Known::Resize(Resize {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::Commit(params) => Known::Commit(Commit {
            at: at(&params.domain),
            params,
        }),
        HypervisorTask::DeleteDomain(params) => Known::DeleteDomain(DeleteDomain {
            at: at(&params.domain),
        }),
    })
}
