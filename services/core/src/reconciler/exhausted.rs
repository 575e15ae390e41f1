//! Messages whose deliveries ran out: the server says so in a stream, once. Where that word was
//! lost the sweep finds them, by what the consumers say of themselves.

use super::look;
use crate::{
    consumers::state,
    registrar::lying,
    service::{Stores, per_job},
};
use serde::Deserialize;
use std::collections::HashMap;
use virtbus_bus::BusError;

/// The stream of the server's notices of messages at `max_deliver`.
const ADVISORIES: &str = "ADVISORIES";

/// A notice that a message's deliveries ran out.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream: String,
    stream_seq: u64,
}

/// How far the notices were read. At start all are read again: seeing to one twice is harmless.
#[derive(Debug, Default)]
pub(super) struct Notices {
    read: u64,
}

impl Notices {
    /// Sees to the messages of all new notices.
    pub(super) async fn see_to_new(&mut self, stores: &Stores) -> Result<(), BusError> {
        let mut from = Some(self.read + 1);
        while let Some(seq) = from {
            let page = stores.bus.browse(ADVISORIES, ">", seq).await?;
            for stored in &page.items {
                if let Ok(advisory) = serde_json::from_slice::<Advisory>(&stored.payload) {
                    per_job(see_to(stores, &advisory).await)?;
                }
                self.read = stored.seq;
            }
            from = page.next;
        }
        Ok(())
    }
}

/// Up to which place in a stream each queue's consumer gives nothing to anybody any more. To be
/// read before the stream is: what is done is gone from it by then.
pub(super) async fn given_up(
    stores: &Stores,
    stream: &str,
) -> Result<HashMap<String, u64>, BusError> {
    let consumers = state::all(stores, stream).await?.into_iter();
    let queues = consumers.filter_map(|consumer| {
        let upto = consumer.given_up();
        Some((consumer.config.filter_subject?, upto))
    });
    Ok(queues.collect())
}

async fn see_to(stores: &Stores, advisory: &Advisory) -> Result<(), BusError> {
    let Some(stored) = stores
        .bus
        .message(&advisory.stream, advisory.stream_seq)
        .await?
    else {
        return Ok(());
    };
    match lying(&stored, stores.bus.now()) {
        Some(lying) => look::see_to_exhausted(stores, lying).await,
        None => Ok(()),
    }
}
