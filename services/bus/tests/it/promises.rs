//! What the streams and buckets promise, once they are set up.
//!
//! Whoever subscribes on the connection that publishes misses nothing: the server reads its lines
//! in order.

use crate::topology::set_up;
use async_nats::jetstream::kv;
use futures_util::StreamExt;
use std::time::Duration;
use virtbus_bus::{lease::LEASE, topology::BUCKETS};
use virtbus_testbed::watch::{sequence_of, soon};

#[tokio::test]
async fn a_published_job_is_announced_with_its_sequence() {
    let (_server, js) = set_up(&[]).await;
    let mut submitted = js.client().subscribe("submitted.>").await.unwrap();
    for subject in ["storage.p.high", "hypervisor.hv-1.low", "core"] {
        let acknowledged = js.publish(subject, "{}".into()).await.unwrap();
        let sequence = acknowledged.await.unwrap().sequence;
        let message = soon("the announcement", submitted.next()).await.unwrap();
        assert_eq!(message.subject.as_str(), format!("submitted.{subject}"));
        assert_eq!(message.payload, "{}");
        let headers = message.headers.unwrap();
        assert_eq!(sequence_of(&headers), sequence);
    }
}

#[tokio::test]
async fn a_record_s_changes_and_its_end_are_events() {
    let (_server, js) = set_up(&[]).await;
    let mut events = js.client().subscribe("events.jobs.*").await.unwrap();
    let jobs = js.get_key_value("jobs").await.unwrap();
    let ttl = Duration::from_secs(1);
    let revision = jobs
        .create_with_ttl("storage-1", "{}".into(), ttl)
        .await
        .unwrap();
    let made = soon("the change", events.next()).await.unwrap();
    assert_eq!(made.subject.as_str(), "events.jobs.storage-1");
    let headers = made.headers.unwrap();
    assert_eq!(sequence_of(&headers), revision);

    let end = soon("the end of the record", events.next()).await.unwrap();
    assert!(end.payload.is_empty());
    assert_eq!(end.subject.as_str(), "events.jobs.storage-1");
}

#[tokio::test]
async fn a_bucket_keeps_one_revision_and_refuses_a_stale_one() {
    let (_server, js) = set_up(&[]).await;
    for bucket in BUCKETS {
        let store = js.get_key_value(bucket).await.unwrap();
        let first = store.create("k", "1".into()).await.unwrap();
        store.update("k", "2".into(), first).await.unwrap();
        let stale = store.update("k", "3".into(), first).await.unwrap_err();
        assert_eq!(stale.kind(), kv::UpdateErrorKind::WrongLastRevision);
        assert_eq!(
            store.history("k").await.unwrap().count().await,
            1,
            "{bucket}"
        );
    }
}

#[tokio::test]
async fn a_full_queue_refuses_its_publisher_and_no_other() {
    let (_server, js) = set_up(&[]).await;
    let mut config = js
        .get_stream("STORAGE")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_messages_per_subject = 1;
    js.update_stream(config).await.unwrap();
    let publish =
        async |subject: &'static str| js.publish(subject, "{}".into()).await.unwrap().await;
    publish("storage.p.low").await.unwrap();
    publish("storage.p.low").await.unwrap_err();
    publish("storage.q.low").await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_and_is_told() {
    let (_server, js) = set_up(&[]).await;
    let mut stream = js.get_stream("KV_workers").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    assert_eq!(config.max_age, LEASE);
    // The same as with the real one, sooner.
    config.max_age = Duration::from_secs(2);
    config.duplicate_window = config.max_age;
    js.update_stream(config).await.unwrap();
    let workers = js.get_key_value("workers").await.unwrap();
    let mut changes = workers.watch_all().await.unwrap();
    workers.put("storage-hv1", "{}".into()).await.unwrap();
    let lease = soon("the lease", changes.next()).await.unwrap().unwrap();
    assert_eq!(lease.operation, kv::Operation::Put);

    let end = soon("the end of the lease", changes.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(end.key, "storage-hv1");
    assert_ne!(end.operation, kv::Operation::Put);
    assert!(workers.get("storage-hv1").await.unwrap().is_none());
    workers.create("storage-hv1", "{}".into()).await.unwrap();
}
