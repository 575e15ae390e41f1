//! Typed key-value buckets: every write is a compare-and-set, every read says which revision.
//!
//! The revision of a record is the sequence of the bucket's stream, so revisions of different
//! records are ordered too.
//!
//! A write whose acknowledgement was lost is looked up before it's repeated. If the record is the
//! one that was written, it was taken. If it's another one, the answer is `Conflict`, and then it
//! isn't known whether ours was there in between: somebody may have seen it and built on it. So
//! whoever gets `Conflict` reads again and decides by what is there, and never concludes that its
//! own write was without effect. Those who do: a claim finds its own name in the record, and is
//! claimed anew; a lock is taken and released by what its record says, and who has to be woken is
//! woken again; a result in the catalogue counts if its intent is still the newest.

use crate::{
    client::Bus,
    error::{BusError, WriteError},
    transport::StoreError,
};
use async_nats::{
    HeaderMap,
    jetstream::{ErrorCode, message::StreamMessage, response::Response, stream::RawMessage},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{marker::PhantomData, time::Duration};
use virtbus_wire::Timestamp;

/// How often a write whose acknowledgement was lost is looked up and repeated.
const WRITES_MAX: u32 = 4;
/// How long the mark of a removed record stays.
const MARKER_TTL: Duration = Duration::from_secs(60);

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const SEQUENCE: &str = "Nats-Sequence";
const TIME_STAMP: &str = "Nats-Time-Stamp";
/// For how many seconds a record stays: `30s`.
pub(crate) const TTL: &str = "Nats-TTL";
const OPERATION: &str = "KV-Operation";
const MARKER: &str = "Nats-Marker-Reason";

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<T> {
    /// The record.
    pub value: T,
    /// Its revision, to write it back with.
    pub revision: u64,
    /// When the server took it.
    pub written_at: Timestamp,
}

/// A key, whatever is there: the revision of a removed record's mark counts too.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot<T> {
    /// The record, if there is one.
    pub value: Option<T>,
    /// The revision to write with: 0 where nothing ever was.
    pub revision: u64,
}

/// A bucket of records of one type.
#[derive(Debug)]
pub struct Bucket<T> {
    bus: Bus,
    name: &'static str,
    record: PhantomData<fn() -> T>,
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self {
            bus: self.bus.clone(),
            name: self.name,
            record: PhantomData,
        }
    }
}

/// The last message of a key, a removal mark included.
struct Stored {
    payload: Bytes,
    revision: u64,
    written_at: Timestamp,
    is_marker: bool,
}

impl<T: Serialize + DeserializeOwned> Bucket<T> {
    /// The bucket of this name. Nothing is asked of the server yet.
    #[must_use]
    pub fn new(bus: &Bus, name: &'static str) -> Self {
        Self {
            bus: bus.clone(),
            name,
            record: PhantomData,
        }
    }

    /// The bucket's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Reads a record from any replica: it may be an older one.
    ///
    /// # Errors
    /// When the server doesn't answer, or the record can't be read.
    pub async fn get(&self, key: &str) -> Result<Option<Entry<T>>, BusError> {
        let stored = self.read_any(key).await?;
        self.decode(key, stored)
    }

