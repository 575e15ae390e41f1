//! Each role does its whole work with no more than its own permissions.

use crate::person::{Person, site};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, kv};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_bus::topology::{BUCKETS, Role, ensure_consumers};
use virtbus_testbed::watch::{sequence_of, soon};

async fn bucket(person: &Person, name: &str) -> kv::Store {
    person.js.get_key_value(name).await.unwrap()
}

/// Creates, changes and reads a key: from any server, and from the leader.
async fn keeps_records(person: &Person, bucket_name: &str) {
    let store = bucket(person, bucket_name).await;
    let key = format!("of-{}", person.role);
    let revision = store.create(&key, "1".into()).await.unwrap();
    let revision = store.update(&key, "2".into(), revision).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap(), "2");
    let subject = format!("$KV.{bucket_name}.{key}");
    let leader = store.stream.get_last_raw_message_by_subject(&subject);
    assert_eq!(leader.await.unwrap().sequence, revision);
    store
        .delete_expect_revision(&key, Some(revision))
        .await
        .unwrap();
}

async fn watches(person: &Person, bucket_name: &str) {
    let store = bucket(person, bucket_name).await;
    let mut changes = store.watch_with_history(">").await.unwrap();
    let key = format!("seen-by-{}", person.role);
    if bucket_name == "workers" {
        store.put(&key, "1".into()).await.unwrap();
        soon("a change", changes.next()).await.unwrap().unwrap();
    }
    drop(changes);
    let names: Vec<_> = soon("the keys", store.keys().await.unwrap().collect()).await;
    assert!(names.iter().all(Result::is_ok));
}

/// Binds to a consumer, takes what is there and acknowledges it.
async fn takes_a_job(person: &Person, stream: &str, consumer: &str) {
    let consumer: PullConsumer = person
        .js
        .get_consumer_from_stream(consumer, stream)
        .await
        .unwrap();
    let options = pull::BatchConfig {
        batch: 1,
        expires: Some(Duration::from_secs(10)),
        ..pull::BatchConfig::default()
    };
    let inbox = person.client.new_inbox();
    let mut arriving = person.client.subscribe(inbox.clone()).await.unwrap();
    consumer.request_batch(options, inbox.into()).await.unwrap();
    let message = soon("a job", arriving.next()).await.unwrap();
    let message = jetstream::Message {
        message,
        context: person.js.clone(),
    };
    message
        .ack_with(jetstream::AckKind::Progress)
        .await
        .unwrap();
    message.double_ack().await.unwrap();
}

async fn publishes(person: &Person, subject: &'static str) {
    let sent = person.js.publish(subject, "{}".into()).await.unwrap();
    sent.await.unwrap();
}

#[tokio::test]
async fn workers_can_do_all_of_their_work() {
    let (server, keys) = site().await;
    let publisher = Person::connect(&server.url, &keys, Role::Publisher).await;
    for (role, stream, consumer, subject, buckets) in [
        (
            Role::Storage,
            "STORAGE",
            "storage_p_high",
            "storage.p.high",
            &["jobs", "disks", "media", "locks", "transfers", "workers"][..],
        ),
        (
            Role::Hypervisor,
            "HYPERVISOR",
            "hypervisor_p_low",
            "hypervisor.p.low",
            &[
                "jobs",
                "disks",
                "media",
                "domains",
                "locks",
                "hypervisors",
                "workers",
            ][..],
        ),
        (
            Role::Feedback,
            "CORE",
            "core",
            "core",
            &["jobs", "locks", "workers"][..],
        ),
    ] {
        publishes(&publisher, subject).await;
        let worker = Person::connect(&server.url, &keys, role).await;
        takes_a_job(&worker, stream, consumer).await;
        for name in buckets {
            keeps_records(&worker, name).await;
        }
        for name in ["workers", "pools"] {
            watches(&worker, name).await;
        }
        // A lock's release wakes a job of any class.
        publishes(&worker, "storage.p.low").await;
        publishes(&worker, "hypervisor.q.low").await;
        worker.no_complaints().await;
    }
    let published = publisher.js.get_key_value("jobs").await.unwrap();
    assert!(published.get("nothing").await.unwrap().is_none());
    publisher.no_complaints().await;
}

#[tokio::test]
async fn core_makes_consumers_answers_requests_and_clears_up() {
    let (server, keys) = site().await;
    let core = Person::connect(&server.url, &keys, Role::Core).await;
    let publisher = Person::connect(&server.url, &keys, Role::Publisher).await;

    let queues = ["storage.new.low".parse().unwrap()];
    assert_eq!(ensure_consumers(&core.js, &queues).await.unwrap(), queues);
    for name in BUCKETS {
        keeps_records(&core, name).await;
        watches(&core, name).await;
    }

    let mut requests = core.client.subscribe("virtbus.jobs.get").await.unwrap();
    core.no_complaints().await;
    let asking = publisher.client.request("virtbus.jobs.get", "{}".into());
    let (answer, ()) = tokio::join!(asking, async {
        let request = soon("a request", requests.next()).await.unwrap();
        let reply = request.reply.unwrap();
        core.client.publish(reply, "yes".into()).await.unwrap();
    });
    assert_eq!(answer.unwrap().payload, "yes");

    let sent = publisher.js.publish("storage.new.low", "{}".into());
    let sequence = sent.await.unwrap().await.unwrap().sequence;
    let browse = json!({"seq": 1, "batch": 10, "next_by_subj": "storage.>"});
    let browse = core
        .client
        .request("$JS.API.DIRECT.GET.STORAGE", browse.to_string().into());
    let headers = browse.await.unwrap().headers.unwrap();
    assert_eq!(sequence_of(&headers), sequence);
    let stream = core.js.get_stream("STORAGE").await.unwrap();
    assert!(stream.delete_message(sequence).await.unwrap());
    let pause = json!({"pause_until": "2126-01-01T00:00:00Z"});
    let subject = "CONSUMER.PAUSE.STORAGE.storage_new_low";
    let paused: Value = core.js.request(subject, &pause).await.unwrap();
    assert_eq!(paused["paused"], true, "{paused}");
    core.no_complaints().await;
}

#[tokio::test]
async fn an_observer_reads_and_changes_nothing() {
    let (server, keys) = site().await;
    let core = Person::connect(&server.url, &keys, Role::Core).await;
    bucket(&core, "jobs")
        .await
        .create("storage-1", "{}".into())
        .await
        .unwrap();
    let observer = Person::connect(&server.url, &keys, Role::Observer).await;
    let jobs = bucket(&observer, "jobs").await;
    assert_eq!(jobs.get("storage-1").await.unwrap().unwrap(), "{}");
    let names: Value = observer.js.request("STREAM.NAMES", &()).await.unwrap();
    assert_eq!(names["total"], 16);
    observer.no_complaints().await;
}
