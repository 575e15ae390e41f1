//! One message, as a worker has it.

use crate::{client::Bus, error::BusError};
use async_nats::{Message, jetstream::AckKind};
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
    bus: Bus,
    message: Message,
}

/// What the reply subject of a delivery says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    delivered: u64,
    seq: u64,
    published_at: Timestamp,
}

impl Origin {
    /// From `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<nanoseconds>.<pending>`,
    /// or the longer form, which has domain and account before the stream and may have more at
    /// its end.
    fn read(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[2..],
            9.. => &tokens[4..],
            _ => return None,
        };
        let nanos: i64 = numbers[3].parse().ok()?;
        Some(Self {
            delivered: numbers[0].parse().ok()?,
            seq: numbers[1].parse().ok()?,
            published_at: Timestamp::from_millis(nanos / 1_000_000),
        })
    }
}

impl Delivery {
    /// Reads what the server says about a message. None for one that is no delivery.
    pub(crate) fn read(bus: &Bus, message: Message) -> Option<Self> {
        let queue = message.subject.as_str().parse().ok()?;
        let origin = Origin::read(message.reply.as_ref()?)?;
        Some(Self {
            queue,
            seq: origin.seq,
            delivered: origin.delivered,
            published_at: origin.published_at,
            bus: bus.clone(),
            message,
        })
    }

    /// The subject it was published to.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.message.subject.as_str()
    }

    /// What the publisher sent.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.message.headers.as_ref()?;
        headers.get(name).map(|value| value.as_str())
    }

    /// Ends it, and waits until the server knows. The message leaves the queue.
    ///
    /// # Errors
    /// When the server doesn't confirm; it will deliver the message again.
    pub async fn ack(&self) -> Result<(), BusError> {
        let acked = self.bus.ask(self.reply(), None, AckKind::Ack.into()).await;
        match acked {
            Ok(_) => Ok(()),
            Err(error) => Err(BusError::unreachable("an acknowledgement", error)),
        }
    }

    /// Hands it back, to be delivered again after `delay`. Not confirmed: should it get lost,
    /// `ack_wait` does the same.
    pub async fn hand_back(&self, delay: Option<Duration>) {
        if let Err(error) = self.say(AckKind::Nak(delay)).await {
            tracing::debug!(%error, "a message comes again only after its time");
        }
    }

    /// Says that we still work on it, so that `ack_wait` starts anew.
    pub async fn keep(&self) {
        if let Err(error) = self.say(AckKind::Progress).await {
            tracing::debug!(%error, "a message may be delivered to another worker");
        }
    }

    async fn say(&self, what: AckKind) -> Result<(), String> {
        self.bus.tell(self.reply(), None, what.into()).await
    }

    /// Where the server takes words about it.
    fn reply(&self) -> String {
        let reply = self.message.reply.as_ref();
        reply.map_or_else(String::new, ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_reply_say_where_a_message_comes_from() {
        let expected = Origin {
            delivered: 3,
            seq: 812,
            published_at: Timestamp::from_millis(1_795_000_000_123),
        };
        for reply in [
            "$JS.ACK.STORAGE.storage_p_low.3.812.9.1795000000123456789.4",
            "$JS.ACK._.acc.STORAGE.storage_p_low.3.812.9.1795000000123456789.4",
            "$JS.ACK.hub.acc.STORAGE.storage_p_low.3.812.9.1795000000123456789.4.r4nd0m",
        ] {
            assert_eq!(Origin::read(reply), Some(expected), "{reply}");
        }
        for reply in ["_INBOX.x", "$JS.ACK.STORAGE.c.1.2", "$JS.ACK.S.c.x.2.3.4.5"] {
            assert_eq!(Origin::read(reply), None, "{reply}");
        }
    }
}
