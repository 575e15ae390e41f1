//! Whether this worker was told to take no more jobs: a record of bucket `queues` says so.

use std::time::Duration;
use tokio::{sync::watch, time::MissedTickBehavior};
use virtbus_bus::{Bucket, Bus};
use virtbus_wire::{
    WorkerId,
    catalog::{QueueRecord, drain_key},
};

/// The bucket.
const BUCKET: &str = "queues";
/// How often the record is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Follows the record from before anything is taken. While the server can't say, what it said
/// last holds.
pub(crate) async fn follow(bus: Bus, worker: WorkerId, draining: watch::Sender<Option<bool>>) {
    let records: Bucket<QueueRecord> = Bucket::new(&bus, BUCKET);
    let key = drain_key(&worker);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let record = match records.get_latest(&key).await {
            Ok(entry) => entry.map(|entry| entry.value),
            Err(error) => {
                tracing::debug!(%error, "whether the worker drains isn't known");
                continue;
            }
        };
        let now = record.as_ref().is_some_and(|record| record.paused);
        let changes = draining.send_if_modified(|before| before.replace(now) != Some(now));
        if changes {
            let (by, reason) = record.map(|record| (record.by, record.reason)).unzip();
            tracing::info!(draining = now, ?by, ?reason, "told whether to take jobs");
        }
    }
}
