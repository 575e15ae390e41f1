//! Two processes of one worker: who has its lease.

use crate::{
    probe::Probe,
    site::{Running, Site, one_slot},
};
use async_nats::jetstream::kv::Operation;
use camino::Utf8PathBuf;
use futures_util::StreamExt as _;
use tempfile::TempDir;
use virtbus_testbed::until;
use virtbus_wire::{BootId, StateName};
use virtbus_worker::ServeError;

fn folder() -> (TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

/// Ends it as SIGKILL would: nothing is given back.
async fn kill(worker: Running) {
    worker.task.abort();
    drop(worker.task.await);
}

/// Waits until a worker was refused its lease.
async fn is_refused(worker: &Running) {
    until("a refusal", async || {
        let report = worker.ready.report();
        let lease = report
            .checks
            .into_iter()
            .find(|check| check.name == "lease");
        match lease.and_then(|check| check.reason) {
            Some(reason) if reason.contains("another process") => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_boot_whose_lock_file_is_free_replaces_the_lease_at_once() {
    let (site, probe) = (Site::start().await, Probe::default());
    let (_folder, dir) = folder();
    let first = site
        .worker_in("st-1", &probe, one_slot(), Some(dir.clone()))
        .await;
    site.leased("st-1", first.boot).await;
    kill(first).await;
    let leases = site.jetstream.get_key_value("workers").await.unwrap();
    let mut changes = leases.watch("st-1").await.unwrap();
    let second = site.worker_in("st-1", &probe, one_slot(), Some(dir)).await;
    let change = changes.next().await.unwrap().unwrap();
    // Not the end of the old lease.
    assert_eq!(change.operation, Operation::Put);
    site.leased("st-1", second.boot).await;
    second.end().await;
}

#[tokio::test]
async fn another_hosts_process_of_one_name_waits_until_the_lease_is_out() {
    let (site, probe) = (Site::start().await, Probe::default());
    let ((_one, here), (_other, there)) = (folder(), folder());
    let first = site.worker_in("st-1", &probe, one_slot(), Some(here)).await;
    site.leased("st-1", first.boot).await;
    let work = ("st-1", one_slot());
    let second = site.worker_on("there", work, &probe, Some(there)).await;
    is_refused(&second).await;
    site.publish("storage.p.low", r#"{"id":"one","task":"ping"}"#)
        .await;
    site.ended("one").await;
    site.leased("st-1", first.boot).await;
    kill(first).await;
    site.end_lease("st-1").await;
    site.leased("st-1", second.boot).await;
    site.publish("storage.p.low", r#"{"id":"two","task":"ping"}"#)
        .await;
    assert_eq!(site.ended("two").await.state.name(), StateName::Succeeded);
    second.end().await;
}

#[tokio::test]
async fn a_worker_that_finds_another_boot_in_its_lease_stops() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let job = r#"{"id":"long","task":"ping","params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.low", job).await;
    let claimed = site.wait("long", &[StateName::Running]).await;
    let leases = site.leases().await;
    let other = BootId::now_v7();
    until("another boot in the lease", async || {
        let lease = leases.get_latest("st-1").await.unwrap().unwrap();
        let mut record = lease.value;
        record.boot = other;
        leases.update("st-1", &record, lease.revision).await
    })
    .await;
    let ended = worker.task.await.unwrap();
    assert!(matches!(ended, Err(ServeError::Replaced(_))), "{ended:?}");
    // Its job is the next claim's to end, and the lease the other's.
    let left = site.wait("long", &[StateName::Running]).await.value;
    assert_eq!(
        left.state.hold().map(|hold| &hold.owner),
        claimed.value.state.hold().map(|hold| &hold.owner)
    );
    assert_eq!(left.claim, 1);
    assert_eq!(probe.notes.jobs_at("effect"), Vec::<String>::new());
    site.leased("st-1", other).await;
}
