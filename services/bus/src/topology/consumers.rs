//! Consumers of queues: what is there, and the making of what is missing.

use super::apply::{Api, Verb, request};
use super::{Asset, ConsumerDefinition, TopologyError, consumer};
use async_nats::jetstream::ErrorCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_wire::Queue;

/// Pages read of one list. The server sends 256 configurations or 1,024 names per page, so this
/// is beyond `max_consumers` of every stream.
const PAGES_MAX: usize = 1024;

#[derive(Deserialize)]
struct Page<T> {
    total: usize,
    // The server says null for an empty page.
    consumers: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    config: Map<String, Value>,
}

/// The configurations of all consumers of `stream`, by name.
pub(super) async fn list(
    js: &impl Api,
    stream: &str,
) -> Result<BTreeMap<String, Map<String, Value>>, TopologyError> {
    let listed: Vec<Listed> = pages(js, stream, "LIST").await?;
    Ok(listed
        .into_iter()
        .map(|consumer| (consumer.name, consumer.config))
        .collect())
}

/// Makes the consumers of `queues` that don't exist yet, and says whose they were. Those that
/// exist are left as they are: differences are for [`apply`](super::apply).
///
/// # Errors
/// [`TopologyError`] when the server doesn't answer or refuses, for lack of the stream, say. What
/// was made until then stays; doing it again goes on from there.
pub async fn ensure_consumers(
    js: &impl Api,
    queues: &[Queue],
) -> Result<Vec<Queue>, TopologyError> {
    let mut existing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut made = Vec::new();
    for queue in queues {
        let stream = queue.stream();
        if !existing.contains_key(stream) {
            let names = pages(js, stream, "NAMES").await?;
            existing.insert(stream, names.into_iter().collect());
        }
        let names = existing.entry(stream).or_default();
        let definition = consumer(queue)?;
        if !names.insert(definition.name.clone()) {
            continue;
        }
        let config = definition.config.clone();
        let (subject, payload) = request_of(&definition, Verb::Create, config);
        match request::<Value>(js, &definition.asset, &subject, &payload).await? {
            Ok(_) => made.push(queue.clone()),
            // Somebody else was faster, from a definition of another version.
            Err(error) if error.error_code() == ErrorCode::CONSUMER_ALREADY_EXISTS => {}
            Err(source) => {
                let asset = definition.asset;
                return Err(TopologyError::Answer { asset, source });
            }
        }
    }
    Ok(made)
}

/// Subject and payload that make or change a consumer.
pub(super) fn request_of(
    definition: &ConsumerDefinition,
    verb: Verb,
    config: Map<String, Value>,
) -> (String, Value) {
    let ConsumerDefinition {
        stream,
        name,
        filter,
        ..
    } = definition;
    let action = match verb {
        Verb::Create => "create",
        Verb::Update => "update",
    };
    (
        format!("CONSUMER.CREATE.{stream}.{name}.{filter}"),
        json!({"stream_name": stream, "config": config, "action": action}),
    )
}

async fn pages<T: DeserializeOwned>(
    js: &impl Api,
    stream: &str,
    verb: &str,
) -> Result<Vec<T>, TopologyError> {
    let asset = Asset::stream_named(stream);
    let subject = format!("CONSUMER.{verb}.{stream}");
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let payload = json!({"offset": all.len()});
        let page: Page<T> = request(js, &asset, &subject, &payload)
            .await?
            .map_err(|source| TopologyError::Answer {
                asset: asset.clone(),
                source,
            })?;
        let items = page.consumers.unwrap_or_default();
        let last = items.is_empty();
        all.extend(items);
        if last || all.len() >= page.total {
            return Ok(all);
        }
    }
    Err(TopologyError::TooManyConsumers {
        stream: stream.to_owned(),
        pages: PAGES_MAX,
    })
}
