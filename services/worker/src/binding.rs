//! Finding the consumers of a worker's queues: core makes them, perhaps later.

use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use virtbus_bus::{
    Bus,
    deliveries::{Binding, bind},
};
use virtbus_daemon::Readiness;
use virtbus_wire::Queue;

/// How often missing consumers are looked for.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The queues as they are found. The looking is a task of its own: it waits for a server that may
/// be silent, and the worker must not.
#[derive(Debug)]
pub(crate) struct Bindings {
    found: mpsc::UnboundedReceiver<(Queue, Binding)>,
    _looking: AbortOnDropHandle<()>,
}

impl Bindings {
    /// Looks for all of these, until each is found, and says in `ready` what is missing.
    pub(crate) fn find(bus: &Bus, queues: &[Queue], ready: &Readiness) -> Self {
        // At most one message for each queue.
        let (tell, found) = mpsc::unbounded_channel();
        let looking = look(bus.clone(), queues.to_vec(), ready.clone(), tell);
        Self {
            found,
            _looking: AbortOnDropHandle::new(tokio::spawn(bus.within(looking))),
        }
    }

    /// Those that were found since the last call, one at least; none when all are found.
    ///
    /// Safe to cancel: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<Vec<(Queue, Binding)>> {
        let mut all = vec![self.found.recv().await?];
        while let Ok(another) = self.found.try_recv() {
            all.push(another);
        }
        Some(all)
    }
}

async fn look(
    bus: Bus,
    mut missing: Vec<Queue>,
    ready: Readiness,
    tell: mpsc::UnboundedSender<(Queue, Binding)>,
) {
    while !missing.is_empty() {
        let mut still = Vec::new();
        for queue in missing {
            let name = format!("queue {queue}");
            match bind(&bus, &queue).await {
                Ok(Some(binding)) => {
                    ready.set(name, Ok::<(), &str>(()));
                    if tell.send((queue, binding)).is_err() {
                        return;
                    }
                }
                Ok(None) => {
                    ready.set(name, Err("nobody registered it"));
                    still.push(queue);
                }
                Err(error) => {
                    ready.set(name, Err(error));
                    still.push(queue);
                }
            }
        }
        missing = still;
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
