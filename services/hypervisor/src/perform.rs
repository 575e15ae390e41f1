//! The tasks as the loop sees them.

use crate::{
    domains::Domains,
    libvirt::CALLS_MAX,
    look,
    task::{Steps, drive, each_with_steps, known},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{Class, Code, JobError, Record, protocol::lock::Mode};
use virtbus_worker::{Assignment, Done, Look, Perform, Run, Stop, pong};

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
        let domains = job.task.objects().into_iter();
        let domains = domains.map(|object| object.to_string());
        for domain in domains.filter(|object| object.starts_with("domain.")) {
            locks.insert(domain, Mode::Exclusive);
        }
        Ok(locks)
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        each_with_steps!(known(self, job)?, _ping => Ok(()), steps => steps.clean().await)
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        look::settled(self, &job.record).await?;
        let found = each_with_steps!(known(self, job)?,
            _ping => Ok(None), steps => steps.recover().await);
        found.map_err(Stop::from)
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        look::admit(self, &job.record).await?;
        each_with_steps!(known(self, job)?,
            ping => {
                let node = self.host.node().await.map_err(JobError::from)?;
                let checks = vec![format!("libvirt {}", node.libvirt)];
                pong(ping, job, run.stop(), checks).await
            },
            steps => drive(&steps, run, (job.task.name(), &self.watch)).await)
    }

    async fn abandon(&self, job: &Assignment) -> Result<(), JobError> {
        let known = match known(self, job) {
            // What isn't known was never begun.
            Err(error) if error.code == Code::JobUnknownTask => return Ok(()),
            known => known?,
        };
        each_with_steps!(known, _ping => Ok(()), steps => steps.abandon().await)
    }
}
