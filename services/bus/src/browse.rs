//! Reading what lies in a stream or a bucket, in pages, without a consumer.
//!
//! A page is one request to the server's batched direct get. Any replica may answer it: what is
//! read may be a little old, and whoever acts on it does so by compare-and-set.

use crate::{
    bucket::{Bucket, Entry, TTL, is_marker},
    client::{Bus, REQUEST_TIMEOUT},
    error::BusError,
    transport::status,
};
use async_nats::{
    HeaderMap, Message,
    jetstream::{ErrorCode, response::Response},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;
use virtbus_wire::{
    Timestamp,
    protocol::{
        arrival::{Arrival, Headers, MSG_ID_HEADER, TRACE_HEADER},
        delivery::{GENERATION_HEADER, JOB_HEADER},
    },
};

/// The most messages of one page; the server allows no more keys at once either.
pub const PAGE_MAX: usize = 1024;
/// The most bytes of one page: it's held in memory whole.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// A message as it lies in a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub seq: u64,
    /// When the server took it.
    pub time: Timestamp,
    /// Its headers, with those the server adds.
    pub headers: HeaderMap,
    /// Its content.
    pub payload: Bytes,
}

impl Stored {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The message as what came to a stream of jobs. `None` for one that isn't in such a stream.
    #[must_use]
    pub fn arrival(&self) -> Option<Arrival<'_>> {
        Some(Arrival {
            subject: &self.subject,
            payload: &self.payload,
            headers: Headers {
                msg_id: self.header(MSG_ID_HEADER),
                job: self.header(JOB_HEADER),
                generation: self.header(GENERATION_HEADER),
                traceparent: self.header(TRACE_HEADER),
            },
            stream: self.header("Nats-Stream")?,
            seq: self.seq,
            time: self.time,
        })
    }
}

/// Some of what was asked for, by sequence.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The messages or records.
    pub items: Vec<T>,
    /// The sequence to go on from; none at the end.
    pub next: Option<u64>,
}

/// What is now under a key of a bucket.
#[derive(Debug)]
pub struct Row<T> {
    /// The key.
    pub key: String,
    /// The revision.
    pub revision: u64,
    /// How long it stays from its writing on; none = until it's written again.
    pub ttl: Option<Duration>,
    /// The record; `None` for the mark of a removed one, an error for one that can't be read.
    pub entry: Result<Option<Entry<T>>, BusError>,
}

/// The answer to one request.
struct Batch {
    items: Vec<Stored>,
    /// How many more match after these.
    pending: u64,
}

impl Batch {
    fn into_page(self) -> Page<Stored> {
        let last = self.items.last().filter(|_| self.pending > 0);
        Page {
            next: last.map(|last| last.seq + 1),
            items: self.items,
        }
    }
}

