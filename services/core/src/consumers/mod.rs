//! The consumers of all queues are there: looked at whenever the catalogue changes, and now and
//! then in case somebody removed one.

pub(crate) mod state;

use crate::service::Stores;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use virtbus_bus::topology::{self, TopologyError};
use virtbus_wire::Queue;

/// How often the catalogue is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often all consumers are looked at, though nothing changed.
const SWEEP: Duration = Duration::from_secs(30);

/// Keeps the consumers until `stop`.
pub async fn run(stores: Stores, stop: CancellationToken) {
    let mut tick = time::interval(LOOK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut made: BTreeSet<Queue> = BTreeSet::new();
    let mut looked: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let wanted = match stores.catalogue.queues().await {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::warn!(%error, "the catalogue can't be read");
                continue;
            }
        };
        let is_due = looked.is_none_or(|at| at.elapsed() >= SWEEP);
        if wanted == made && !is_due {
            continue;
        }
        match ensure(&stores, &wanted).await {
            Ok(()) => {
                made = wanted;
                looked = Some(Instant::now());
            }
            Err(error) => tracing::warn!(%error, "consumers are missing"),
        }
    }
}

/// Makes the consumers of these queues that aren't there.
///
/// # Errors
/// When the server refuses, or doesn't answer.
pub async fn ensure<'a>(
    stores: &Stores,
    queues: impl IntoIterator<Item = &'a Queue>,
) -> Result<(), TopologyError> {
    let queues: Vec<Queue> = queues.into_iter().cloned().collect();
    let made = topology::ensure_consumers(stores.bus.jetstream(), &queues).await?;
    for queue in made {
        tracing::info!(%queue, "consumer made");
    }
    Ok(())
}
