//! What the server has to hold: streams, buckets, and one consumer per queue.
//!
//! The definitions are the files under `nats/` in the server's own JSON, embedded here, so that
//! the stock `nats … --config` and this module make the same thing. [`apply`] compares them with
//! a server and creates or updates what differs; it never removes anything. [`ensure_consumers`]
//! is its small sister: only what is missing, for queues that have just been registered.
//!
//! Everything works on the JSON as it is, not on a client library's types: a setting that this
//! program doesn't know (or the library loses, like a consumer's pause) survives an update.
//!
//! What the server holds beyond the files is a site's own decision and stays: more replicas,
//! larger limits, placement, metadata, a pause. What a server can't change on an existing asset
//! (retention, say) is reported as refused, by field, and the asset is left alone.

mod apply;
mod consumers;
mod definition;
mod diff;
mod report;
mod role;

pub use apply::{Api, Mode, Wanted, apply};
pub use consumers::ensure_consumers;
pub use definition::{
    BUCKETS, ConsumerDefinition, DefinitionError, STREAMS, StreamDefinition, consumer, streams,
};
pub use diff::{Change, Effect};
pub use report::{Asset, Item, Outcome, Report};
pub use role::{ACCOUNTS_CONF, Role, keys_conf};

use virtbus_wire::{Label, Place, PoolPair, Priority, Queue};

/// The queues of a pool: its storage queues, and those any hypervisor of the pool takes from.
#[must_use]
pub fn queues_of_pool(pool: &Label) -> Vec<Queue> {
    let mut queues = storage_queues(&Place::Pool(pool.clone()));
    queues.extend(queues_of_host(pool));
    queues
}

/// The queues between two pools.
#[must_use]
pub fn queues_of_pair(pair: &PoolPair) -> Vec<Queue> {
    storage_queues(&Place::Pair(pair.clone()))
}

/// The queues of one hypervisor.
#[must_use]
pub fn queues_of_host(hypervisor: &Label) -> Vec<Queue> {
    Priority::ALL
        .into_iter()
        .map(|priority| Queue::Hypervisor(hypervisor.clone(), priority))
        .collect()
}

fn storage_queues(place: &Place) -> Vec<Queue> {
    Priority::ALL
        .into_iter()
        .map(|priority| Queue::Storage(place.clone(), priority))
        .collect()
}

/// Why a server's topology could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A bug: a file that was compiled in can't be read.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// No answer, or one that can't be read. Denied requests end here as well, as timeouts.
    #[error("ask the server about {asset}")]
    Request {
        /// What was asked about.
        asset: Asset,
        /// The client's error.
        #[source]
        source: async_nats::jetstream::context::RequestError,
    },
    /// The server answered with an error where it should not.
    #[error("read {asset}")]
    Answer {
        /// What was asked about.
        asset: Asset,
        /// The server's error.
        #[source]
        source: async_nats::jetstream::Error,
    },
    /// The list of consumers doesn't come to an end.
    #[error("list the consumers of {stream}: more than {pages} pages")]
    TooManyConsumers {
        /// Whose consumers.
        stream: String,
        /// The limit.
        pages: usize,
    },
}
