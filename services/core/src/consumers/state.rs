//! What the server says of consumers.

use crate::service::Stores;
use async_nats::jetstream::{ErrorCode, response::Response};
use serde::{Deserialize, de::DeserializeOwned};
use virtbus_bus::BusError;
use virtbus_wire::Queue;

/// Pages read of one list; the server sends 256 consumers per page.
const PAGES_MAX: usize = 1024;

/// The server knows no pause without an end.
const FOR_EVER: &str = "2200-01-01T00:00:00Z";

/// A consumer.
#[derive(Debug, Deserialize)]
pub(crate) struct Consumer {
    /// Its name.
    pub(crate) name: String,
    /// Messages that nobody took yet.
    pub(crate) num_pending: u64,
    /// Messages that somebody has.
    pub(crate) num_ack_pending: u64,
    /// Up to where all is done.
    pub(crate) ack_floor: Floor,
    /// Up to where all was given out once.
    pub(crate) delivered: Floor,
    /// Whether it gives nothing to anybody.
    #[serde(default)]
    pub(crate) paused: bool,
    /// How it's defined.
    pub(crate) config: Config,
}

impl Consumer {
    /// Up to which place in the stream nothing is given to anybody any more: what still lies
    /// there was given out as often as it may be.
    pub(crate) fn given_up(&self) -> u64 {
        match self.num_ack_pending {
            0 => self.delivered.stream_seq,
            _ => self.ack_floor.stream_seq,
        }
    }
}

/// What matters of a consumer's definition.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    /// The subject of its queue; none of a consumer that isn't one of ours.
    #[serde(default)]
    pub(crate) filter_subject: Option<String>,
}

/// A place in a stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Floor {
    /// The sequence.
    pub(crate) stream_seq: u64,
}

#[derive(Debug, Deserialize)]
struct Listed {
    total: usize,
    consumers: Option<Vec<Consumer>>,
}

/// All consumers of a stream; none of a stream that isn't there.
pub(crate) async fn all(stores: &Stores, stream: &str) -> Result<Vec<Consumer>, BusError> {
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let subject = format!("CONSUMER.LIST.{stream}");
        let payload = serde_json::json!({"offset": all.len()});
        let Some(page) = ask::<Listed>(stores, &subject, payload.to_string()).await? else {
            return Ok(all);
        };
        let consumers = page.consumers.unwrap_or_default();
        let is_last = consumers.is_empty();
        all.extend(consumers);
        if is_last || all.len() >= page.total {
            return Ok(all);
        }
    }
    Ok(all)
}

/// The consumer of a queue, if there is one.
pub(crate) async fn one(stores: &Stores, queue: &Queue) -> Result<Option<Consumer>, BusError> {
    let subject = format!("CONSUMER.INFO.{}.{}", queue.stream(), queue.consumer());
    ask(stores, &subject, String::new()).await
}

/// Makes a consumer give nothing to anybody, or go on. `false` when there is no such consumer.
pub(crate) async fn pause(
    stores: &Stores,
    stream: &str,
    consumer: &str,
    paused: bool,
) -> Result<bool, BusError> {
    let subject = format!("CONSUMER.PAUSE.{stream}.{consumer}");
    let payload = match paused {
        true => serde_json::json!({"pause_until": FOR_EVER}),
        false => serde_json::json!({}),
    };
    let answer = ask::<serde_json::Value>(stores, &subject, payload.to_string()).await?;
    if answer.is_some() && !paused {
        wake(stores, stream, consumer).await;
    }
    Ok(answer.is_some())
}

/// Makes the server look at a consumer's requests. It doesn't when a pause ends, only when the next
/// one comes: this one, which no message fits, and which takes none.
async fn wake(stores: &Stores, stream: &str, consumer: &str) {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
    let pull = serde_json::json!({"batch": 1, "no_wait": true, "max_bytes": 1});
    if let Err(error) = stores.bus.request(&subject, pull.to_string()).await {
        // Those who wait ask again by themselves, some seconds later.
        tracing::debug!(%error, consumer, "requests that wait were not looked at");
    }
}

/// Removes a consumer. One that is gone already is fine.
pub(crate) async fn delete(stores: &Stores, stream: &str, consumer: &str) -> Result<(), BusError> {
    let subject = format!("CONSUMER.DELETE.{stream}.{consumer}");
    let answer = ask::<serde_json::Value>(stores, &subject, String::new()).await;
    answer.map(|_| ())
}

/// `None` when there is no such stream or consumer.
async fn ask<T: DeserializeOwned>(
    stores: &Stores,
    call: &str,
    payload: String,
) -> Result<Option<T>, BusError> {
    let refused = |reason: String| BusError::Refused {
        call: call.to_owned(),
        reason,
    };
    let answer = stores
        .bus
        .request(&format!("$JS.API.{call}"), payload)
        .await?;
    let answer: Response<T> =
        serde_json::from_slice(&answer.payload).map_err(|error| refused(error.to_string()))?;
    match answer {
        Response::Ok(answer) => Ok(Some(answer)),
        Response::Err { error } => match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => Ok(None),
            _ => Err(refused(error.to_string())),
        },
    }
}
