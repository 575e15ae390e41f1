//! What this service does with jobs: so far `ping`.

use crate::libvirt::Host;
use virtbus_wire::{
    Class, Code, JobError,
    task::{HypervisorTask, Ping, Task},
};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop, pong};

/// The work of one host.
#[derive(Debug)]
pub(crate) struct Domains {
    pub(crate) host: Host,
}

impl Perform for Domains {
    fn class(&self) -> Class {
        Class::Hypervisor
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        match &job.task {
            Task::Hypervisor(HypervisorTask::Ping(ping)) => self.ping(job, ping, run).await,
            Task::Hypervisor(_) | Task::Storage(_) | Task::Core(_) => {
                let message = format!("this host can't do {} yet", job.task.name());
                Err(JobError::new(Code::DomainUnsupported, message).into())
            }
        }
    }
}

impl Domains {
    /// Asks libvirt what the host is.
    async fn ping(&self, job: &Assignment, ping: &Ping, run: &Run) -> Result<Done, Stop> {
        let node = self.host.node().await.map_err(JobError::from)?;
        pong(
            ping,
            job,
            run.stop(),
            vec![format!("libvirt {}", node.libvirt)],
        )
        .await
    }
}
