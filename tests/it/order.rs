//! Priorities: the more urgent first, and in order within one.

use serde_json::json;
use virtbus_testbed::until;
use virtbus_tests::{Bus, Service, Stack, is_final, state_of};

/// One slot, so that the order of starts is the order of takes.
const ONE_SLOT: [(&str, &str); 2] = [
    ("VIRTBUS__WORK__SLOTS", "1"),
    ("VIRTBUS__WORK__RESERVED_HIGH", "0"),
];

/// As they are published.
const JOBS: [(&str, &str); 10] = [
    ("low-1", "low"),
    ("default-1", "default"),
    ("low-2", "low"),
    ("high-1", "high"),
    ("default-2", "default"),
    ("high-2", "high"),
    ("low-3", "low"),
    ("high-3", "high"),
    ("default-3", "default"),
    ("low-4", "low"),
];

/// The server has noticed that the worker is gone: else it would still give it the first jobs, and
/// these would come again behind all others.
async fn nobody_asks(bus: &Bus) {
    let stream = bus.jetstream.get_stream("STORAGE").await.unwrap();
    for priority in ["high", "default", "low"] {
        let consumer = format!("storage_default_{priority}");
        until("nobody asks for jobs", async || {
            let info = stream.consumer_info(&consumer).await;
            match info.map_err(|error| error.to_string())?.num_waiting {
                0 => Ok(()),
                asking => Err(asking.to_string()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn ten_jobs_that_wait_for_their_worker_come_out_in_the_order_of_their_priorities() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    stack.kill(Service::Storage).await;
    nobody_asks(&bus).await;
    let events = bus.events().await;
    for (id, priority) in JOBS {
        let subject = format!("storage.default.{priority}");
        bus.publish(&subject, &json!({"id": id, "task": "ping"}))
            .await;
    }
    // Each is known although nobody can take it.
    for (id, _) in JOBS {
        let record = bus.once(id, "registered", |_| true).await;
        assert_eq!(state_of(&record), "queued", "{record:#}");
    }
    stack.start_again_with(Service::Storage, &ONE_SLOT);
    for (id, _) in JOBS {
        let record = bus.end_of(id).await;
        assert!(
            is_final(&record) && state_of(&record) == "succeeded",
            "{record:#}"
        );
    }
    let mut started: Vec<String> = Vec::new();
    for change in events.seen() {
        if change.state() == "running" && !started.contains(&change.id) {
            started.push(change.id);
        }
    }
    let mut wanted: Vec<&str> = JOBS.iter().map(|(id, _)| *id).collect();
    let rank = |id: &str| {
        ["high", "default", "low"]
            .iter()
            .position(|p| id.starts_with(p))
    };
    wanted.sort_by_key(|id| rank(id));
    assert_eq!(started, wanted);
}
