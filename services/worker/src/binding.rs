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

/// Queues with what is known of their consumers.
pub(crate) type Found = Vec<(Queue, Binding)>;

/// The queues as they are found. The looking is a task of its own: it waits for a server that may
/// be silent, and the worker must not.
#[derive(Debug)]
pub(crate) struct Bindings {
    found: mpsc::UnboundedReceiver<Found>,
    _looking: AbortOnDropHandle<()>,
}

impl Bindings {
    /// Looks for all of these, until each is found, and says in `ready` what is missing.
    pub(crate) fn find(bus: &Bus, queues: &[Queue], ready: &Readiness) -> Self {
        // At most as many messages as there are queues.
        let (tell, found) = mpsc::unbounded_channel();
        let looking = look(bus.clone(), queues.to_vec(), ready.clone(), tell);
        Self {
            found,
            _looking: AbortOnDropHandle::new(tokio::spawn(bus.within(looking))),
        }
    }

    /// The next ones that are found, one at least; none when all are. Those found at a time come
    /// together: whoever takes from more queues asks the server anew, and what it sends in answer
    /// to the old requests comes again only after `ack_wait`.
    ///
    /// Safe to cancel: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<Found> {
        self.found.recv().await
    }
}

async fn look(
    bus: Bus,
    mut missing: Vec<Queue>,
    ready: Readiness,
    tell: mpsc::UnboundedSender<Found>,
) {
    while !missing.is_empty() {
        let (mut found, mut still) = (Vec::new(), Vec::new());
        for queue in missing {
            let name = format!("queue {queue}");
            match bind(&bus, &queue).await {
                Ok(Some(binding)) => {
                    ready.set(name, Ok::<(), &str>(()));
                    found.push((queue, binding));
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
        if !found.is_empty() && tell.send(found).is_err() {
            return;
        }
        missing = still;
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
