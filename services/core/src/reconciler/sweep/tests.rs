//! How a sweep goes on.

use super::*;
use virtbus_bus::{
    Bus, ConnectConfig,
    browse::PAGE_MAX,
    jobs::KEEP,
    topology::{Mode, Wanted, apply},
};
use virtbus_testbed::{Server, until};
use virtbus_wire::Envelope;

/// A server with our streams, and what a core reads and writes there.
async fn site() -> (Server, Stores) {
    let server = Server::dev().await;
    let config = ConnectConfig {
        url: server.url.clone(),
        ..ConnectConfig::default()
    };
    let bus = until("a connection", async || Bus::connect(&config, "test").await).await;
    let made = apply(bus.jetstream(), &Wanted::default(), Mode::Apply).await;
    made.unwrap();
    (server, Stores::new(&bus, KEEP))
}

/// A whole look; in how many parts.
async fn swept(stores: &Stores, follower: &mut Follower, sweep: &mut Sweep) -> usize {
    let mut parts = 1;
    while !sweep.step(stores, follower, None).await.unwrap() {
        parts += 1;
    }
    parts
}

/// Whoever waits for a time must not wait for the end of it.
#[tokio::test]
async fn many_messages_are_looked_at_in_parts() {
    let (_server, stores) = site().await;
    for _ in 0..=2 * PAGE_MAX {
        let jetstream = stores.bus.jetstream();
        let job = jetstream.publish("storage.default.low", r#"{"task":"ping"}"#.into());
        job.await.unwrap().await.unwrap();
    }
    let mut follower = Follower::start(&stores).await.unwrap();
    let mut sweep = Sweep::default();
    for _ in 0..2 {
        let parts = swept(&stores, &mut follower, &mut sweep).await;
        // Three of that stream, one of each of the others, and what follows from them.
        assert_eq!(parts, 3 + 2 + 1);
    }
}

#[tokio::test]
async fn many_jobs_without_a_message_are_published_in_parts() {
    let (_server, stores) = site().await;
    for number in 0..=LOST_AT_ONCE {
        let id = format!("j{number}").parse().unwrap();
        let queue = "storage.default.low".to_owned();
        let now = stores.bus.now();
        let job = Record::new(id, Envelope::bare("ping"), queue.into(), now);
        stores.jobs.create(&job).await.unwrap();
    }
    let mut follower = Follower::start(&stores).await.unwrap();
    let mut sweep = Sweep::default();
    assert_eq!(swept(&stores, &mut follower, &mut sweep).await, 3 + 1);
    let newest = stores.bus.now();
    until("records that are old enough", async || {
        let age = stores.bus.now().since(newest);
        if age > AGE_MIN { Ok(()) } else { Err(age) }
    })
    .await;
    assert_eq!(swept(&stores, &mut follower, &mut sweep).await, 3 + 2 + 1);
    let page = stores.bus.browse("STORAGE", ">", 1).await.unwrap();
    assert_eq!(page.items.len(), LOST_AT_ONCE + 1);
    assert_eq!(swept(&stores, &mut follower, &mut sweep).await, 3 + 1);
}
