//! A simulated process's connection.

use crate::{
    broker::{In, stream::Ms},
    chance::{hash, mix},
    net::{BEGIN, Net, from_map, inbox_of},
    node::Gate,
};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use virtbus_bus::{
    Health, Transport,
    client::REQUEST_TIMEOUT,
    transport::{Passage, RequestFailed},
};
use virtbus_wire::{BootId, Timestamp};

/// One start of a process, connected.
#[derive(Debug)]
pub struct Connection {
    net: Arc<Net>,
    link: usize,
    gate: Arc<Gate>,
    /// How far its clock is ahead of the server's.
    skew: Ms,
    count: AtomicU64,
    seed: u64,
}

impl Connection {
    /// Connects a new start of a process.
    pub fn new(net: &Arc<Net>, skew: Ms, seed: u64) -> Arc<Self> {
        let gate = Arc::new(Gate::default());
        let link = net.join(Arc::clone(&gate));
        Arc::new(Self {
            net: Arc::clone(net),
            link,
            gate,
            skew,
            count: AtomicU64::new(0),
            seed,
        })
    }

    /// Its number in the network.
    #[must_use]
    pub fn link(&self) -> usize {
        self.link
    }

    /// Where it can be held.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    fn count(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }
}

impl Transport for Connection {
    fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<Message, RequestFailed>> {
        let message = In {
            subject,
            reply: Some(format!("{}{}", inbox_of(self.link), self.count())),
            headers: headers.as_ref().map(from_map).unwrap_or_default(),
            payload,
            behind: 0,
        };
        let answer = self.net.request(self.link, message);
        Box::pin(async move {
            match timeout(REQUEST_TIMEOUT, answer).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(RequestFailed::InDoubt("the connection is gone".to_owned())),
                Err(_) => Err(RequestFailed::InDoubt("no answer in time".to_owned())),
            }
        })
    }

    fn publish(
        &self,
        subject: String,
        reply: Option<String>,
        payload: Bytes,
    ) -> Result<(), String> {
        let message = In {
            subject,
            reply,
            headers: Vec::new(),
            payload,
            behind: 0,
        };
        self.net.send(self.link, message);
        Ok(())
    }

    fn subscribe(&self, subject: String) -> Result<mpsc::UnboundedReceiver<Message>, String> {
        Ok(self.net.listen(self.link, subject))
    }

    fn inbox(&self) -> String {
        format!("{}{}", inbox_of(self.link), self.count())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.net.health(self.link)
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.net.now() + self.skew)
    }

    fn boot_time(&self) -> Duration {
        let millis = self.net.now() - BEGIN;
        Duration::from_millis(u64::try_from(millis).unwrap_or(0) + 1_000_000)
    }

    fn random(&self) -> f64 {
        let bits = mix(hash(self.seed, &self.now().as_millis().to_le_bytes()));
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let number = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        number
    }

    fn new_boot(&self) -> BootId {
        let low = mix(hash(self.seed, &self.count().to_le_bytes()));
        BootId::from_u128(u128::from(self.seed) << 64 | u128::from(low))
    }

    fn passage(&self, task: &Context<'_>) -> Passage {
        self.gate.passage(task)
    }
}
