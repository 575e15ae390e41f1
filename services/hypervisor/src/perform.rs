//! The tasks as the loop sees them.

use crate::{
    domains::Domains,
    libvirt::CALLS_MAX,
    look,
    task::{Steps, drive, each_with_steps, known},
};
use tokio::sync::OwnedRwLockReadGuard;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{Class, Code, DomainId, JobError, Object, Record, Task, protocol::lock::Mode};
use virtbus_worker::{Assignment, Confirm, Done, Look, Perform, Run, Stop, pong};

/// The domain that a task is about.
pub(crate) fn domain_of(task: &Task) -> Option<DomainId> {
    let mut objects = task.objects().into_iter();
    objects.find_map(|object| match object {
        Object::Domain(domain) => Some(domain),
        Object::Disk(_) | Object::Media(_) => None,
    })
}

/// Keeps the care for what ended jobs left from the domain of one that is at work.
async fn at_work(domains: &Domains, job: &Assignment) -> Option<OwnedRwLockReadGuard<()>> {
    match domain_of(&job.task) {
        Some(domain) => Some(domains.at_work(&domain).await),
        None => None,
    }
}

impl Perform for Domains {
    fn class(&self) -> Class {
        Class::Hypervisor
    }

    /// As many as there may be calls of libvirt that hang: a stop must get in beside them.
    fn lent_max(&self) -> u32 {
        CALLS_MAX
    }

    async fn look(&self, job: &Record, deliveries: u64) -> Look {
        look::look(self, job, deliveries).await
    }

    /// Alone on the domain, whatever else the task needs.
    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        let mut locks = each_with_steps!(known(self, job)?,
            _ping => return Ok(LockSet::new()),
            steps => steps.locks().await?);
        if let Some(domain) = domain_of(&job.task) {
            locks.insert(Object::Domain(domain).to_string(), Mode::Exclusive);
        }
        Ok(locks)
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        let _at_work = at_work(self, job).await;
        each_with_steps!(known(self, job)?, _ping => Ok(()), steps => steps.clean().await)
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        let _at_work = at_work(self, job).await;
        look::settled(self, &job.record).await?;
        let found = each_with_steps!(known(self, job)?,
            _ping => Ok(None), steps => steps.recover().await);
        found.map_err(Stop::from)
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let _at_work = at_work(self, job).await;
        look::admit(self, &job.record).await?;
        each_with_steps!(known(self, job)?,
            ping => {
                let node = self.host.node().await.map_err(JobError::from)?;
                let checks = vec![format!("libvirt {}", node.libvirt)];
                pong(ping, job, run.stop(), checks).await
            },
            steps => drive(&steps, run, (job.task.name(), &self.watch)).await)
    }

    async fn abandon(&self, job: &Assignment, _: &dyn Confirm) -> Result<(), JobError> {
        let _at_work = at_work(self, job).await;
        let known = match known(self, job) {
            // What isn't known was never begun.
            Err(error) if error.code == Code::JobUnknownTask => return Ok(()),
            known => known?,
        };
        each_with_steps!(known, _ping => Ok(()), steps => steps.abandon().await)
    }
}
