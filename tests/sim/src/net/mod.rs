//! The network: what processes send and listen to.
//!
//! What several tasks send in the same instant is put in an order of its own, by content: in
//! which order the runtime happened to run them makes no difference.

mod message;
mod seen;
mod spoil;
mod world;

pub use seen::{Queued, Seen};
pub use world::{BEGIN, Weather, World};

pub(crate) use message::from_map;

use crate::{
    broker::{Broker, In, stream::Ms},
    node::Gate,
};
use async_nats::Message;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::sleep_until,
};
use virtbus_bus::Health;
use world::{Link, Listener};

/// The network, shared by all processes.
#[derive(Debug)]
pub struct Net {
    world: Mutex<World>,
    changed: Notify,
}

impl Net {
    /// With a server in it.
    #[must_use]
    pub fn new(seed: u64, broker: Broker) -> Arc<Self> {
        let world = World::new(seed, broker);
        let (world, changed) = (Mutex::new(world), Notify::new());
        Arc::new(Self { world, changed })
    }

    /// What is outside the processes.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's time.
    #[must_use]
    pub fn now(&self) -> Ms {
        self.world().now()
    }

    /// A new start of a process.
    pub fn join(&self, gate: Arc<Gate>) -> usize {
        let mut world = self.world();
        let health = Health {
            connected: true,
            connections: 1,
            ..Health::default()
        };
        world.links.push(Link {
            gate,
            health: watch::Sender::new(health),
            cut_until: 0,
            last_arrival: 0,
        });
        world.links.len() - 1
    }

    /// How the connection of a process is.
    pub fn health(&self, link: usize) -> watch::Receiver<Health> {
        self.world().links[link].health.subscribe()
    }

    /// Ends what a dead process listens and waits for. Where the host went down with it, the
    /// server doesn't know.
    pub fn leave(&self, link: usize, unnoticed: bool) {
        let mut world = self.world();
        let prefix = inbox_of(link);
        let is_its = |listener: &Listener| listener.link == link;
        world.listeners.retain(|_, all| {
            all.retain(|listener| !is_its(listener));
            !all.is_empty()
        });
        world.patterns.retain(|(_, listener)| !is_its(listener));
        let gone: Vec<String> = world
            .requests
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .cloned()
            .collect();
        let gone: Vec<_> = gone.iter().map(|key| world.requests.remove(key)).collect();
        if !unnoticed {
            world.broker.forget(&prefix);
        }
        drop(world);
        drop(gone);
    }

    /// Cuts a process off until then.
    pub fn cut(&self, link: usize, until: Ms) {
        let mut world = self.world();
        world.links[link].cut_until = until;
        world.broker.forget(&inbox_of(link));
        let health = world.links[link].health.clone();
        drop(world);
        health.send_modify(|health| health.connected = false);
    }

    /// Connects a process again that was cut off.
    pub fn mend(&self, link: usize) {
        let health = self.world().links[link].health.clone();
        health.send_modify(|health| {
            health.connected = true;
            health.connections += 1;
        });
    }

    pub(crate) fn send(&self, from: usize, message: In) {
        self.world().send(from, message);
        self.changed.notify_one();
    }

    pub(crate) fn request(&self, from: usize, message: In) -> oneshot::Receiver<Message> {
        let (sender, receiver) = oneshot::channel();
        let mut world = self.world();
        if let Some(reply) = &message.reply {
            world.requests.insert(reply.clone(), sender);
        }
        world.send(from, message);
        drop(world);
        self.changed.notify_one();
        receiver
    }

    pub(crate) fn listen(&self, link: usize, pattern: String) -> mpsc::UnboundedReceiver<Message> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let listener = Listener { link, sender };
        let mut world = self.world();
        match pattern.strip_suffix('*') {
            Some(prefix) => world.patterns.push((prefix.to_owned(), listener)),
            None => world.listeners.entry(pattern).or_default().push(listener),
        }
        receiver
    }

    /// Carries everything, for as long as this is polled.
    pub async fn run(&self) {
        loop {
            let next = self.world().step();
            let until = next.map(|at| {
                let world = self.world();
                world.begin + Duration::from_millis(u64::try_from(at - BEGIN).unwrap_or(0))
            });
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }
}

/// How the inboxes of a process begin.
pub(crate) fn inbox_of(link: usize) -> String {
    format!("_I.{link}.")
}
