//! Who hears of each step that a job takes: nobody, but where its service is to die at one of them.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
};

/// A step of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The catalogue and libvirt were asked.
    Check,
    /// What can be stopped is done.
    Work,
    /// The catalogue says what is about to be.
    Intend,
    /// The job's own fence.
    Commit,
    /// libvirt did it.
    Effect,
    /// The catalogue says what is so.
    Publish,
}

/// When a step is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// What it waited for has come, so many waits from its begin, counted from 1.
    Waited(Step, u32),
    /// It's done.
    After(Step),
}

/// Hears of the steps of all jobs, with the names of their tasks.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Hears>>);

type Hears = dyn Fn(&str, Moment) + Send + Sync;

impl Watch {
    /// Tells this one.
    pub fn new(hears: impl Fn(&str, Moment) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hears)))
    }

    /// Takes a step of a task.
    pub(crate) async fn step<T, E>(
        &self,
        task: &str,
        step: Step,
        taken: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(hears) = &self.0 else {
            return taken.await;
        };
        let (mut taken, mut waits) = (pin!(taken), 0);
        let done = poll_fn(|context| {
            if waits > 0 {
                hears(task, Moment::Waited(step, waits));
            }
            let now = taken.as_mut().poll(context);
            if now.is_pending() {
                waits += 1;
            }
            now
        });
        let done = done.await?;
        hears(task, Moment::After(step));
        Ok(done)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.0.is_some()).finish()
    }
}
