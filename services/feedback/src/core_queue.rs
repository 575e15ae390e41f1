//! The queue `core`: applications' own messages to browsers, and `ping`.

use crate::{session::frames, view::View};
use serde::Serialize;
use std::time::Duration;
use tokio::time::sleep;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Class, Code, JobError,
    frame::{FeedbackFrame, ServerFrame},
    task::{
        CoreTask, Task,
        core::{Delivered, Feedback, Ping, Pong},
    },
};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop};

/// The work of the queue `core`. It makes nothing that would have to be cleaned up.
pub(crate) struct CoreQueue {
    pub(crate) view: View,
}

impl Perform for CoreQueue {
    fn class(&self) -> Class {
        Class::Core
    }

    async fn locks(&self, _: &Assignment) -> Result<LockSet, JobError> {
        Ok(LockSet::default())
    }

    async fn clean(&self, _: &Assignment) -> Result<(), JobError> {
        Ok(())
    }

    async fn recover(&self, _: &Assignment) -> Result<Option<Done>, JobError> {
        // Whether an earlier claim's message reached anybody isn't known: it's sent again.
        Ok(None)
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        match &job.task {
            Task::Core(CoreTask::Ping(ping)) => self.ping(ping, job, run).await,
            Task::Core(CoreTask::Feedback(feedback)) => self.feedback(feedback, run).await,
            Task::Storage(_) | Task::Hypervisor(_) => {
                let error = JobError::new(Code::JobUnknownTask, "is no task of this queue");
                Err(error.into())
            }
        }
    }

    async fn abandon(&self, _: &Assignment) -> Result<(), JobError> {
        Ok(())
    }
}

impl CoreQueue {
    async fn ping(&self, ping: &Ping, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        if let Some(millis) = ping.sleep_ms {
            tokio::select! {
                () = sleep(Duration::from_millis(millis.get())) => {}
                () = run.stop().asked() => return Err(Stop::Stopped),
            }
        }
        if ping.fail {
            let error = JobError::new(Code::ToolFailed, "the ping was asked to fail");
            return Err(error.into());
        }
        done(&Pong {
            worker: job.owner.worker.clone(),
            boot: job.owner.boot,
            checks: Vec::new(),
        })
    }

    async fn feedback(&self, feedback: &Feedback, run: &Run) -> Result<Done, Stop> {
        run.commit().await?;
        let frame = frames::frame(&ServerFrame::Feedback(FeedbackFrame {
            topic: feedback.topic.clone(),
            payload: feedback.payload.clone(),
        }));
        let told = self.view.deliver(feedback.to.clone(), frame).await;
        let told = told.map_err(|_| Stop::Stopped)?;
        done(&Delivered {
            delivered: u64::try_from(told).unwrap_or(u64::MAX),
        })
    }
}

fn done(result: &impl Serialize) -> Result<Done, Stop> {
    match serde_json::to_value(result) {
        Ok(serde_json::Value::Object(done)) => Ok(done),
        Ok(_) | Err(_) => Err(JobError::internal("the result has no form in JSON").into()),
    }
}
