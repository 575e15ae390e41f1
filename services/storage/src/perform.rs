//! The tasks as the loop sees them.

use crate::{
    store::Store,
    task::{Known, Pace, Steps, drive, known},
};
use std::future::pending;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{Class, Code, JobError, state::Progress};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop, process};

impl Perform for Store {
    fn class(&self) -> Class {
        Class::Storage
    }

    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        match known(self, job)? {
            Known::Ping(_) => Ok(LockSet::new()),
            Known::CreateDisk(task) => task.locks().await,
            Known::Resize(task) => task.locks().await,
            Known::Convert(task) => task.locks().await,
            Known::DeleteDisk(task) => task.locks().await,
        }
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        let cleaned = match known(self, job)? {
            Known::Ping(task) => task.clean().await,
            Known::CreateDisk(task) => task.clean().await,
            Known::Convert(task) => task.clean().await,
            // What they leave is in the catalogue and the trash, and is gone on from.
            Known::Resize(_) | Known::DeleteDisk(_) => Ok(()),
        };
        cleaned.map_err(error_of)
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, JobError> {
        let recovered = match known(self, job)? {
            Known::Ping(_) => Ok(None),
            Known::CreateDisk(task) => task.recover().await,
            Known::Resize(task) => task.recover().await,
            Known::Convert(task) => task.recover().await,
            Known::DeleteDisk(task) => task.recover().await,
        };
        recovered.map_err(error_of)
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        match known(self, job)? {
            Known::Ping(task) => task.run(run.stop()).await,
            Known::CreateDisk(task) => steps(&task, run).await,
            Known::Resize(task) => steps(&task, run).await,
            Known::Convert(task) => steps(&task, run).await,
            Known::DeleteDisk(task) => steps(&task, run).await,
        }
    }

    async fn abandon(&self, job: &Assignment) -> Result<(), JobError> {
        let known = match known(self, job) {
            // What isn't known was never begun.
            Err(error) if error.code == Code::JobUnknownTask => return Ok(()),
            known => known?,
        };
        let abandoned = match known {
            Known::Ping(_) => Ok(()),
            Known::CreateDisk(task) => task.abandon().await,
            Known::Resize(task) => task.abandon().await,
            Known::Convert(task) => task.abandon().await,
            Known::DeleteDisk(task) => task.abandon().await,
        };
        abandoned.map_err(error_of)
    }
}

/// All steps of a task, tied to its run.
async fn steps<S: Steps>(steps: &S, run: &Run) -> Result<Done, Stop> {
    let progress = |progress: Progress| run.progress(progress);
    let keep = |held: Box<dyn Send>| run.keep(held);
    let lost = process::Stop::new();
    let pace = Pace {
        stop: run.stop().tools(),
        lost: &lost,
        progress: &progress,
        keep: &keep,
    };
    let kill = async {
        run.stop().lost().await;
        lost.kill();
        pending().await
    };
    // The second never ends, so the first is never dropped for it.
    tokio::select! {
        done = drive(steps, &pace, run.commit()) => done,
        never = kill => never,
    }
}

/// Before and after the work nothing waits and nothing is stopped, so only errors come.
fn error_of(stop: Stop) -> JobError {
    match stop {
        Stop::Failed(error) => error,
        Stop::Stopped | Stop::Lost | Stop::Wait(_) => {
            JobError::internal("another claim of the job came between")
        }
    }
}
