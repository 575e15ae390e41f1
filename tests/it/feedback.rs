//! What a browser sees over its websocket, and what it doesn't.

use crate::shared;
use serde_json::{Value, json};
use virtbus_tests::http;
use virtbus_tests::socket::Socket;
use virtbus_tests::{Bus, cli};

const HIGH: &str = "storage.default.high";

async fn ping_of(bus: &Bus, id: &str, user: &str) {
    let job = json!({"id": id, "task": "ping", "user": user, "tenant": "acme"});
    bus.publish(HIGH, &job).await;
}

#[tokio::test]
async fn alice_never_sees_what_is_bobs() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let http = &stack.ready.http;
    ping_of(&bus, "fb-bob-1", "fb-bob").await;
    ping_of(&bus, "fb-alice-1", "fb-alice").await;
    bus.end_of("fb-bob-1").await;
    let token = cli::token(&stack, "fb-alice", "acme", "jobs:read:own").await;
    let (mut alice, welcome) = Socket::open(http, &token).await;
    assert_eq!(welcome["user"]["sub"], "fb-alice");
    alice.send(&json!({"t": "sub", "id": 1})).await;
    alice
        .send(&json!({"t": "sub", "id": 2, "filter": {"job": ["fb-bob-1", "fb-bob-2"]}}))
        .await;
    let token = cli::token(&stack, "fb-bob", "acme", "jobs:read:own").await;
    let (mut bob, _) = Socket::open(http, &token).await;
    bob.send(&json!({"t": "sub", "id": 1})).await;
    bob.until_job(1, "fb-bob-1", "succeeded").await;
    ping_of(&bus, "fb-bob-2", "fb-bob").await;
    bob.until_job(1, "fb-bob-2", "succeeded").await;
    // What came before this one would have been seen before it.
    ping_of(&bus, "fb-alice-2", "fb-alice").await;
    alice.until_job(1, "fb-alice-1", "succeeded").await;
    alice.until_job(1, "fb-alice-2", "succeeded").await;
    let text = Value::from(alice.frames.clone()).to_string();
    assert!(!text.contains("fb-bob"), "{text}");
    let text = Value::from(bob.frames).to_string();
    assert!(!text.contains("fb-alice"), "{text}");

    let token = cli::token(&stack, "fb-boss", "acme", "jobs:read:tenant").await;
    let (mut boss, _) = Socket::open(http, &token).await;
    boss.send(&json!({"t": "sub", "id": 1})).await;
    boss.until_job(1, "fb-alice-2", "succeeded").await;
    boss.until_job(1, "fb-bob-2", "succeeded").await;
    let token = cli::token(&stack, "fb-boss", "other", "jobs:read:tenant").await;
    let (mut stranger, _) = Socket::open(http, &token).await;
    stranger.send(&json!({"t": "sub", "id": 1})).await;
    stranger
        .until("the snapshot", |frame| {
            frame["t"] == "jobs" && frame["more"] != true
        })
        .await;
    assert!(stranger.rows.is_empty(), "{:#?}", stranger.rows);
}

#[tokio::test]
async fn nobody_gets_in_without_a_token_of_ours() {
    let stack = shared().await;
    let http = &stack.ready.http;
    let token = &stack.ready.token;
    let forged = format!("{}x", &token[..token.len() - 1]);
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.";
    for token in ["", "nonsense", &forged, unsigned] {
        let mut socket = Socket::connect(http).await;
        socket
            .send(&json!({"t": "hello", "v": 1, "token": token}))
            .await;
        assert_eq!(socket.until_closed().await, 4401, "{token}");
    }
    let ended = ["token", "--user", "late", "--ttl", "1s"];
    let ended = cli::virtbus(&stack, &ended).await.ok();
    let mut socket = Socket::connect(http).await;
    socket
        .send(&json!({"t": "hello", "v": 1, "token": ended.out.trim()}))
        .await;
    // Within the leeway it's let in, then told that it ends, then closed.
    assert_eq!(socket.until_closed().await, 4401);
}

