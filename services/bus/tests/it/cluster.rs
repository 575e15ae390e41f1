//! Three servers with the cluster configurations.

use crate::person::{Keys, Person};
use futures_util::future::join_all;
use virtbus_bus::topology::{Mode, Outcome, Report, Role, Wanted, apply};
use virtbus_bus::{Bucket, Bus, ConnectConfig, WriteError};
use virtbus_testbed::port;
use virtbus_testbed::server::{Server, copy_nats_folder};
use virtbus_testbed::watch::until;

/// Three servers that know each other; routes need ports that are known beforehand.
async fn cluster() -> (Vec<Server>, Keys) {
    let keys = Keys::new();
    let routes: Vec<String> = (0..3)
        .map(|_| format!("nats://127.0.0.1:{}", port::free()))
        .collect();
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

/// Applies a topology. Until there is a leader, requests time out or are refused; so are copies
/// until all servers have met.
async fn applied(admin: &Person, wanted: &Wanted) -> Report {
    until("a topology", async || {
        let report = apply(&admin.js, wanted, Mode::Apply).await;
        let report = report.map_err(|error| error.to_string())?;
        let refused = report.refused().next().map(|item| format!("{item:?}"));
        refused.map_or(Ok(report), Err)
    })
    .await
}

/// A topology with three copies of everything.
async fn three_copies(url: &str, keys: &Keys) {
    let admin = Person::connect(url, keys, Role::Admin).await;
    let three = Wanted {
        replicas: Some(3),
        queues: Vec::new(),
    };
    applied(&admin, &three).await;
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

    applied(&admin, &single).await;
    applied(&admin, &three).await;

    until("three copies of a stream and of its consumer", async || {
        // While they elect a leader nobody answers.
        let stream = admin.js.get_stream("STORAGE").await;
        let stream = stream.map_err(|error| error.to_string())?;
        let consumer = stream.consumer_info("storage_default_high").await;
        let consumer = consumer.map_err(|error| error.to_string())?;
        let cluster = [
            stream.cached_info().cluster.clone(),
            consumer.cluster.clone(),
        ];
        let complete = cluster.iter().flatten().all(|cluster| {
            let current = cluster.replicas.iter().filter(|peer| peer.current).count();
            cluster.leader.is_some() && current == 2
        });
        complete.then_some(()).ok_or(format!("{cluster:?}"))
    })
    .await;

    // Asking for nothing keeps the copies: a setup without the option must not lower safety.
    let report = applied(&admin, &single).await;
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
