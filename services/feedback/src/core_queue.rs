//! The queue `core`: applications' own messages to browsers, and `ping`.

use crate::{session::frames, view::View};
use virtbus_wire::{
    Class, Code, JobError,
    frame::{FeedbackFrame, ServerFrame},
    task::{
        CoreTask, Task,
        core::{Delivered, Feedback},
    },
};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop, done, pong};

/// The work of the queue `core`. It makes nothing that would have to be cleaned up.
pub(crate) struct CoreQueue {
    pub(crate) view: View,
}

impl Perform for CoreQueue {
    fn class(&self) -> Class {
        Class::Core
    }

    // Nothing is recovered: whether an earlier claim's message reached anybody isn't known, so it's
    // sent again.

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        match &job.task {
            Task::Core(CoreTask::Ping(ping)) => pong(ping, job, run.stop(), Vec::new()).await,
            Task::Core(CoreTask::Feedback(feedback)) => self.feedback(feedback, run).await,
            Task::Storage(_) | Task::Hypervisor(_) => {
                let error = JobError::new(Code::JobUnknownTask, "is no task of this queue");
                Err(error.into())
            }
        }
    }
}

impl CoreQueue {
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