    /// Reads a record from the stream's leader: never an older one.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub async fn get_latest(&self, key: &str) -> Result<Option<Entry<T>>, BusError> {
        let stored = self.read_leader(key).await?;
        self.decode(key, stored)
    }

    /// Reads a key to write it next, whether a record is there or not.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub async fn slot(&self, key: &str) -> Result<Slot<T>, BusError> {
        let stored = self.read_leader(key).await?;
        let revision = stored.as_ref().map_or(0, |stored| stored.revision);
        let value = self.decode(key, stored)?.map(|entry| entry.value);
        Ok(Slot { value, revision })
    }

    /// Makes a record that isn't there, and returns its revision.
    ///
    /// # Errors
    /// `Conflict` when there is one.
    pub async fn create(&self, key: &str, value: &T) -> Result<u64, WriteError> {
        self.create_with(key, value, HeaderMap::new()).await
    }

    /// As [`Bucket::create`], and the record goes by itself after `keep`.
    ///
    /// # Errors
    /// As [`Bucket::create`].
    pub async fn create_for(
        &self,
        key: &str,
        value: &T,
        keep: Duration,
    ) -> Result<u64, WriteError> {
        self.create_with(key, value, ttl_header(keep)).await
    }

    async fn create_with(
        &self,
        key: &str,
        value: &T,
        headers: HeaderMap,
    ) -> Result<u64, WriteError> {
        let payload = self.encode(key, value)?;
        match self.write(key, payload.clone(), 0, headers.clone()).await {
            Err(WriteError::Conflict(key)) => {
                // The mark of a removed record also has a revision.
                match self.read_leader(&key).await? {
                    Some(mark) if mark.is_marker => {
                        self.write(&key, payload, mark.revision, headers).await
                    }
                    _ => Err(WriteError::Conflict(key)),
                }
            }
            other => other,
        }
    }

    /// Replaces the record of this revision, and returns the new one.
    ///
    /// # Errors
    /// `Conflict` when the record has another revision by now.
    pub async fn update(&self, key: &str, value: &T, revision: u64) -> Result<u64, WriteError> {
        let payload = self.encode(key, value)?;
        self.write(key, payload, revision, HeaderMap::new()).await
    }

    /// As [`Bucket::update`], and the record goes by itself after `keep`.
    ///
    /// # Errors
    /// As [`Bucket::update`].
    pub async fn update_for(
        &self,
        key: &str,
        value: &T,
        revision: u64,
        keep: Duration,
    ) -> Result<u64, WriteError> {
        let payload = self.encode(key, value)?;
        self.write(key, payload, revision, ttl_header(keep)).await
    }

    /// Makes a record, or replaces whatever is there.
    ///
    /// # Errors
    /// When the server doesn't take it.
    pub async fn put(&self, key: &str, value: &T) -> Result<u64, BusError> {
        let payload = self.encode(key, value)?;
        let sent = self.send(key, HeaderMap::new(), payload).await;
        sent.map_err(|failed| failed.into_bus_error(&self.subject(key)))
    }

    /// Removes the record of this revision.
    ///
    /// # Errors
    /// `Conflict` when the record has another revision by now.
    pub async fn remove(&self, key: &str, revision: u64) -> Result<(), WriteError> {
        let mut headers = ttl_header(MARKER_TTL);
        headers.insert(OPERATION, "DEL");
        self.write(key, Bytes::new(), revision, headers)
            .await
            .map(|_| ())
    }

    /// The connection it's read and written through.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(crate) fn read(&self, key: &str, payload: &[u8]) -> Result<T, BusError> {
        serde_json::from_slice(payload).map_err(|error| self.corrupt(key, error))
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn encode(&self, key: &str, value: &T) -> Result<Bytes, BusError> {
        let corrupt = |error: serde_json::Error| self.corrupt(key, error);
        serde_json::to_vec(value).map(Bytes::from).map_err(corrupt)
    }

    fn decode(&self, key: &str, stored: Option<Stored>) -> Result<Option<Entry<T>>, BusError> {
        let Some(stored) = stored.filter(|stored| !stored.is_marker) else {
            return Ok(None);
        };
        Ok(Some(Entry {
            value: self.read(key, &stored.payload)?,
            revision: stored.revision,
            written_at: stored.written_at,
        }))
    }

    fn corrupt(&self, key: &str, reason: impl ToString) -> BusError {
        let bucket = self.name.to_owned();
        BusError::Corrupt {
            bucket,
            key: key.to_owned(),
            reason: reason.to_string(),
        }
    }

    async fn write(
        &self,
        key: &str,
        payload: Bytes,
        revision: u64,
        mut headers: HeaderMap,
    ) -> Result<u64, WriteError> {
        headers.insert(EXPECTED, revision.to_string().as_str());
        let mut last = None;
        for _ in 0..WRITES_MAX {
            let failed = match self.send(key, headers.clone(), payload.clone()).await {
                Ok(revision) => return Ok(revision),
                Err(failed) => failed,
            };
            let in_doubt = last.is_some() || !matches!(failed, SendError::Conflict);
            if !in_doubt {
                return Err(WriteError::Conflict(key.to_owned()));
            }
            if matches!(failed, SendError::Refused(_) | SendError::TooLarge(_)) {
                return Err(failed.into_bus_error(&self.subject(key)).into());
            }
            last = Some(failed);
            // The acknowledgement was lost: is the record there the one we wrote?
            match self.read_leader(key).await {
                Ok(Some(stored)) if stored.revision > revision => {
                    let ours = stored.payload == payload;
                    let conflict = WriteError::Conflict(key.to_owned());
                    return if ours {
                        Ok(stored.revision)
                    } else {
                        Err(conflict)
                    };
                }
                Ok(_) | Err(_) => {}
            }
        }
        let failed = last.unwrap_or(SendError::Conflict);
        Err(failed.into_bus_error(&self.subject(key)).into())
    }

    async fn send(&self, key: &str, headers: HeaderMap, payload: Bytes) -> Result<u64, SendError> {
        let stored = self.bus.store(self.subject(key), headers, payload).await;
        stored.map_err(|error| match error {
            StoreError::Conflict => SendError::Conflict,
            StoreError::Refused(reason) => SendError::Refused(reason),
            StoreError::Unsendable(reason) => SendError::TooLarge(reason),
            StoreError::InDoubt(reason) => SendError::InDoubt(reason),
        })
    }

    async fn read_any(&self, key: &str) -> Result<Option<Stored>, BusError> {
        let subject = format!("$JS.API.DIRECT.GET.KV_{0}.$KV.{0}.{key}", self.name);
        let answer = self.bus.request(&subject, Bytes::new()).await?;
        if answer.status.is_some_and(|status| status.as_u16() == 404) {
            return Ok(None);
        }
        let headers = answer.headers.unwrap_or_default();
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let missing = || self.corrupt(key, "the server's answer has no sequence");
        let revision = text(SEQUENCE)
            .and_then(|value| value.parse().ok())
            .ok_or_else(missing)?;
        let written_at = text(TIME_STAMP).and_then(|value| value.parse().ok());
        Ok(Some(Stored {
            payload: answer.payload,
            revision,
            written_at: written_at.ok_or_else(missing)?,
            is_marker: is_marker(&headers),
        }))
    }

    async fn read_leader(&self, key: &str) -> Result<Option<Stored>, BusError> {
        #[derive(serde::Deserialize)]
        struct Found {
            message: RawMessage,
        }
        let call = format!("a read of {key} from KV_{}", self.name);
        let subject = format!("$JS.API.STREAM.MSG.GET.KV_{}", self.name);
        let wanted = serde_json::json!({"last_by_subj": self.subject(key)}).to_string();
        let unreachable = |reason: &dyn ToString| BusError::unreachable(&call, reason.to_string());
        let answer = self.bus.ask(subject, None, wanted.into()).await;
        let answer = answer.map_err(|error| unreachable(&error))?;
        let found: Response<Found> =
            serde_json::from_slice(&answer.payload).map_err(|error| unreachable(&error))?;
        let message = match found {
            Response::Ok(found) => found.message,
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                return Ok(None);
            }
            Response::Err { error } => return Err(unreachable(&error)),
        };
        let message = StreamMessage::try_from(message).map_err(|error| unreachable(&error))?;
        Ok(Some(Stored {
            revision: message.sequence,
            written_at: timestamp(message.time),
            is_marker: is_marker(&message.headers),
            payload: message.payload,
        }))
    }
}

/// Why a publication wasn't acknowledged.
enum SendError {
    /// Another revision is there.
    Conflict,
    /// It may have been stored.
    InDoubt(String),
    /// It wasn't stored and won't be, as the server is now.
    Refused(String),
    /// It wasn't stored and never will be.
    TooLarge(String),
}

impl SendError {
    fn into_bus_error(self, subject: &str) -> BusError {
        let call = format!("a write of {subject}");
        match self {
            Self::Conflict => BusError::refused(call, "another revision is there"),
            Self::InDoubt(reason) => BusError::unreachable(call, reason),
            Self::Refused(reason) => BusError::refused(call, reason),
            Self::TooLarge(reason) => BusError::TooLarge { call, reason },
        }
    }
}

fn ttl_header(keep: Duration) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TTL, format!("{}s", keep.as_secs().max(1)).as_str());
    headers
}

pub(crate) fn is_marker(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some() || headers.get(MARKER).is_some()
}

/// The server's time as ours.
pub(crate) fn timestamp(time: async_nats::datetime::DateTime) -> Timestamp {
    let millis = time.unix_timestamp_nanos() / 1_000_000;
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}
