//! `virtbus.queues.list`.

use super::Failed;
use crate::{
    consumers::state::{self, Consumer},
    service::Stores,
};
use std::collections::{BTreeMap, HashMap};
use virtbus_bus::BusError;
use virtbus_wire::{
    Class, Queue,
    catalog::QueueRecord,
    control::{QueueList, QueueRow},
};

/// All queues that have consumers.
pub(super) async fn list(stores: &Stores) -> Result<QueueList, Failed> {
    let workers = stores.catalogue.alive().await?;
    let paused: HashMap<String, QueueRecord> = stores
        .catalogue
        .queues
        .all()
        .await?
        .into_iter()
        .map(|(key, entry)| (key, entry.value))
        .collect();
    let mut consumers = BTreeMap::new();
    for class in Class::ALL {
        for consumer in state::all(stores, class.stream()).await? {
            consumers.insert(consumer.name.clone(), consumer);
        }
    }
    let mut queues = Vec::new();
    for queue in stores.catalogue.queues().await? {
        let Some(consumer) = consumers.get(&queue.consumer()) else {
            continue;
        };
        let serving = workers
            .iter()
            .filter(|worker| !worker.draining && worker.queues.contains(&queue));
        let pause = paused.get(&queue.subject()).filter(|record| record.paused);
        queues.push(QueueRow {
            depth: consumer.num_pending,
            running: consumer.num_ack_pending,
            oldest_age_s: oldest(stores, &queue, consumer).await?,
            workers: u32::try_from(serving.count()).unwrap_or(u32::MAX),
            paused: pause.is_some(),
            pause: pause.cloned(),
            queue,
        });
    }
    Ok(QueueList { queues })
}

/// How long the oldest job of a queue has lain there, in seconds.
async fn oldest(
    stores: &Stores,
    queue: &Queue,
    consumer: &Consumer,
) -> Result<Option<u64>, BusError> {
    if consumer.num_pending + consumer.num_ack_pending == 0 {
        return Ok(None);
    }
    let from = consumer.ack_floor.stream_seq + 1;
    let first = stores
        .bus
        .first_message(queue.stream(), &queue.subject(), from)
        .await?;
    Ok(first.map(|message| stores.bus.now().since(message.time).as_secs()))
}
