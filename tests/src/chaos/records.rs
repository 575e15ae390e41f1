//! Every record as the bucket has it, read on from where the last look ended.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use futures_util::StreamExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use virtbus_wire::StateName;

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(1_000);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Messages of one request.
const BATCH: usize = 500;
/// How long a request may find nothing.
const EXPIRES: Duration = Duration::from_secs(5);
/// The server forgets a reader that is gone after this.
const FORGET: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

/// A value of a bucket, and its revision.
#[derive(Debug, Clone)]
pub struct Held {
    /// The revision.
    pub revision: u64,
    /// The value.
    pub value: Value,
}

/// The records of all jobs.
#[derive(Debug, Default)]
pub struct Records {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The last revision that was looked at.
    seen: u64,
    held: BTreeMap<String, Held>,
    finals: usize,
}

impl Records {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again, for ever. A look that fails is done again.
    pub async fn follow(&self, context: Context) {
        loop {
            drop(timeout(LOOK_LIMIT, self.look(&context)).await);
            sleep(LOOK).await;
        }
    }

    /// Reads what changed since the last look.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn look(&self, context: &Context) -> Result<(), Failure> {
        let from = self.inner().seen + 1;
        let changed = read(context, "jobs", from).await?;
        let mut inner = self.inner();
        for (id, held) in changed {
            inner.seen = inner.seen.max(held.revision);
            // Two may look at once, and the slower one saw what was before.
            let known = inner.held.get(&id).map_or(0, |known| known.revision);
            if held.revision > known {
                inner.held.insert(id, held);
            }
        }
        let is_final = |held: &&Held| is_final(&held.value);
        inner.finals = inner.held.values().filter(is_final).count();
        Ok(())
    }

    /// How many are final.
    pub fn finals(&self) -> usize {
        self.inner().finals
    }

    /// A job's state as last seen.
    pub fn state(&self, id: &str) -> Option<String> {
        let inner = self.inner();
        let state = inner.held.get(id)?.value["state"].as_str()?;
        Some(state.to_owned())
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<String, Held> {
        let mut all = self.inner().held.clone();
        all.retain(|_, held| !held.value.is_null());
        all
    }
}

/// Whether a record's job has ended. One without a state that we know hasn't.
pub fn is_final(record: &Value) -> bool {
    let state: Result<StateName, _> = serde_json::from_value(record["state"].clone());
    state.is_ok_and(StateName::is_final)
}

/// The latest value of every key whose revision is `from` or later; `null` = it was removed.
///
/// # Errors
/// When the server doesn't answer.
pub async fn read(
    context: &Context,
    bucket: &str,
    from: u64,
) -> Result<BTreeMap<String, Held>, Failure> {
    let stream = context.get_stream(format!("KV_{bucket}")).await?;
    let deliver_policy = DeliverPolicy::ByStartSequence {
        start_sequence: from,
    };
    let config = pull::Config {
        deliver_policy,
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGET,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await?;
    let mut left = consumer.cached_info().num_pending;
    let prefix = format!("$KV.{bucket}.");
    let mut found = BTreeMap::new();
    while left > 0 {
        let batch = consumer.batch().max_messages(BATCH).expires(EXPIRES);
        let mut messages = batch.messages().await?;
        let before = left;
        while let Some(message) = messages.next().await {
            let message = message?;
            let info = message.info()?;
            left = info.pending;
            let key = message.subject.strip_prefix(&prefix).unwrap_or_default();
            let value = if message.payload.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&message.payload)?
            };
            let revision = info.stream_sequence;
            found.insert(key.to_owned(), Held { revision, value });
            if left == 0 {
                break;
            }
        }
        if left == before {
            return Err("the server sends nothing more".into());
        }
    }
    stream.delete_consumer(&consumer.cached_info().name).await?;
    Ok(found)
}
