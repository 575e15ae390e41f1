//! Waits that end by themselves.

use crate::stack::{Stack, code};
use serde_json::json;
use std::time::Duration;
use virtbus_wire::{Event, StateName, Timestamp, state::WaitReason};

#[tokio::test]
async fn what_waits_for_room_or_for_bytes_does_not_wait_for_ever() {
    let (stack, _core) = Stack::start().await;
    let end = Timestamp::now().after(Duration::from_secs(2));
    let transfer = WaitReason::Transfer {
        received: 0,
        size: None,
        expires_at: end,
    };
    let needs = serde_json::Map::new();
    for (id, on) in [
        ("room", WaitReason::Capacity { needs }),
        ("bytes", transfer),
    ] {
        let job = json!({"id": id, "task": "ping"}).to_string();
        let seq = stack.publish("storage.default.low", job).await;
        let entry = stack.record(id, StateName::Queued).await;
        stack.jobs.change(&entry, Event::Wait(on)).await.unwrap();
        stack.bus.delete_message("STORAGE", seq).await.unwrap();
    }
    let failed = stack.record("bytes", StateName::Failed).await.value;
    assert_eq!(code(&failed), "transfer.expired");
    let asks = stack.record("room", StateName::Queued).await.value;
    assert_eq!(asks.generation, 2);
}
