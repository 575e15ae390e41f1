//! The files under `nats/`, embedded and read.

use super::Asset;
use async_nats::jetstream::{consumer::pull, stream};
use serde_json::{Map, Value};
use virtbus_wire::{Class, Queue};

/// Name and text of a file.
type File = (&'static str, &'static str);

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        [$(($path, include_str!(concat!("../../../../nats/", $path)))),+]
    };
}

const STREAM_FILES: [File; 5] = files![
    "streams/STORAGE.json",
    "streams/HYPERVISOR.json",
    "streams/CORE.json",
    "streams/DLQ.json",
    "streams/ADVISORIES.json",
];

const BUCKET_FILES: [File; 11] = files![
    "kv/jobs.json",
    "kv/disks.json",
    "kv/media.json",
    "kv/domains.json",
    "kv/pools.json",
    "kv/hypervisors.json",
    "kv/workers.json",
    "kv/workers_lost.json",
    "kv/locks.json",
    "kv/transfers.json",
    "kv/queues.json",
];

const CONSUMER_FILES: [File; 3] = files![
    "consumers/storage.json",
    "consumers/hypervisor.json",
    "consumers/core.json",
];

/// The streams that are no buckets.
pub const STREAMS: [&str; 5] = ["STORAGE", "HYPERVISOR", "CORE", "DLQ", "ADVISORIES"];

/// The buckets; the stream of one is `KV_<bucket>`.
pub const BUCKETS: [&str; 11] = [
    "jobs",
    "disks",
    "media",
    "domains",
    "pools",
    "hypervisors",
    "workers",
    "workers_lost",
    "locks",
    "transfers",
    "queues",
];

/// A file that can't be read: a bug, shown by a test.
#[derive(Debug, thiserror::Error)]
#[error("read {file}")]
pub struct DefinitionError {
    /// Its path under `nats/`.
    pub file: &'static str,
    /// What is wrong with it.
    #[source]
    pub source: serde_json::Error,
}

/// A stream, or the stream of a bucket, as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamDefinition {
    /// What it is.
    pub asset: Asset,
    /// The server's JSON.
    pub config: Map<String, Value>,
}

impl StreamDefinition {
    /// The name of the stream.
    #[must_use]
    pub fn stream(&self) -> String {
        self.asset.stream()
    }

    fn read(file: File) -> Result<Self, DefinitionError> {
        // The typed form is looked at only to be sure that each value has its right kind.
        let typed: stream::Config = parse(file)?;
        let asset = match typed.name.strip_prefix("KV_") {
            Some(bucket) => Asset::bucket(bucket),
            None => Asset::stream_named(&typed.name),
        };
        Ok(Self {
            asset,
            config: parse(file)?,
        })
    }
}

/// The consumer of a queue as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerDefinition {
    /// What it is.
    pub asset: Asset,
    /// The stream it is on.
    pub stream: &'static str,
    /// Its name.
    pub name: String,
    /// The one subject it takes.
    pub filter: String,
    /// The server's JSON.
    pub config: Map<String, Value>,
}

/// All streams and buckets.
///
/// # Errors
/// None but a bug, see [`DefinitionError`].
pub fn streams() -> Result<Vec<StreamDefinition>, DefinitionError> {
    STREAM_FILES
        .into_iter()
        .chain(BUCKET_FILES)
        .map(StreamDefinition::read)
        .collect()
}

/// The consumer of `queue`: the template of its class with the queue's names filled in.
///
/// # Errors
/// None but a bug, see [`DefinitionError`].
pub fn consumer(queue: &Queue) -> Result<ConsumerDefinition, DefinitionError> {
    let [storage, hypervisor, core] = CONSUMER_FILES;
    let file = match queue.class() {
        Class::Storage => storage,
        Class::Hypervisor => hypervisor,
        Class::Core => core,
    };
    let _kinds_are_right: pull::Config = parse(file)?;
    let mut config: Map<String, Value> = parse(file)?;
    let (name, filter) = (queue.consumer(), queue.subject());
    for (key, value) in [
        ("name", &name),
        ("durable_name", &name),
        ("filter_subject", &filter),
    ] {
        config.insert(key.to_owned(), Value::from(value.as_str()));
    }
    Ok(ConsumerDefinition {
        asset: Asset::consumer(queue.stream(), &name),
        stream: queue.stream(),
        name,
        filter,
        config,
    })
}

fn parse<T: serde::de::DeserializeOwned>((file, text): File) -> Result<T, DefinitionError> {
    serde_json::from_str(text).map_err(|source| DefinitionError { file, source })
}

#[cfg(test)]
mod tests {
    use super::super::diff::canonical;
    use super::*;
    use async_nats::jetstream::consumer::IntoConsumerConfig;

    #[test]
    fn names_and_files_agree() {
        let names: Vec<String> = streams()
            .unwrap()
            .iter()
            .map(StreamDefinition::stream)
            .collect();
        let listed: Vec<String> = STREAMS
            .into_iter()
            .map(String::from)
            .chain(BUCKETS.into_iter().map(|bucket| format!("KV_{bucket}")))
            .collect();
        assert_eq!(names, listed);
    }

    #[test]
    fn no_key_of_a_stream_file_is_unknown_to_the_client_library() {
        for definition in streams().unwrap() {
            let config = Value::Object(definition.config);
            let typed: stream::Config = serde_json::from_value(config.clone()).unwrap();
            let back = serde_json::to_value(typed).unwrap();
            assert_eq!(canonical(&back), canonical(&config));
        }
    }

    #[test]
    fn no_key_of_a_consumer_file_is_unknown_to_the_client_library() {
        for subject in ["storage.a_b.low", "hypervisor.hv-1.high", "core"] {
            let config = Value::Object(consumer(&subject.parse().unwrap()).unwrap().config);
            let typed: pull::Config = serde_json::from_value(config.clone()).unwrap();
            let back = serde_json::to_value(typed.into_consumer_config()).unwrap();
            assert_eq!(canonical(&back), canonical(&config));
        }
    }

    #[test]
    fn every_asset_is_bounded() {
        for StreamDefinition { asset, config } in streams().unwrap() {
            for limit in ["max_bytes", "max_consumers"] {
                assert!(config[limit].as_i64().unwrap() > 0, "{asset}: {limit}");
            }
        }
    }

    /// nats/dev.conf and nats/README.md name the sum.
    #[test]
    fn all_of_it_fits_where_the_server_configurations_give_room() {
        let definitions = streams().unwrap();
        let bytes = definitions.iter().map(|it| it.config["max_bytes"].as_i64());
        let gib = bytes.map(Option::unwrap).sum::<i64>() >> 30;
        assert_eq!(gib, 26);
    }
}