impl Bus {
    /// The messages of `stream` whose subject matches `filter`, from sequence `from` on.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn browse(
        &self,
        stream: &str,
        filter: &str,
        from: u64,
    ) -> Result<Page<Stored>, BusError> {
        let wanted = json!({
            "seq": from.max(1),
            "batch": PAGE_MAX,
            "max_bytes": PAGE_BYTES_MAX,
            "next_by_subj": filter,
        });
        Ok(self.direct_get(stream, wanted).await?.into_page())
    }

    /// The first page of the messages of `stream` whose subject matches `filter` that the server
    /// took at `since` or later.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn browse_since(
        &self,
        stream: &str,
        filter: &str,
        since: Timestamp,
    ) -> Result<Page<Stored>, BusError> {
        let wanted = json!({
            "start_time": since,
            "batch": PAGE_MAX,
            "max_bytes": PAGE_BYTES_MAX,
            "next_by_subj": filter,
        });
        Ok(self.direct_get(stream, wanted).await?.into_page())
    }

    /// The message with this sequence.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn message(&self, stream: &str, seq: u64) -> Result<Option<Stored>, BusError> {
        let found = self.first_message(stream, ">", seq).await?;
        Ok(found.filter(|message| message.seq == seq))
    }

    /// The first message of `stream` on this subject, from sequence `from` on.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn first_message(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<Stored>, BusError> {
        let wanted = json!({"seq": from.max(1), "batch": 1, "next_by_subj": subject});
        let mut items = self.direct_get(stream, wanted).await?.items;
        Ok(items.pop())
    }

    /// How many messages of `stream` on this subject have this sequence or a later one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn count_from(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<u64, BusError> {
        let wanted = json!({"seq": from.max(1), "batch": 1, "next_by_subj": subject});
        let batch = self.direct_get(stream, wanted).await?;
        let shown = u64::try_from(batch.items.len()).unwrap_or(u64::MAX);
        Ok(shown.saturating_add(batch.pending))
    }

    /// Deletes the message with this sequence. One that is gone already is fine.
    ///
    /// # Errors
    /// When the server doesn't answer, or refuses.
    pub async fn delete_message(&self, stream: &str, seq: u64) -> Result<(), BusError> {
        let subject = format!("$JS.API.STREAM.MSG.DELETE.{stream}");
        // Without it the server overwrites the message's place on its disk first, which takes fifty
        // times as long.
        let wanted = json!({"seq": seq, "no_erase": true}).to_string();
        let call = || format!("the deletion of message {seq} of {stream}");
        let unreachable = |error: &dyn ToString| BusError::unreachable(call(), error.to_string());
        let answer = self.ask(subject, None, wanted.into()).await;
        let answer = answer.map_err(|error| unreachable(&error))?;
        match serde_json::from_slice::<Response<Value>>(&answer.payload) {
            Ok(Response::Ok(_)) => Ok(()),
            Ok(Response::Err { error }) if is_absent(&error) => Ok(()),
            Ok(Response::Err { error }) => Err(unreachable(&error)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn direct_get(&self, stream: &str, wanted: Value) -> Result<Batch, BusError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let failed = |reason: &dyn ToString| BusError::unreachable(&subject, reason.to_string());
        let inbox = self.new_inbox();
        let answers = self.subscribe(inbox.clone()).await;
        let mut answers = answers.map_err(|error| failed(&error))?;
        let wanted = Bytes::from(wanted.to_string());
        let asked = self.tell(subject.clone(), Some(inbox), wanted).await;
        asked.map_err(|error| failed(&error))?;
        let mut items: Vec<Stored> = Vec::new();
        while items.len() <= PAGE_MAX {
            let answer = timeout(REQUEST_TIMEOUT, answers.next()).await;
            let answer = answer.map_err(|_| failed(&"no answer in time"))?;
            let answer = answer.ok_or_else(|| failed(&"the connection was closed"))?;
            let whole = follows(&answer, items.last());
            match status(&answer) {
                // What came before a reconnect is lost, and the rest looks like an answer.
                None | Some(204) if !whole => return Err(failed(&"a part of the answer was lost")),
                None => items.push(stored(answer).ok_or_else(|| failed(&"no sequence"))?),
                Some(204) => {
                    let pending = header(&answer.headers, "Nats-Num-Pending");
                    let pending = pending.and_then(|count| count.parse().ok());
                    let pending = pending.unwrap_or(0);
                    return Ok(Batch { items, pending });
                }
                Some(404) => return Ok(Batch { items, pending: 0 }),
                Some(status) => {
                    let reason = format!("{status} {}", answer.description.unwrap_or_default());
                    return Err(BusError::refused(subject, reason));
                }
            }
        }
        Err(failed(&"the answer has no end"))
    }
}

impl<T: Serialize + DeserializeOwned> Bucket<T> {
    /// The records from revision `from` on, and the marks of removed ones.
    ///
    /// # Errors
    /// When the server doesn't answer. A record that can't be read is an error of its row only.
    pub async fn page(&self, from: u64) -> Result<Page<Row<T>>, BusError> {
        let (stream, filter) = (self.stream(), format!("$KV.{}.>", self.name()));
        let page = self.bus().browse(&stream, &filter, from).await?;
        let items = page.items.into_iter().map(|stored| self.row(stored));
        Ok(Page {
            items: items.collect(),
            next: page.next,
        })
    }

    /// Gives `each` the records from revision `from` on, and the marks of removed ones, in the
    /// order of their revisions; returns the revision to read on from.
    ///
    /// # Errors
    /// When the server doesn't answer. What was given until then was right.
    pub async fn each_from(
        &self,
        from: u64,
        mut each: impl FnMut(Row<T>),
    ) -> Result<u64, BusError> {
        let (mut unread, mut next) = (from, Some(from.max(1)));
        while let Some(revision) = next {
            let page = self.page(revision).await?;
            for row in page.items {
                unread = unread.max(row.revision + 1);
                each(row);
            }
            next = page.next;
        }
        Ok(unread)
    }

    /// All records as they are now, with their keys. Keys that begin with `_` are of another kind;
    /// records that can't be read are logged and left out. Only for buckets that are small by nature: pools, hosts, workers, queues.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn all(&self) -> Result<Vec<(String, Entry<T>)>, BusError> {
        let mut all = Vec::new();
        let each = |Row { key, entry, .. }| match entry {
            _ if key.starts_with('_') => {}
            Ok(Some(entry)) => all.push((key, entry)),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a record is left out"),
        };
        self.each_from(1, each).await?;
        Ok(all)
    }

    /// The records of these keys, as many as there are; at most [`PAGE_MAX`] keys.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn of_keys<K: AsRef<str>>(&self, keys: &[K]) -> Result<Vec<Row<T>>, BusError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let subject = |key: &K| format!("$KV.{}.{}", self.name(), key.as_ref());
        let subjects: Vec<String> = keys.iter().map(subject).collect();
        let wanted = json!({"multi_last": subjects, "batch": PAGE_MAX});
        let page = self.bus().direct_get(&self.stream(), wanted).await?;
        Ok(page
            .items
            .into_iter()
            .map(|stored| self.row(stored))
            .collect())
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.name())
    }

    /// The row that a stored message, or an event with its headers, stands for.
    #[must_use]
    pub fn row(&self, stored: Stored) -> Row<T> {
        let prefix = format!("$KV.{}.", self.name());
        let key = stored
            .subject
            .strip_prefix(&prefix)
            .unwrap_or(&stored.subject);
        let ttl = stored.header(TTL).and_then(|text| text.strip_suffix('s'));
        let ttl = ttl.and_then(|seconds| seconds.parse().ok());
        let entry = if is_marker(&stored.headers) {
            Ok(None)
        } else {
            self.read(key, &stored.payload).map(|value| {
                Some(Entry {
                    value,
                    revision: stored.seq,
                    written_at: stored.time,
                })
            })
        };
        Row {
            key: key.to_owned(),
            revision: stored.seq,
            ttl: ttl.map(Duration::from_secs),
            entry,
        }
    }
}

