//! Several cores.

use crate::stack::Stack;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use virtbus_testbed::until;
use virtbus_wire::StateName;

/// The lease, the next beat, and room for a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn when_the_leading_core_is_killed_the_other_goes_on() {
    let (stack, mut first) = Stack::start().await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    stack.record("a", StateName::Queued).await;
    let _second = stack.core("core-b");
    // Long enough that it's seen to wait, and that the first core doesn't live to see its end.
    let later = virtbus_wire::Timestamp::now().after(Duration::from_secs(15));
    let waits = json!({"id": "waits", "task": "ping", "not_before": later}).to_string();
    stack.publish("storage.default.low", waits).await;
    stack.record("waits", StateName::Waiting).await;
    first.kill();
    let began = Instant::now();
    stack
        .publish("storage.default.low", r#"{"id":"b","task":"ping"}"#)
        .await;
    stack.record("b", StateName::Queued).await;
    println!("another core leads after {:?}", began.elapsed());
    stack.register("another").await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(
        stack
            .record("waits", StateName::Queued)
            .await
            .value
            .generation,
        2
    );
}

#[tokio::test]
async fn two_cores_at_once_do_everything_once() {
    let (stack, _first) = Stack::start().await;
    let _second = stack.core("core-b");
    until("both answer", async || {
        let mut replies = stack.client().subscribe("_INBOX.both").await.unwrap();
        stack.client().flush().await.unwrap();
        let ping = stack
            .client()
            .publish_with_reply("$SRV.PING.virtbus", "_INBOX.both", "".into());
        ping.await.unwrap();
        let mut ids = std::collections::BTreeSet::new();
        let wait = Duration::from_millis(500);
        while let Ok(Some(reply)) =
            tokio::time::timeout(wait, futures_util::StreamExt::next(&mut replies)).await
        {
            let said: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
            ids.insert(said["id"].to_string());
        }
        if ids.len() == 2 { Ok(()) } else { Err(ids) }
    })
    .await;
    // What both could do at the same time: each of these ends in one state, published once.
    for number in 0..50 {
        let first = json!({"id": format!("a{number}"), "task": "ping"}).to_string();
        let after = [format!("a{number}")];
        let next = json!({"id": format!("b{number}"), "task": "ping", "after": after});
        stack.publish("storage.default.low", first).await;
        stack.publish("storage.default.low", next.to_string()).await;
    }
    // Records are made many at a time: the last one's may come before another's.
    for number in 0..50 {
        let id = format!("b{number}");
        stack.record(&id, StateName::Waiting).await;
    }
    for number in 0..50 {
        let ask = json!({"id": format!("a{number}")});
        let answer = stack.ask::<serde_json::Value>("virtbus.jobs.cancel", &ask);
        assert_eq!(answer.await.unwrap(), json!({"outcome": "cancelled"}));
    }
    for number in 0..50 {
        let dropped = stack
            .record(&format!("b{number}"), StateName::Cancelled)
            .await;
        assert_eq!(dropped.value.generation, 1);
        assert_eq!(
            dropped.value.timeline.len(),
            3,
            "{:?}",
            dropped.value.timeline
        );
    }
    stack.empty("STORAGE").await;
}
