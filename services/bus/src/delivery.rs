//! One message, as a worker has it.

use crate::{bucket::timestamp, client::Bus, error::BusError};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use std::time::Duration;
use virtbus_wire::{Queue, Timestamp};

/// A message of a queue, ours until it's acknowledged or handed back or `ack_wait` is over.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: Queue,
    /// Its sequence in the stream.
    pub seq: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
    /// When the server took it from its publisher.
    pub published_at: Timestamp,
    message: jetstream::Message,
}

impl Delivery {
    /// Reads what the server says about a message. None for one that is no delivery.
    pub(crate) fn read(bus: &Bus, message: async_nats::Message) -> Option<Self> {
        let queue = message.subject.as_str().parse().ok()?;
        let message = jetstream::Message {
            message,
            context: bus.jetstream().clone(),
        };
        let info = message.info().ok()?;
        let (seq, published_at) = (info.stream_sequence, timestamp(info.published));
        let delivered = u64::try_from(info.delivered).unwrap_or(u64::MAX);
        Some(Self {
            queue,
            seq,
            delivered,
            published_at,
            message,
        })
    }

    /// The subject it was published to.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.message.message.subject.as_str()
    }

    /// What the publisher sent.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.message.message.payload
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.message.message.headers.as_ref()?;
        headers.get(name).map(|value| value.as_str())
    }

    /// Ends it, and waits until the server knows. The message leaves the queue.
    ///
    /// # Errors
    /// When the server doesn't confirm; it will deliver the message again.
    pub async fn ack(&self) -> Result<(), BusError> {
        let acked = self.message.double_ack().await;
        acked.map_err(|error| BusError::unreachable("an acknowledgement", error))
    }

    /// Hands it back, to be delivered again after `delay`. Not confirmed: should it get lost,
    /// `ack_wait` does the same.
    pub async fn hand_back(&self, delay: Option<Duration>) {
        if let Err(error) = self.message.ack_with(AckKind::Nak(delay)).await {
            tracing::debug!(%error, "a message comes again only after its time");
        }
    }

    /// Says that we still work on it, so that `ack_wait` starts anew.
    pub async fn keep(&self) {
        if let Err(error) = self.message.ack_with(AckKind::Progress).await {
            tracing::debug!(%error, "a message may be delivered to another worker");
        }
    }
}
