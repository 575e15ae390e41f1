//! A real worker of the pool `default`, whose work is nothing.

use crate::stack::Stack;
use serde_json::Map;
use std::{collections::BTreeMap, time::Duration};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use virtbus_bus::topology::queues_of_pool;
use virtbus_daemon::{Identity, Metrics, Readiness};
use virtbus_wire::{
    BootId, Class, Code, JobError,
    task::{HypervisorTask, StorageTask, Task},
};
use virtbus_worker::{Assignment, Done, Perform, Run, ServeError, Setup, Stop, WorkConfig, serve};

struct Nothing(Class);

impl Perform for Nothing {
    fn class(&self) -> Class {
        self.0
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let ping = match &job.task {
            Task::Storage(StorageTask::Ping(ping)) => Some(ping),
            Task::Hypervisor(HypervisorTask::Ping(ping)) => Some(ping),
            Task::Storage(_) | Task::Hypervisor(_) | Task::Core(_) => None,
        };
        if ping.is_some_and(|ping| ping.fail) {
            return Err(JobError::new(Code::ToolMissing, "asked to fail").into());
        }
        if let Some(millis) = ping.and_then(|ping| ping.sleep_ms) {
            let work = Duration::from_millis(millis.get());
            if timeout(work, run.stop().asked()).await.is_ok() {
                return Err(Stop::Stopped);
            }
        }
        run.commit().await?;
        Ok(Map::new())
    }
}

/// A running worker.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Starts a worker of the pool's queues of one class.
pub(crate) fn start(stack: &Stack, class: Class) -> Running {
    let work = WorkConfig {
        slots: 16,
        ..WorkConfig::default()
    };
    start_with(stack, class, work)
}

/// The same with these slots.
pub(crate) fn start_with(stack: &Stack, class: Class, work: WorkConfig) -> Running {
    let queues = queues_of_pool(&"default".parse().unwrap());
    let queues = queues.into_iter().filter(|queue| queue.class() == class);
    let setup = Setup {
        bus: stack.bus.clone(),
        identity: Identity {
            worker: format!("{class}-test").parse().unwrap(),
            boot: BootId::now_v7(),
            host_name: "here".to_owned(),
        },
        queues: queues.collect(),
        pools: vec!["default".parse().unwrap()],
        work,
        versions: BTreeMap::new(),
        state_dir: None,
        ready: Readiness::default(),
        metrics: Metrics::new("test", "test"),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(setup, Nothing(class), stop.clone()));
    Running { stop, task }
}