/// Whether nothing is missing between the last message of a batch that came and this one, or the
/// batch's end: the server names the sequence that it sent before, 0 at first.
fn follows(answer: &Message, last: Option<&Stored>) -> bool {
    let before = header(&answer.headers, "Nats-Last-Sequence").and_then(|seq| seq.parse().ok());
    before == Some(last.map_or(0, |last| last.seq))
}

/// A message of a batch, or one that a stream republished.
///
/// `None` when it hasn't the headers of one.
#[must_use]
pub fn stored(message: Message) -> Option<Stored> {
    let headers = message.headers.unwrap_or_default();
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let seq = text("Nats-Sequence")?.parse().ok()?;
    let time = text("Nats-Time-Stamp")?.parse().ok()?;
    let subject = text("Nats-Subject").unwrap_or_else(|| message.subject.to_string());
    Some(Stored {
        subject,
        seq,
        time,
        headers,
        payload: message.payload,
    })
}

/// Whether a deletion was refused since there is nothing to delete.
fn is_absent(error: &async_nats::jetstream::Error) -> bool {
    let code = error.error_code();
    let failed = code == ErrorCode::STREAM_MESSAGE_DELETE_FAILED;
    code == ErrorCode::NO_MESSAGE_FOUND
        || code == ErrorCode::SEQUENCE_NOT_FOUND
        || (failed && error.to_string().contains("no message"))
}

fn header(headers: &Option<HeaderMap>, name: &str) -> Option<String> {
    let value = headers.as_ref()?.get(name)?;
    Some(value.as_str().to_owned())
}
