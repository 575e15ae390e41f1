//! The loop: bind queues, take jobs while there are slots, and drain at the end.

use crate::{
    ahead::Ahead,
    aside::Aside,
    binding::{Bindings, Found},
    claim::Room,
    perform::Perform,
    serve::Setup,
    supervise::at,
    worker::{ServeError, Worker, millis},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Appetite, Deliveries, Delivery, lease::Trust};
use virtbus_wire::Queue;

/// How long a server that may be silent is waited for where nothing depends on its answer.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
/// How long jobs that were told to end may take for it: a tool's grace, and the clean-up.
const END_GRACE: Duration = Duration::from_secs(30);

/// What a running worker takes, and what became of it.
pub(crate) struct Intake<'a, P> {
    worker: Arc<Worker<P>>,
    setup: &'a Setup,
    /// Whether it was told to take no more; none while nobody has looked.
    draining: watch::Receiver<Option<bool>>,
    stop: CancellationToken,
    running: JoinSet<()>,
    bound: Vec<Queue>,
    aside: Aside,
    ahead: Ahead,
}

impl<'a, P: Perform> Intake<'a, P> {
    pub(crate) fn new(
        worker: Arc<Worker<P>>,
        setup: &'a Setup,
        draining: watch::Receiver<Option<bool>>,
        stop: CancellationToken,
    ) -> Self {
        let (running, bound) = (JoinSet::new(), Vec::new());
        Self {
            worker,
            setup,
            draining,
            stop,
            running,
            bound,
            aside: Aside::default(),
            ahead: Ahead::new(),
        }
    }

    /// Takes jobs until it's told to stop, then lets those that run finish.
    ///
    /// # Errors
    /// When another process has this worker's name, or the connection is closed for good.
    pub(crate) async fn run(mut self) -> Result<(), ServeError> {
        let mut deliveries = Deliveries::open(&self.worker.bus, Vec::new()).await?;
        let mut standing = self.worker.standing.clone();
        let setup = self.setup;
        let mut bindings = Bindings::find(&self.worker.bus, &setup.queues, &setup.ready);
        let ended = loop {
            self.worker.counts.busy(self.worker.slots.busy_count());
            standing.borrow_and_update();
            self.put_in_line().await;
            let (appetite, again) = self.appetite();
            let due = self.ahead.due(self.worker.ack_wait());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break Ok(()),
                changed = standing.changed() => {
                    if changed.is_err() || standing.borrow().trust == Trust::Taken {
                        let worker = self.setup.identity.worker.clone();
                        break Err(ServeError::Replaced(worker));
                    }
                }
                Some(ended) = self.running.join_next() => {
                    log_ended(ended);
                    deliveries.restart();
                }
                Ok(()) = self.draining.changed() => {}
                Some(found) = bindings.next() => {
                    self.bind(found);
                    let open = Deliveries::open(&self.worker.bus, self.bound.clone()).await?;
                    close(std::mem::replace(&mut deliveries, open)).await;
                }
                () = at(again) => {}
                () = at(due) => self.ahead.keep(Instant::now()).await,
                delivery = deliveries.next(appetite) => self.take(delivery?),
            }
        };
        self.ahead.hand_back().await;
        self.drain(&mut deliveries).await;
        close(deliveries).await;
        ended
    }

    /// What may be taken now, and when to ask again should nothing happen until then.
    fn appetite(&self) -> (Appetite, Option<Instant>) {
        if !self.takes() {
            return (Appetite::default(), None);
        }
        let slots = &self.worker.slots;
        let (appetite, again) = self.aside.curb(slots.appetite(), Instant::now());
        let again = again.into_iter().chain(slots.lends_at()).min();
        let lines = self.worker.locks.long_lines();
        let ahead = if lines.any() {
            self.ahead.places() + lines.window().min(self.ahead.room())
        } else {
            0
        };
        (Appetite { ahead, ..appetite }, again)
    }

    fn takes(&self) -> bool {
        let trust = self.worker.standing.borrow().trust;
        trust == Trust::Held && *self.draining.borrow() == Some(false)
    }

    fn take(&mut self, delivery: Delivery) {
        let is_in_line = self.worker.locks.long_lines().any();
        if is_in_line && self.ahead.room() > 0 && self.worker.is_most_likely_in_line(&delivery) {
            self.ahead.put(delivery, Instant::now());
            return;
        }
        let kind = self.worker.kind(&delivery);
        let room = if let Some(place) = self.ahead.place().filter(|_| is_in_line) {
            Room::Line(Some(place))
        } else if let Some(slot) = self.worker.slots.take(kind) {
            Room::Slot(slot)
        } else if kind.is_long {
            self.aside.add(kind.priority, Instant::now());
            Room::None
        } else {
            // It was asked for while there were places.
            Room::Line(None)
        };
        self.handle(delivery, room);
    }

    /// Puts those that were read ahead in line, as many as there are places for.
    async fn put_in_line(&mut self) {
        if !self.takes() {
            return self.ahead.hand_back().await;
        }
        while let Some((delivery, place)) = self.ahead.next() {
            self.handle(delivery, Room::Line(Some(place)));
        }
    }

    fn handle(&mut self, delivery: Delivery, room: Room) {
        let handled = Arc::clone(&self.worker).handle(delivery, room);
        self.running.spawn(self.worker.bus.within(handled));
    }

    /// Takes from these queues too.
    fn bind(&mut self, found: Found) {
        for (queue, binding) in found {
            let ack_wait = millis(binding.ack_wait);
            self.worker.ack_wait.store(ack_wait, Ordering::Relaxed);
            self.bound.push(queue);
        }
    }

    /// Lets running jobs finish, for a while; then tells them to end.
    async fn drain(&mut self, deliveries: &mut Deliveries) {
        let finish = Duration::from_secs(self.setup.work.drain_s);
        let busy = self.worker.slots.busy_count();
        tracing::info!(busy, limit_s = finish.as_secs(), "taking no more jobs");
        self.wait_for_running(deliveries, finish).await;
        self.worker.hard_stop.cancel();
        self.wait_for_running(deliveries, END_GRACE).await;
        if !self.running.is_empty() {
            tracing::error!(
                left = self.running.len(),
                "jobs did not end in time: left to others"
            );
        }
        self.running.shutdown().await;
    }

    async fn wait_for_running(&mut self, deliveries: &mut Deliveries, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.running.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next() => log_ended(ended),
                () = tokio::time::sleep_until(until) => return,
                // Nothing is wanted any more: what still comes goes back to the queue at once.
                delivery = deliveries.next(Appetite::default()) => {
                    if let Ok(delivery) = delivery {
                        delivery.hand_back(None).await;
                    }
                }
            }
        }
    }
}

/// What isn't handed back in time is delivered again after `ack_wait`.
async fn close(deliveries: Deliveries) {
    drop(tokio::time::timeout(FAREWELL, deliveries.close()).await);
}

fn log_ended(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job's task ended badly: the job is left to others");
    }
}
