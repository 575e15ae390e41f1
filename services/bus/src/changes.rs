//! What happened in a bucket, in order and without a gap.
//!
//! A bucket's changes are published as they happen, but at most once: one that is lost shows as a
//! gap, since revisions run without gaps over the bucket, or as an end that lies behind the
//! bucket's. [`read_after`] reads what is missing: the newest state of each record that changed.

use crate::{
    browse::{Stored, stored},
    bucket::timestamp,
    client::Bus,
    error::BusError,
    transport::Subscription,
};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use virtbus_wire::Timestamp;

/// Records that one reading takes from the leader, one by one, when the replica that answered
/// the pages is behind it.
const BEHIND_MAX: usize = 64;

const PROGRESS: &str = "events.progress.";

/// A record as it was written, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The record's key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// The record; empty when it's gone.
    pub payload: Bytes,
    /// When the server took it.
    pub written_at: Timestamp,
}

/// A bucket as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketState {
    /// Which bucket of this name it is: its creation time, in milliseconds.
    pub epoch: String,
    /// The newest revision.
    pub last: u64,
}

/// The changes of a bucket from now on.
#[derive(Debug)]
pub struct Changes {
    subscription: Subscription,
    bucket: String,
}

impl Changes {
    /// Subscribes to what a bucket publishes of itself.
    ///
    /// # Errors
    /// When the subscription can't be sent.
    pub async fn subscribe(bus: &Bus, bucket: &str) -> Result<Self, BusError> {
        let subject = format!("events.{bucket}.*");
        let subscription = subscribe(bus, &subject).await?;
        // Whoever reads the bucket after this misses nothing in between.
        let flushed = bus.flush().await;
        flushed.map_err(|error| BusError::unreachable(subject, error))?;
        Ok(Self {
            subscription,
            bucket: bucket.to_owned(),
        })
    }

    /// The next change; none when the connection was closed for good.
    ///
    /// Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let message = self.subscription.next().await?;
            let change = stored(message).and_then(|stored| change(stored, &self.bucket));
            if change.is_some() {
                return change;
            }
            tracing::debug!(bucket = self.bucket, "a message that is no change");
        }
    }
}

/// How far jobs come, as it happens; what is lost is made good by the next message.
#[derive(Debug)]
pub struct ProgressEvents(Subscription);

impl ProgressEvents {
    /// Subscribes to all jobs.
    ///
    /// # Errors
    /// When the subscription can't be sent.
    pub async fn subscribe(bus: &Bus) -> Result<Self, BusError> {
        subscribe(bus, &format!("{PROGRESS}*")).await.map(Self)
    }

    /// The next message: the job and what is said of it; none when the connection was closed.
    ///
    /// Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Option<(String, Bytes)> {
        let message = self.0.next().await?;
        let job = message.subject.strip_prefix(PROGRESS).unwrap_or_default();
        Some((job.to_owned(), message.payload))
    }
}

async fn subscribe(bus: &Bus, subject: &str) -> Result<Subscription, BusError> {
    let subscribed = bus.subscribe(subject.to_owned()).await;
    subscribed.map_err(|error| BusError::unreachable(subject, error))
}

/// The bucket's name of itself and its newest revision, from the leader.
///
/// # Errors
/// When the server doesn't answer, or there is no such bucket.
pub async fn state(bus: &Bus, bucket: &str) -> Result<BucketState, BusError> {
    let call = format!("a look at bucket {bucket}");
    let stream = bus.jetstream().get_stream(format!("KV_{bucket}")).await;
    let stream = stream.map_err(|error| BusError::unreachable(call, error))?;
    let info = stream.cached_info();
    Ok(BucketState {
        epoch: (info.created.unix_timestamp_nanos() / 1_000_000).to_string(),
        last: info.state.last_sequence,
    })
}

/// Gives `each` the newest state of every record that changed after the revision `after`, in the
/// order of revisions, at least up to `through`, and returns the revision that has been reached.
///
/// # Errors
/// When the server doesn't answer. What was given until then was right.
pub async fn read_after(
    bus: &Bus,
    bucket: &str,
    after: u64,
    through: u64,
    mut each: impl FnMut(Change),
) -> Result<u64, BusError> {
    let mut last = after;
    while last < through {
        // Any replica answers pages, so the end of the last one may lie behind the leader's.
        let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.>"));
        let mut from = Some(last + 1);
        while let Some(seq) = from {
            let page = bus.browse(&stream, &filter, seq).await?;
            for change in page
                .items
                .into_iter()
                .filter_map(|stored| change(stored, bucket))
            {
                last = last.max(change.revision);
                each(change);
            }
            from = page.next;
        }
        let mut was_behind = 0;
        while last < through && was_behind < BEHIND_MAX {
            let Some(change) = read_next(bus, bucket, last + 1).await? else {
                // The leader has nothing after `last`: newer revisions are gone by now.
                return Ok(through);
            };
            last = change.revision;
            each(change);
            was_behind += 1;
        }
    }
    Ok(last)
}

/// The first record at or after a revision, from the leader.
async fn read_next(bus: &Bus, bucket: &str, from: u64) -> Result<Option<Change>, BusError> {
    let call = format!("a read of bucket {bucket}");
    let stream = bus
        .jetstream()
        .get_stream_no_info(format!("KV_{bucket}"))
        .await
        .map_err(|error| BusError::unreachable(&call, error))?;
    let prefix = format!("$KV.{bucket}.");
    let found = stream
        .get_first_raw_message_by_subject(format!("{prefix}>"), from)
        .await;
    match found {
        Ok(message) => Ok(message.subject.strip_prefix(&prefix).map(|key| Change {
            key: key.to_owned(),
            revision: message.sequence,
            payload: message.payload.clone(),
            written_at: timestamp(message.time),
        })),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::InvalidSubject
            | LastRawMessageErrorKind::JetStream(_)
            | LastRawMessageErrorKind::Other => Err(BusError::unreachable(call, error)),
        },
    }
}

fn change(stored: Stored, bucket: &str) -> Option<Change> {
    let key = stored.subject.strip_prefix("$KV.")?.strip_prefix(bucket)?;
    Some(Change {
        key: key.strip_prefix('.')?.to_owned(),
        revision: stored.seq,
        payload: stored.payload,
        written_at: stored.time,
    })
}
