//! The tasks as the loop sees them.

use crate::{
    pool::Pool,
    store::Store,
    task::{AnySteps, Known, Pace, known, known_as},
};
use std::future::pending;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{Class, Code, JobError, state::Progress};
use virtbus_worker::{Assignment, Confirm, Done, Free, Perform, Run, Stop};

impl Perform for Store {
    fn class(&self) -> Class {
        Class::Storage
    }

    fn free(&self) -> Free {
        let pools: Vec<Pool> = self.pools().values().cloned().collect();
        Box::new(move || {
            let free = pools
                .iter()
                .map(|pool| Some((pool.name.clone(), pool.free()?)));
            free.flatten().collect()
        })
    }

    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        match known(self, job)? {
            Known::Ping(_) => Ok(LockSet::new()),
            Known::Steps(steps) => steps.locks().await,
        }
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        let cleaned = match known(self, job)? {
            Known::Ping(task) => task.clean().await,
            Known::Steps(steps) => steps.clean().await,
        };
        cleaned.map_err(error_of)
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        match known(self, job)? {
            Known::Ping(_) => Ok(None),
            Known::Steps(steps) => steps.recover().await,
        }
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        match known(self, job)? {
            Known::Ping(task) => task.run(run.stop()).await,
            Known::Steps(steps) => drive(steps.as_ref(), job.claim == 1, run).await,
        }
    }

    async fn abandon(&self, job: &Assignment, own: &dyn Confirm) -> Result<(), JobError> {
        match known_as(self, job, Some(own)) {
            // What isn't known was never begun.
            Err(error) if error.code == Code::JobUnknownTask => Ok(()),
            Err(error) => Err(error),
            Ok(Known::Ping(_)) => Ok(()),
            Ok(Known::Steps(steps)) => steps.abandon().await.map_err(error_of),
        }
    }
}

/// All steps of a task, tied to its run.
async fn drive(steps: &dyn AnySteps, is_first: bool, run: &Run) -> Result<Done, Stop> {
    let progress = |progress: Progress| run.progress(progress);
    let keep = |held: Box<dyn Send>| run.keep(held);
    let lost = run.stop().tools().apart();
    let pace = Pace {
        is_first,
        stop: run.stop().tools(),
        lost: &lost,
        progress: &progress,
        keep: &keep,
        reached: &|_| Ok(()),
    };
    let kill = async {
        run.stop().lost().await;
        lost.kill();
        pending().await
    };
    // The second never ends, so the first is never dropped for it.
    tokio::select! {
        done = steps.drive(&pace, Box::pin(run.commit())) => done,
        never = kill => never,
    }
}

/// Before and after the work nothing waits and nothing is stopped, so only errors come.
fn error_of(stop: Stop) -> JobError {
    match stop {
        Stop::Failed(error) | Stop::Earlier(error) => error,
        Stop::Stopped | Stop::Lost | Stop::Wait(_) => {
            JobError::internal("another claim of the job came between")
        }
    }
}
