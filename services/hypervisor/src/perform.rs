//! What this service does with jobs: so far `ping`.

use crate::libvirt::Host;
use serde_json::Value;
use std::time::Duration;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Class, Code, JobError,
    task::{HypervisorTask, Ping, Pong, Task},
};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop};

/// The work of one host.
#[derive(Debug)]
pub(crate) struct Domains {
    pub(crate) host: Host,
}

impl Perform for Domains {
    fn class(&self) -> Class {
        Class::Hypervisor
    }

    async fn locks(&self, _: &Assignment) -> Result<LockSet, JobError> {
        Ok(LockSet::new())
    }

    async fn clean(&self, _: &Assignment) -> Result<(), JobError> {
        Ok(())
    }

    async fn recover(&self, _: &Assignment) -> Result<Option<Done>, JobError> {
        Ok(None)
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

    async fn abandon(&self, _: &Assignment) -> Result<(), JobError> {
        Ok(())
    }
}

impl Domains {
    /// Asks libvirt what the host is.
    async fn ping(&self, job: &Assignment, ping: &Ping, run: &Run) -> Result<Done, Stop> {
        let node = self.host.node().await.map_err(JobError::from)?;
        let work = Duration::from_millis(ping.sleep_ms.map_or(0, |millis| millis.get()));
        tokio::select! {
            () = tokio::time::sleep(work) => {}
            () = run.stop().asked() => return Err(Stop::Stopped),
        }
        if ping.fail {
            return Err(JobError::new(Code::ToolFailed, "the ping was asked to fail").into());
        }
        let checks = vec![format!("libvirt {}", node.libvirt)];
        let pong = Pong {
            worker: job.owner.worker.clone(),
            boot: job.owner.boot,
            checks,
        };
        match serde_json::to_value(pong) {
            Ok(Value::Object(result)) => Ok(result),
            Ok(_) | Err(_) => Err(JobError::internal("the answer can't be written").into()),
        }
    }
}
