//! The consumers of all queues are there: looked at whenever the catalogue changes, and now and
//! then in case somebody removed one. Those of paused queues are paused.

pub(crate) mod state;

use crate::service::Stores;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{
    BusError,
    topology::{self, TopologyError},
};
use virtbus_daemon::Beat;
use virtbus_wire::{Class, Queue};

/// How often the catalogue is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often all consumers are looked at, though nothing changed.
const SWEEP: Duration = Duration::from_secs(30);

/// Keeps the consumers until `stop`.
pub async fn run(stores: Stores, stop: CancellationToken) {
    let mut beat = Beat::every(LOOK, stop);
    let mut made: BTreeSet<Queue> = BTreeSet::new();
    let mut looked: Option<Instant> = None;
    while beat.next().await {
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
        if let Err(error) = align(&stores).await {
            tracing::warn!(%error, "pauses can't be looked at");
        }
    }
}

/// Makes consumers paused, or not, as the records of their queues say: a consumer may have been
/// made anew, or core may have stopped between record and consumer.
async fn align(stores: &Stores) -> Result<(), BusError> {
    let queues = &stores.catalogue.queues;
    for class in Class::ALL {
        let stream = class.stream();
        let consumers = state::all(stores, stream).await?;
        // Read after the consumers: whoever pauses writes the record first.
        let paused = queues.all().await?.into_iter();
        let paused = paused.filter(|(_, entry)| entry.value.paused);
        let paused: BTreeSet<String> = paused.map(|(subject, _)| subject).collect();
        for consumer in consumers {
            let Some(subject) = &consumer.config.filter_subject else {
                continue;
            };
            if consumer.paused == paused.contains(subject) {
                continue;
            }
            // A replica may be late: only the leader's word ends a pause, or begins one.
            let record = queues.get_latest(subject).await?;
            let wanted = record.is_some_and(|entry| entry.value.paused);
            if consumer.paused != wanted {
                tracing::info!(queue = subject, paused = wanted, "a pause is put right");
                state::pause(stores, stream, &consumer.name, wanted).await?;
            }
        }
    }
    Ok(())
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
    let made = topology::ensure_consumers(&stores.bus, &queues).await?;
    for queue in made {
        tracing::info!(%queue, "consumer made");
    }
    Ok(())
}
