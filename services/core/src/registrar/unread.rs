//! From where on messages may have no record yet, told to every core: key `_registered` of bucket
//! `pools`.
//!
//! Only the leader reads the streams, and any core is asked about jobs. One that has no record may
//! lie anywhere behind this place, however far behind the leader is. It's a fact that holds for
//! ever, so it may be old: then more is looked through.

use crate::service::Stores;
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bucket, BusError};
use virtbus_daemon::Beat;

/// No pool's name begins like that.
const KEY: &str = "_registered";
const BUCKET: &str = "pools";
/// How often it's told, if it changed.
const TELL: Duration = Duration::from_secs(1);

/// By stream: everything before this sequence has a record.
type Places = BTreeMap<String, u64>;

/// Tells how far these streams were read, until `stop`.
pub(super) async fn tell(
    stores: Stores,
    streams: Vec<(&'static str, watch::Receiver<u64>)>,
    stop: CancellationToken,
) {
    let bucket: Bucket<Places> = Bucket::new(&stores.bus, BUCKET);
    let mut told = Places::new();
    let mut beat = Beat::every(TELL, stop);
    while beat.next().await {
        let places = streams
            .iter()
            .map(|(stream, next)| ((*stream).to_owned(), *next.borrow()));
        let places: Places = places.collect();
        if places == told {
            continue;
        }
        match bucket.put(KEY, &places).await {
            Ok(_) => told = places,
            Err(error) => tracing::warn!(%error, "how far the streams were read can't be told"),
        }
    }
}

/// The sequence of each stream from which on messages may have no record.
pub(crate) struct Unread(Places);

impl Unread {
    /// As the leader told last.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub(crate) async fn read(stores: &Stores) -> Result<Self, BusError> {
        let bucket: Bucket<Places> = Bucket::new(&stores.bus, BUCKET);
        let found = bucket.get_latest(KEY).await?;
        Ok(Self(found.map(|entry| entry.value).unwrap_or_default()))
    }

    /// The first sequence of a stream to look at.
    pub(crate) fn of(&self, stream: &str) -> u64 {
        self.0.get(stream).copied().unwrap_or(1)
    }
}
