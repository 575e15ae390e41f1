//! Workers whose lease ran out stay visible for a day, in the bucket `workers_lost`.

use crate::service::Stores;
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, WriteError};
use virtbus_daemon::Beat;
use virtbus_wire::catalog::WorkerRecord;

/// How often the leases are looked at; each lasts several times as long.
const LOOK: Duration = Duration::from_secs(2);

/// Watches the leases until `stop`. Every core does, so that whoever leads next knows who was there
/// before; only the leader tells of those that are gone.
pub async fn run(stores: Stores, leading: watch::Receiver<bool>, stop: CancellationToken) {
    let mut beat = Beat::every(LOOK, stop);
    let mut seen = Seen::default();
    while beat.next().await {
        let leads = *leading.borrow();
        if let Err(error) = look(&stores, leads, &mut seen).await {
            tracing::warn!(%error, "the leases of workers can't be read");
        }
    }
}

/// The workers whose lease was there, and of whose end nobody has told yet.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, WorkerRecord>);

impl Seen {
    /// Somebody else leads, and has told of these.
    fn follow(&mut self, now: BTreeMap<String, WorkerRecord>, told: &[String]) {
        for key in told {
            self.0.remove(key);
        }
        self.0.extend(now);
    }

    /// Those whose lease isn't there any more.
    fn gone(&self, now: &BTreeMap<String, WorkerRecord>) -> BTreeMap<String, WorkerRecord> {
        let all = self.0.iter();
        let gone = all.filter(|(key, _)| !now.contains_key(*key));
        gone.map(|(key, record)| (key.clone(), record.clone()))
            .collect()
    }
}

async fn look(stores: &Stores, leads: bool, seen: &mut Seen) -> Result<(), BusError> {
    let workers = stores.catalogue.workers.all().await?.into_iter();
    let now = workers.map(|(key, entry)| (key, entry.value)).collect();
    if !leads {
        let told = stores.catalogue.lost.all().await?.into_iter();
        let told: Vec<String> = told.map(|(key, _)| key).collect();
        seen.follow(now, &told);
        return Ok(());
    }
    for (key, record) in seen.gone(&now) {
        tracing::warn!(worker = key, "the lease of a worker is out");
        stores.catalogue.lost.put(&key, &record).await?;
    }
    for key in now.keys().filter(|key| !seen.0.contains_key(*key)) {
        forget(stores, key).await?;
    }
    seen.0 = now;
    Ok(())
}

/// A worker that is there again isn't lost.
async fn forget(stores: &Stores, key: &str) -> Result<(), BusError> {
    let slot = stores.catalogue.lost.slot(key).await?;
    if slot.value.is_none() {
        return Ok(());
    }
    match stores.catalogue.lost.remove(key, slot.revision).await {
        Ok(()) | Err(WriteError::Conflict(_)) => Ok(()),
        Err(WriteError::Bus(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn leases(workers: &[&str]) -> BTreeMap<String, WorkerRecord> {
        let lease = |worker: &&str| {
            let record = json!({"worker": worker, "boot": virtbus_wire::BootId::default(), "class": "storage",
                "host": "h", "pools": [], "queues": [], "slots": 1, "busy": 0,
                "started_at": "2026-01-01T00:00:00Z", "at": "2026-01-01T00:00:00Z"});
            let record = serde_json::from_value(record).unwrap();
            ((*worker).to_owned(), record)
        };
        workers.iter().map(lease).collect()
    }

    #[test]
    fn a_worker_that_goes_while_nobody_leads_is_told_of_by_whoever_leads_next() {
        let mut seen = Seen::default();
        seen.follow(leases(&["a", "b"]), &[]);
        seen.follow(leases(&["a"]), &[]);
        assert_eq!(seen.gone(&leases(&["a"])), leases(&["b"]));
    }

    #[test]
    fn a_worker_of_whose_end_another_leader_told_is_not_told_of_again() {
        let mut seen = Seen::default();
        seen.follow(leases(&["a", "b"]), &[]);
        seen.follow(leases(&["a"]), &["b".to_owned()]);
        assert_eq!(seen.gone(&leases(&["a"])), leases(&[]));
        // It came back, and what was told of it is still there.
        seen.follow(leases(&["a", "b"]), &["b".to_owned()]);
        assert_eq!(seen.gone(&leases(&["a"])), leases(&["b"]));
    }
}
