//! Several cores.

use crate::stack::Stack;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
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
    let later = virtbus_wire::Timestamp::now().after(Duration::from_secs(3));
    let waits = json!({"id": "waits", "task": "ping", "not_before": later}).to_string();
    stack.publish("storage.default.low", waits).await;
    stack.record("waits", StateName::Waiting).await;
    first.kill();
    let began = Instant::now();
    stack
        .publish("storage.default.low", r#"{"id":"b","task":"ping"}"#)
        .await;
    stack.record("b", StateName::Queued).await;
    assert_eq!(
        stack
            .record("waits", StateName::Queued)
            .await
            .value
            .generation,
        2
    );
    stack.register("another").await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}
