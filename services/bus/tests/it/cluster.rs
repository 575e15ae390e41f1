//! Three servers with the cluster configurations.

use crate::person::{Keys, Person};
use futures_util::future::join_all;
use std::net::TcpListener;
use virtbus_bus::topology::{Mode, Outcome, Role, Wanted, apply};
use virtbus_bus::{Bucket, Bus, ConnectConfig, WriteError};
use virtbus_testbed::server::{Server, copy_nats_folder};
use virtbus_testbed::watch::until;

/// Three servers that know each other; routes need ports that are known beforehand.
async fn cluster() -> (Vec<Server>, Keys) {
    let keys = Keys::new();
    let listeners: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let routes: Vec<String> = listeners
        .iter()
        .map(|listener| format!("nats://{}", listener.local_addr().unwrap()))
        .collect();
    drop(listeners);
    let all = routes.join(",");
    let mut servers = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        copy_nats_folder(folder.path());
        std::fs::write(folder.path().join("keys.conf"), keys.conf()).unwrap();
        let config = folder
            .path()
            .join(format!("cluster/node{}.conf", index + 1));
        let arguments = ["--cluster", route.as_str(), "--routes", all.as_str()];
        servers.push(Server::start(folder, &config, &arguments).await);
    }
    (servers, keys)
}

/// A topology with three copies of everything.
async fn three_copies(url: &str, keys: &Keys) {
    let admin = Person::connect(url, keys, Role::Admin).await;
    let three = Wanted {
        replicas: Some(3),
        queues: Vec::new(),
    };
    // Until there is a leader, requests time out or are refused.
    until("a topology with three copies", async || {
        let report = apply(&admin.js, &three, Mode::Apply).await;
        let report = report.map_err(|error| error.to_string())?;
        match report.refused().next() {
            None => Ok(()),
            Some(item) => Err(format!("{item:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn of_writers_at_once_one_writes_and_the_others_are_told_of_a_conflict() {
    const WRITERS: u32 = 8;
    const ROUNDS: u32 = 20;
    let (servers, keys) = cluster().await;
    three_copies(&servers[0].url, &keys).await;
    let folder = tempfile::tempdir().unwrap();
    let nkey_file = folder.path().join("core.nk");
    std::fs::write(&nkey_file, keys.seed(Role::Core)).unwrap();
    let config = ConnectConfig {
        url: servers[0].url.clone(),
        nkey_file: Some(nkey_file),
        inbox_prefix: Some(Role::Core.inbox_prefix()),
        ..ConnectConfig::default()
    };
    let bus = Bus::connect(&config, "test").await.unwrap();
    let numbers: Bucket<u32> = Bucket::new(&bus, "locks");
    for round in 0..ROUNDS {
        let revision = numbers.slot("x.one").await.unwrap().revision;
        let write = |number: u32| {
            let numbers = &numbers;
            let number = round * WRITERS + number;
            async move { numbers.update("x.one", &number, revision).await }
        };
        let written = join_all((0..WRITERS).map(write)).await;
        // A refusal that is no conflict would be an error to whoever only lost a race.
        let fine = |outcome: &Result<u64, WriteError>| {
            matches!(outcome, Ok(_) | Err(WriteError::Conflict(_)))
        };
        assert!(written.iter().all(fine), "{written:?}");
        let winners = written.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(winners, 1, "{written:?}");
    }
}

#[tokio::test]
async fn a_cluster_elects_a_leader_and_keeps_three_copies() {
    let (servers, keys) = cluster().await;
    let admin = Person::connect(&servers[0].url, &keys, Role::Admin).await;
    let queues = vec!["storage.default.high".parse().unwrap()];
    let single = Wanted {
        replicas: None,
        queues: queues.clone(),
    };
    let three = Wanted {
        replicas: Some(3),
        queues,
    };

    // Until there is a leader, requests time out or are refused.
    until("a topology with one copy each", async || {
        let report = apply(&admin.js, &single, Mode::Apply)
            .await
            .map_err(|error| error.to_string())?;
        match report.refused().next() {
            None => Ok(()),
            Some(item) => Err(format!("{item:?}")),
        }
    })
    .await;

    let report = apply(&admin.js, &three, Mode::Apply).await.unwrap();
    assert_eq!(report.refused().count(), 0, "{report}");

    until("three copies of a stream and of its consumer", async || {
        let stream = admin.js.get_stream("STORAGE").await.unwrap();
        let consumer = stream.consumer_info("storage_default_high").await.unwrap();
        let cluster = [
            stream.cached_info().cluster.clone(),
            consumer.cluster.clone(),
        ];
        let complete = cluster.iter().flatten().all(|cluster| {
            let current = cluster.replicas.iter().filter(|peer| peer.current).count();
            cluster.leader.is_some() && current == 2
        });
        complete.then_some(()).ok_or(cluster)
    })
    .await;

    // Asking for nothing keeps the copies: a setup without the option must not lower safety.
    let report = apply(&admin.js, &single, Mode::Apply).await.unwrap();
    assert!(
        report
            .items
            .iter()
            .all(|item| item.outcome == Outcome::Same),
        "{report}"
    );
    let stream = admin.js.get_stream("KV_jobs").await.unwrap();
    assert_eq!(stream.cached_info().config.num_replicas, 3);

    let publisher = Person::connect(&servers[2].url, &keys, Role::Publisher).await;
    let acknowledged = publisher.js.publish("storage.default.high", "{}".into());
    acknowledged.await.unwrap().await.unwrap();
}
