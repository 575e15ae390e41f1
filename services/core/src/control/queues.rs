//! `virtbus.queues.list`.

use super::Failed;
use crate::service::Stores;
use async_nats::jetstream::{ErrorCode, response::Response};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use virtbus_bus::BusError;
use virtbus_wire::{
    Class, JobError, Queue, Timestamp,
    catalog::{QueueRecord, WorkerRecord},
    control::{QueueList, QueueRow},
};

/// Pages read of one list; the server sends 256 consumers per page.
const PAGES_MAX: usize = 1024;

/// What the server says of a consumer.
#[derive(Debug, Deserialize)]
struct Consumer {
    name: String,
    num_pending: u64,
    num_ack_pending: u64,
    ack_floor: Floor,
}

#[derive(Debug, Deserialize)]
struct Floor {
    stream_seq: u64,
}

#[derive(Debug, Deserialize)]
struct Listed {
    total: usize,
    consumers: Option<Vec<Consumer>>,
}

/// All queues that have consumers.
pub(super) async fn list(stores: &Stores) -> Result<QueueList, Failed> {
    let workers = stores.catalogue.workers.all().await?;
    let workers: Vec<WorkerRecord> = workers.into_iter().map(|(_, entry)| entry.value).collect();
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
        for consumer in consumers_of(stores, class.stream()).await? {
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
            .filter(|worker| worker.queues.contains(&queue));
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
    Ok(first.map(|message| Timestamp::now().since(message.time).as_secs()))
}

async fn consumers_of(stores: &Stores, stream: &str) -> Result<Vec<Consumer>, Failed> {
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let subject = format!("CONSUMER.LIST.{stream}");
        let payload = serde_json::json!({"offset": all.len()});
        let answer = stores.bus.jetstream().request(subject, &payload).await;
        let page: Listed = match answer {
            Ok(Response::Ok(page)) => page,
            Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                return Ok(all);
            }
            Ok(Response::Err { error }) => return Err(no_list(stream, &error)),
            Err(error) => return Err(no_list(stream, &error)),
        };
        let consumers = page.consumers.unwrap_or_default();
        let is_last = consumers.is_empty();
        all.extend(consumers);
        if is_last || all.len() >= page.total {
            return Ok(all);
        }
    }
    Ok(all)
}

fn no_list(stream: &str, error: &dyn std::fmt::Display) -> Failed {
    tracing::warn!(stream, %error, "the consumers can't be listed");
    JobError::internal("the queues can't be listed").into()
}
