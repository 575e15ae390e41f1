//! Workers that were told to take no more.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use virtbus_bus::{Bucket, lease};
use virtbus_testbed::until;
use virtbus_wire::{
    StateName, Timestamp,
    catalog::{QueueRecord, WorkerRecord},
};

#[tokio::test]
async fn a_drained_worker_finishes_what_runs_and_takes_nothing_until_it_is_undrained() {
    let (site, probe) = (Site::start().await, Probe::default());
    let bus = site.bus().await;
    let queues: Bucket<QueueRecord> = Bucket::new(&bus, "queues");
    let workers: Bucket<WorkerRecord> = Bucket::new(&bus, lease::BUCKET);
    let drained = QueueRecord {
        paused: true,
        by: Some("alice".to_owned()),
        reason: None,
        at: Timestamp::now(),
    };
    let tells = async |draining: bool, busy: u32| {
        until(
            &format!("draining: {draining}, {busy} run"),
            async || match workers.get_latest("st-1").await {
                Ok(Some(entry)) if (entry.value.draining, entry.value.busy) == (draining, busy) => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    };
    // It's told before it starts, and takes nothing.
    let revision = queues.put("_worker.st-1", &drained).await.unwrap();
    let worker = site.worker("st-1", &probe, one_slot()).await;
    probe.hold("j");
    site.publish("storage.p.low", r#"{"id":"j","task":"ping"}"#)
        .await;
    tells(true, 0).await;
    assert!(probe.notes.jobs_at("run").is_empty());
    queues.remove("_worker.st-1", revision).await.unwrap();
    site.wait("j", &[StateName::Running]).await;
    // While something runs: that goes on, and nothing follows.
    tells(false, 1).await;
    queues.put("_worker.st-1", &drained).await.unwrap();
    site.publish("storage.p.low", r#"{"id":"next","task":"ping"}"#)
        .await;
    tells(true, 1).await;
    probe.let_go("j");
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    tells(true, 0).await;
    assert_eq!(probe.notes.jobs_at("run"), ["j"]);
    assert!(!worker.task.is_finished(), "it stays up");
    let entry = queues.get_latest("_worker.st-1").await.unwrap().unwrap();
    queues.remove("_worker.st-1", entry.revision).await.unwrap();
    assert_eq!(site.ended("next").await.state.name(), StateName::Succeeded);
    worker.end().await;
}
