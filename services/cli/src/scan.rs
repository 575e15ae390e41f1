//! Reading many records of a bucket, the last changed first, without a consumer on the server.
//!
//! A bucket of history 1 is a stream with one message per key, ordered by change. It's read by
//! batched direct get in windows from its end, so that a short list stays cheap however many
//! records there are.

use crate::exit::Failure;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;
use std::{ops::ControlFlow, time::Duration};
use virtbus_bus::Bus;

/// How long the server may take for the next message of a batch.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The sequences of the first window; each further one is twice as long.
const WINDOW_FIRST: u64 = 512;
/// The most sequences of a window, and with them the records held at once.
const WINDOW_MAX: u64 = 8_192;

/// A message of a bucket as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) payload: Bytes,
}

/// Shows `visit` the records of a bucket, the last changed first, until it has seen enough.
///
/// # Errors
/// When the server doesn't answer, or has no such bucket.
pub(crate) async fn newest_first(
    bus: &Bus,
    bucket: &str,
    mut visit: impl FnMut(Stored) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let (first, last) = ends(bus, bucket).await?;
    let mut end = last + 1;
    let mut length = WINDOW_FIRST;
    while end > first {
        let start = end.saturating_sub(length).max(first);
        let mut window = window(bus, bucket, start, end).await?;
        while let Some(stored) = window.pop() {
            if visit(stored).is_break() {
                return Ok(());
            }
        }
        end = start;
        length = (length * 2).min(WINDOW_MAX);
    }
    Ok(())
}

/// The first and the last sequence of a bucket's stream.
async fn ends(bus: &Bus, bucket: &str) -> Result<(u64, u64), Failure> {
    let name = format!("KV_{bucket}");
    let stream = bus.jetstream().get_stream(&name).await;
    let stream = stream.map_err(|error| no_bucket(bucket, &error))?;
    let state = &stream.cached_info().state;
    Ok((state.first_sequence.max(1), state.last_sequence))
}

fn no_bucket(bucket: &str, error: &async_nats::jetstream::context::GetStreamError) -> Failure {
    use async_nats::jetstream::context::GetStreamErrorKind as Kind;
    let message = format!("the bucket {bucket} can't be read: {error}");
    match error.kind() {
        Kind::JetStream(_) => Failure::failed(message).hint("`virtbus setup` makes the buckets"),
        Kind::Request | Kind::EmptyName | Kind::InvalidStreamName => Failure::unreachable(message),
    }
}

/// The records whose revision is in `start..end`, in order.
async fn window(bus: &Bus, bucket: &str, start: u64, end: u64) -> Result<Vec<Stored>, Failure> {
    let mut found = Vec::new();
    let mut next = start;
    while next < end {
        match batch(bus, bucket, next, end, &mut found).await? {
            Some(last) => next = last + 1,
            None => break,
        }
    }
    Ok(found)
}

/// One batch from `next` on; answers with the last sequence it had, or nothing at the end.
async fn batch(
    bus: &Bus,
    bucket: &str,
    next: u64,
    end: u64,
    found: &mut Vec<Stored>,
) -> Result<Option<u64>, Failure> {
    let client = bus.client();
    let late = |what: &dyn std::fmt::Display| {
        Failure::unreachable(format!("the bucket {bucket} can't be read: {what}"))
    };
    let inbox = client.new_inbox();
    let mut answers = client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| late(&error))?;
    let prefix = format!("$KV.{bucket}.");
    let ask = json!({"seq": next, "batch": end - next, "next_by_subj": format!("{prefix}>")});
    let subject = format!("$JS.API.DIRECT.GET.KV_{bucket}");
    let asked = client.publish_with_reply(subject, inbox, ask.to_string().into());
    asked.await.map_err(|error| late(&error))?;
    let mut last = None;
    loop {
        let answer = tokio::time::timeout(ANSWER_LIMIT, answers.next()).await;
        let answer = answer.map_err(|_| late(&"no answer in time"))?;
        let answer = answer.ok_or_else(|| late(&"the connection was closed"))?;
        match answer.status.map(|status| status.as_u16()) {
            None => {}
            // The end of the batch: with messages there may be more, the server cuts long ones.
            Some(204) => return Ok(last),
            Some(404) => return Ok(None),
            Some(503) => return Err(late(&"nobody answers for it")),
            Some(other) => return Err(late(&format!("the server answered {other}"))),
        }
        let headers = answer.headers.unwrap_or_default();
        let text = |name: &str| headers.get(name).map(|value| value.as_str());
        let revision: Option<u64> = text("Nats-Sequence").and_then(|value| value.parse().ok());
        let revision = revision.ok_or_else(|| late(&"an answer without a sequence"))?;
        if revision >= end {
            return Ok(None);
        }
        last = Some(revision);
        let is_marker = text("KV-Operation").is_some() || text("Nats-Marker-Reason").is_some();
        let key = text("Nats-Subject").and_then(|subject| subject.strip_prefix(&prefix));
        if let (Some(key), false) = (key, is_marker) {
            let key = key.to_owned();
            let payload = answer.payload;
            found.push(Stored {
                key,
                revision,
                payload,
            });
        }
    }
}

/// All keys of a bucket that `fits` says yes to, at most `most` of them. Marks of removed records
/// count as keys.
///
/// # Errors
/// As [`newest_first`].
pub(crate) async fn keys(
    bus: &Bus,
    bucket: &str,
    most: usize,
    fits: impl Fn(&str) -> bool,
) -> Result<Vec<String>, Failure> {
    let name = format!("KV_{bucket}");
    let stream = bus.jetstream().get_stream_no_info(&name).await;
    let stream = stream.map_err(|error| no_bucket(bucket, &error))?;
    let prefix = format!("$KV.{bucket}.");
    let failed = |error: &dyn std::fmt::Display| {
        Failure::unreachable(format!(
            "the keys of bucket {bucket} can't be read: {error}"
        ))
    };
    let subjects = stream.info_with_subjects(format!("{prefix}>")).await;
    let mut subjects = subjects.map_err(|error| failed(&error))?;
    let mut found = Vec::new();
    while let Some(next) = subjects.next().await {
        let (subject, _) = next.map_err(|error| failed(&error))?;
        let key = subject.strip_prefix(&prefix).unwrap_or_default();
        if fits(key) {
            found.push(key.to_owned());
            if found.len() >= most {
                break;
            }
        }
    }
    Ok(found)
}
