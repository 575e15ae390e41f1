//! What clients cost: those that don't read, and those that do nothing.

use crate::{
    bus::TestBus,
    service::{Service, token},
    socket::{Socket, tells_of},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const OWN: &str = "jobs:read:own";
/// Far less than a client may be silent.
const SPEAK_EVERY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_client_that_does_not_read_is_reset_and_costs_no_memory() {
    let bus = TestBus::start().await;
    let service = Service::start(&bus, "").await;
    let alice = token("alice", OWN);
    let mut slow = Socket::with_small_window(&service, &alice).await;
    let mut witness = Socket::subscribed(&service, &alice).await;
    // The view holds as many jobs before as after.
    let label = "x".repeat(4 << 10);
    let ids = || (0..200).map(|job| format!("j{job}"));
    bus.put_many(ids(), "alice", &label).await;
    let mut last = 0;
    let mut before = 0;
    for round in 0..36 {
        // By now it was reset, and the allocator keeps what it needs.
        if round == 12 {
            before = service.memory();
        }
        bus.put_many(ids(), "alice", &label).await;
        last = bus.put("last", "alice", "queued").await;
        let is_last = |row: &Value| row["id"] == "last" && row["seq"] == last;
        witness
            .until("the last of a round", |frame| {
                frame["jobs"]
                    .as_array()
                    .is_some_and(|rows| rows.iter().any(is_last))
            })
            .await;
    }
    let grown = service.memory().saturating_sub(before);
    println!("{grown} bytes more while a client doesn't read");
    // Nineteen megabytes went past it since.
    assert!(grown < 6 << 20, "{grown} bytes for two clients");

    let reset = slow.until("a reset", |frame| frame["t"] == "reset").await;
    assert_eq!(reset, json!({"t": "reset", "sub": 1, "reason": "overflow"}));
    while slow.rows.get("last").is_none_or(|row| row["seq"] != last) {
        slow.next().await.unwrap();
    }
    assert_eq!(slow.rows, witness.rows);
}

#[tokio::test]
async fn a_thousand_idle_clients_are_cheap() {
    const CLIENTS: u64 = 1000;
    let bus = TestBus::start().await;
    let limits = "[limits]\nsessions_per_user_max = 2000";
    let service = Service::start(&bus, limits).await;
    let alice = token("alice", OWN);
    let mut sockets = Vec::new();
    // The first ones bring what all share.
    for _ in 0..50 {
        sockets.push(Socket::subscribed(&service, &alice).await);
    }
    let before = service.memory();
    let mut spoke = Instant::now();
    for _ in 0..CLIENTS {
        sockets.push(Socket::subscribed(&service, &alice).await);
        // On a busy machine the last one comes when the first ones would have been silent too long.
        if spoke.elapsed() > SPEAK_EVERY {
            for socket in &mut sockets {
                socket.send(json!({"t": "ping", "ref": "here"})).await;
            }
            spoke = Instant::now();
        }
    }
    let each = service.memory().saturating_sub(before) / CLIENTS;
    println!("{each} bytes per idle client");
    assert!(each < 24 << 10, "{each} bytes per idle client");
    bus.put("j1", "alice", "queued").await;
    for socket in &mut sockets {
        socket
            .until("the change", |frame| tells_of(frame, "j1"))
            .await;
    }
    assert!(sockets[0].is_quiet_for(Duration::from_millis(50)).await);
}
