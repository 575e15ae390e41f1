//! Takes messages from a worker's queues, strictly by priority.

use crate::{
    client::{Bus, Health},
    delivery::Delivery,
    error::BusError,
    pulls::{Appetite, Pull, Pulls, Step},
    transport::{Subscription, status},
};
use async_nats::jetstream::consumer::pull::BatchConfig;
use std::{collections::VecDeque, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use virtbus_wire::Queue;

/// The status of a request that wasn't answered since nothing was there.
const NOTHING: u16 = 404;
/// The status of a request whose time is over.
const EXPIRED: u16 = 408;

/// The queues of one worker. All its pull requests answer to one subscription that lives as long
/// as this does, so that no message is ever delivered to nobody.
#[derive(Debug)]
pub struct Deliveries {
    bus: Bus,
    queues: Vec<Queue>,
    inbox: String,
    answers: Subscription,
    pulls: Pulls,
    /// What came without being wanted, and isn't handed back yet.
    unwanted: VecDeque<Delivery>,
    health: watch::Receiver<Health>,
    /// Which connection the pulls were sent on.
    connections: u64,
}

/// What the server knows of a queue's consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// How long a message is ours without a sign of life.
    pub ack_wait: Duration,
    /// How often it's delivered at most; 0 = without limit.
    pub max_deliver: u64,
}

/// Looks up a queue's consumer; none when core hasn't made it.
///
/// # Errors
/// When the server doesn't answer.
pub async fn bind(bus: &Bus, queue: &Queue) -> Result<Option<Binding>, BusError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        config: Option<Config>,
    }
    #[derive(serde::Deserialize)]
    struct Config {
        ack_wait: Option<u64>,
        max_deliver: Option<i64>,
    }
    let subject = format!(
        "$JS.API.CONSUMER.INFO.{}.{}",
        queue.stream(),
        queue.consumer()
    );
    let answer = bus.request(&subject, bytes::Bytes::new()).await?;
    let read: Answer = serde_json::from_slice(&answer.payload)
        .map_err(|error| BusError::refused(&subject, error))?;
    Ok(read.config.map(|config| Binding {
        ack_wait: Duration::from_nanos(config.ack_wait.unwrap_or(30_000_000_000)),
        max_deliver: config
            .max_deliver
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(0),
    }))
}

impl Deliveries {
    /// Starts to listen; nothing is asked for before [`Deliveries::next`].
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn open(bus: &Bus, queues: Vec<Queue>) -> Result<Self, BusError> {
        let inbox = bus.new_inbox();
        let answers = bus.subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| BusError::unreachable("a subscription", error))?;
        let pulls = Pulls::new(queues.iter().map(Queue::priority));
        Ok(Self {
            bus: bus.clone(),
            queues,
            inbox,
            answers,
            pulls,
            unwanted: VecDeque::new(),
            health: bus.health(),
            connections: bus.health().borrow().connections,
        })
    }

    /// Says that a slot became free: more urgent queues are asked first again.
    pub fn restart(&mut self) {
        self.pulls.restart();
    }

    /// The next message that is wanted. What comes without being wanted is handed back. May be
    /// dropped and called again at any time, also while it waits for a connection that takes
    /// nothing just now: what wasn't said then is said the next time.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn next(&mut self, appetite: Appetite) -> Result<Delivery, BusError> {
        loop {
            while let Some(delivery) = self.unwanted.front() {
                delivery.hand_back(None).await;
                self.unwanted.pop_front();
            }
            match self.pulls.step(appetite, Instant::now()) {
                Step::Pull(pull) => {
                    self.request(pull).await?;
                    self.pulls.sent(pull, Instant::now());
                }
                Step::Wait(until) => {
                    if let Some(delivery) = self.wait(appetite, until).await? {
                        return Ok(delivery);
                    }
                }
            }
        }
    }

    /// Stops asking, and hands back what has come already.
    pub async fn close(mut self) {
        // What the server sends from now on is delivered again after `ack_wait`.
        self.answers.unsubscribe().await;
        for delivery in self.unwanted {
            delivery.hand_back(None).await;
        }
        while let Some(answer) = self.answers.next().await {
            if answer.status.is_none()
                && let Some(delivery) = Delivery::read(&self.bus, answer)
            {
                delivery.hand_back(None).await;
            }
        }
    }

    async fn request(&self, pull: Pull) -> Result<(), BusError> {
        let Pull {
            number, expires, ..
        } = pull;
        let queue = &self.queues[pull.queue];
        let subject = format!(
            "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
            queue.stream(),
            queue.consumer()
        );
        let batch = pull.batch as usize;
        let config = BatchConfig {
            batch,
            expires,
            no_wait: expires.is_none(),
            ..Default::default()
        };
        let payload = serde_json::to_vec(&config)
            .map_err(|error| BusError::refused("a pull request", error))?;
        let reply = format!("{}.{number}", self.inbox);
        let sent = self.bus.tell(subject, Some(reply), payload.into()).await;
        sent.map_err(|error| BusError::unreachable("a pull request", error))
    }

    async fn wait(
        &mut self,
        appetite: Appetite,
        until: Instant,
    ) -> Result<Option<Delivery>, BusError> {
        // All three may be dropped half-way: none of them takes anything before it is ready, and
        // what is taken is dealt with at once.
        tokio::select! {
            biased;
            answer = self.answers.next() => {
                let closed = || BusError::unreachable("a pull", "the connection was closed");
                Ok(self.answered(appetite, answer.ok_or_else(closed)?))
            }
            changed = self.health.changed() => {
                let now = self.health.borrow_and_update().clone();
                if changed.is_ok() && now.connected && now.connections != self.connections {
                    self.connections = now.connections;
                    self.pulls.reconnected();
                }
                Ok(None)
            }
            () = sleep_until(until) => Ok(None),
        }
    }

    fn answered(&mut self, appetite: Appetite, answer: async_nats::Message) -> Option<Delivery> {
        if let Some(status) = status(&answer) {
            self.told(&answer, status);
            return None;
        }
        let subject = answer.subject.clone();
        let Some(delivery) = Delivery::read(&self.bus, answer) else {
            tracing::warn!(%subject, "a message that is no delivery");
            return None;
        };
        let mut queues = self.queues.iter();
        let Some(source) = queues.position(|queue| *queue == delivery.queue) else {
            self.unwanted.push_back(delivery);
            return None;
        };
        let is_its_turn = self.pulls.is_turn_of(source, appetite, Instant::now());
        self.pulls.delivered(source);
        let is_wanted = appetite.of(delivery.queue.priority()) > 0 || appetite.ahead > 0;
        if is_wanted && is_its_turn {
            return Some(delivery);
        }
        self.unwanted.push_back(delivery);
        None
    }

    fn told(&mut self, answer: &async_nats::Message, status: u16) {
        let number = answer
            .subject
            .rsplit('.')
            .next()
            .and_then(|text| text.parse().ok());
        let Some(number) = number else { return };
        match status {
            NOTHING | EXPIRED => self.pulls.empty(number),
            status => {
                let reason = answer.description.as_deref().unwrap_or_default();
                tracing::debug!(status, reason, "a pull request was refused");
                self.pulls.refused(number, Instant::now());
            }
        }
    }
}
