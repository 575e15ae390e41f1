//! `virtbus.workers.list`, `drain`, `undrain`.
//!
//! A drain is a record of bucket `queues`, as a pause is: it says who and why, and stays when the
//! worker goes away. The worker reads it by itself.

use super::{Caller, Failed, pause, places::values};
use crate::service::Stores;
use std::collections::{BTreeMap, BTreeSet};
use virtbus_bus::BusError;
use virtbus_wire::{
    JobError, Timestamp, WorkerId,
    catalog::{QueueRecord, WorkerRecord, drain_key},
    control::{Drained, WorkerList, WorkerName, WorkerRow},
};

/// All workers: those whose lease is there, those lost in the last day, and who of them, or of
/// those away for longer, is drained.
pub(super) async fn list(stores: &Stores) -> Result<WorkerList, BusError> {
    let drained = stores.catalogue.drained().await?;
    let alive = values(stores.catalogue.workers.all().await?);
    let lost = values(stores.catalogue.lost.all().await?);
    Ok(listed(alive, lost, drained, stores.bus.now()))
}

fn listed(
    alive: Vec<WorkerRecord>,
    lost: Vec<WorkerRecord>,
    drained: BTreeMap<WorkerId, QueueRecord>,
    now: Timestamp,
) -> WorkerList {
    let there: BTreeSet<WorkerId> = alive.iter().map(|beat| beat.worker.clone()).collect();
    let lost = lost
        .into_iter()
        .filter(|beat| !there.contains(&beat.worker));
    let lost = lost.map(|beat| (beat, true));
    let all = alive.into_iter().map(|beat| (beat, false)).chain(lost);
    let rows = all.map(|(beat, lost)| WorkerRow {
        age_s: now.since(beat.at).as_secs(),
        drain: drained.get(&beat.worker).cloned(),
        beat,
        lost,
    });
    let mut workers: Vec<WorkerRow> = rows.collect();
    workers.sort_by(|one, other| one.beat.worker.cmp(&other.beat.worker));
    WorkerList { workers, drained }
}

/// Lets a worker take no more jobs, or again.
pub(super) async fn drain(
    stores: &Stores,
    asked: WorkerName,
    caller: Caller,
    drained: bool,
) -> Result<Drained, Failed> {
    let WorkerName { worker, reason } = asked;
    pause::check_reason(reason.as_ref())?;
    let key = drain_key(&worker);
    let queues = &stores.catalogue.queues;
    let is_known = queues.get_latest(&key).await?.is_some() || is_known(stores, &worker).await?;
    if !is_known {
        let message = "no worker of this id was seen in the last day";
        return Err(JobError::invalid_params("worker", message).into());
    }
    let record = QueueRecord {
        paused: drained,
        by: caller.by,
        reason,
        at: stores.bus.now(),
    };
    pause::write(stores, &key, &record).await?;
    tracing::info!(%worker, drained, by = record.by, reason = record.reason, "drain");
    Ok(Drained { worker, drained })
}

async fn is_known(stores: &Stores, worker: &WorkerId) -> Result<bool, BusError> {
    let (workers, lost) = (&stores.catalogue.workers, &stores.catalogue.lost);
    let is_there = workers.get_latest(worker.as_str()).await?.is_some();
    Ok(is_there || lost.get_latest(worker.as_str()).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_drained_worker_is_shown_also_when_it_is_away() {
        let now: Timestamp = "2026-06-01T00:00:10.000Z".parse().unwrap();
        let beat = |id: &str| -> WorkerRecord {
            let beat = json!({"worker": id, "boot": "0199b1c2-0000-7000-8000-000000000001",
                "class": "storage", "host": "h", "slots": 1, "busy": 0,
                "started_at": "2026-06-01T00:00:00.000Z", "at": "2026-06-01T00:00:00.000Z"});
            serde_json::from_value(beat).unwrap()
        };
        let drain = QueueRecord {
            paused: true,
            by: Some("alice".to_owned()),
            reason: Some("new disks".to_owned()),
            at: now,
        };
        let ids = ["there", "lost", "long-gone"];
        let drained: BTreeMap<WorkerId, QueueRecord> = ids
            .iter()
            .map(|id| (id.parse().unwrap(), drain.clone()))
            .collect();
        let alive = vec![beat("there"), beat("works")];
        let list = listed(
            alive,
            vec![beat("lost"), beat("works")],
            drained.clone(),
            now,
        );
        let rows: Vec<(&str, bool, bool)> = list
            .workers
            .iter()
            .map(|row| (row.beat.worker.as_str(), row.lost, row.drain.is_some()))
            .collect();
        assert_eq!(
            rows,
            [
                ("lost", true, true),
                ("there", false, true),
                ("works", false, false)
            ]
        );
        assert_eq!(list.workers[0].age_s, 10);
        assert_eq!(list.drained, drained);
    }
}