#[tokio::test]
async fn wrong_beginnings_close_with_their_codes() {
    let stack = shared().await;
    let (http, token) = (&stack.ready.http, &stack.ready.token);
    let cases = [
        (json!({"t": "hello", "v": 99, "token": token}), 4406),
        (json!({"t": "nonsense"}), 4400),
        (json!([1, 2]), 4400),
    ];
    for (frame, code) in cases {
        let mut socket = Socket::connect(http).await;
        socket.send(&frame).await;
        assert_eq!(socket.until_closed().await, code, "{frame}");
    }
    let mut silent = Socket::connect(http).await;
    assert_eq!(silent.until_closed().await, 4408, "who says nothing");
}

#[tokio::test]
async fn a_resumed_browser_gets_what_changed_since_and_no_more() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let (http, token) = (&stack.ready.http, &stack.ready.token);
    ping_of(&bus, "fb-before", "fb-resume").await;
    let filter = json!({"job": ["fb-before", "fb-after"]});
    let sub = json!({"t": "sub", "id": 1, "filter": filter});
    let (mut first, welcome) = Socket::open(http, token).await;
    first.send(&sub).await;
    let row = first.until_job(1, "fb-before", "succeeded").await;
    drop(first);
    ping_of(&bus, "fb-after", "fb-resume").await;
    bus.end_of("fb-after").await;
    let (mut again, welcomed) = Socket::resume(http, token, &welcome["epoch"], &row["seq"]).await;
    assert_eq!(welcomed["resumed"], true, "{welcomed}");
    // What it holds it doesn't ask for again.
    let mut rest = sub.clone();
    rest["snapshot"] = json!(false);
    again.send(&rest).await;
    again.until_job(1, "fb-after", "succeeded").await;
    assert_eq!(
        again.rows.len(),
        1,
        "the earlier one isn't sent again: {:#?}",
        again.rows
    );

    let (_, other) = Socket::resume(http, token, &json!("another"), &row["seq"]).await;
    assert_eq!(other["resumed"], false, "another epoch begins anew");
    let beyond = json!(u64::MAX >> 11);
    let (_, other) = Socket::resume(http, token, &welcome["epoch"], &beyond).await;
    assert_eq!(
        other["resumed"], false,
        "a cursor beyond the end begins anew"
    );
}

#[tokio::test]
async fn a_job_that_no_longer_fits_leaves_the_list() {
    let stack = shared().await;
    let bus = stack.bus().await;
    let (mut socket, _) = Socket::open(&stack.ready.http, &stack.ready.token).await;
    let filter = json!({"state": ["queued", "waiting", "running"], "labels": {"test": "leaves"}});
    socket
        .send(&json!({"t": "sub", "id": 3, "filter": filter}))
        .await;
    let job = json!({"id": "fb-leaves", "task": "ping", "labels": {"test": "leaves"},
        "params": {"sleep_ms": 60_000}});
    bus.publish(HIGH, &job).await;
    // It runs until that was seen, however long it takes.
    socket.until_job(3, "fb-leaves", "running").await;
    let cancel = json!({"id": "fb-leaves"});
    bus.ask("virtbus.jobs.cancel", &cancel).await.unwrap();
    let left = |frame: &Value| {
        frame["left"]
            .as_array()
            .is_some_and(|left| left.contains(&json!("fb-leaves")))
    };
    socket.until("it leaves", left).await;
    assert!(socket.rows.is_empty());
}

#[tokio::test]
async fn the_console_is_there_and_the_rest_asks_for_a_token() {
    let stack = shared().await;
    let page = http::get(&stack.ready.http, "/").await.unwrap();
    assert_eq!(page.status, 200);
    assert!(
        page.head.to_lowercase().contains("content-type: text/html"),
        "{}",
        page.head
    );
    let metrics = http::get(&stack.ready.http, "/metrics").await.unwrap();
    assert_eq!(metrics.status, 401, "{}", metrics.body);
    let bearer = format!("Authorization: Bearer {}\r\n", stack.ready.token);
    let metrics = http::request(&stack.ready.http, "GET", "/metrics", &bearer)
        .await
        .unwrap();
    assert_eq!(metrics.status, 200, "{}", metrics.body);
    assert!(
        metrics.body.contains("virtbus_build_info"),
        "{}",
        metrics.body
    );
}
