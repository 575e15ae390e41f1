//! Each service dies and comes back alone, and the jobs go on.

use serde_json::{Value, json};
use virtbus_testbed::until;
use virtbus_tests::{Bus, Service, Socket, Stack, code_of, http, state_of};

const HIGH: &str = "storage.default.high";

/// A job that is published now comes to its end, whatever has just happened.
async fn jobs_go_on(bus: &Bus) {
    bus.ping(HIGH).await;
}

async fn is_ready(http: &str) {
    until("ready", async || match http::get(http, "/readyz").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(other.map(|answer| answer.body)),
    })
    .await;
}

#[tokio::test]
async fn without_feedback_jobs_go_on_and_a_browser_then_sees_what_it_missed() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    let (_, welcome) = Socket::open(&stack.ready.http, &stack.ready.token).await;
    stack.kill(Service::Feedback).await;
    let missed = bus.submit(HIGH, "ping", json!({})).await;
    bus.end_of(&missed).await;
    stack.start_again(Service::Feedback);
    is_ready(&stack.ready.http).await;
    let (token, at) = (&stack.ready.token, &welcome["seq"]);
    let (mut socket, again) = Socket::resume(&stack.ready.http, token, &welcome["epoch"], at).await;
    assert_eq!(again["epoch"], welcome["epoch"], "the bucket is the same");
    socket.send(&json!({"t": "sub", "id": 1})).await;
    socket.until_job(1, &missed, "succeeded").await;
    let next = bus.submit(HIGH, "ping", json!({})).await;
    socket.until_job(1, &next, "succeeded").await;
}

#[tokio::test]
async fn without_core_known_jobs_go_on_and_the_others_when_it_is_back() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    stack.kill(Service::Core).await;
    jobs_go_on(&bus).await;
    // Only core ends what no worker takes.
    let lost = bus.submit("storage.nobody.high", "ping", json!({})).await;
    jobs_go_on(&bus).await;
    assert_eq!(bus.record(&lost).await, None);
    stack.start_again(Service::Core);
    let record = bus.end_of(&lost).await;
    assert_eq!(code_of(&record), "queue.unknown", "{record:#}");
    jobs_go_on(&bus).await;
}

#[tokio::test]
async fn when_the_server_dies_acknowledged_jobs_are_there_and_all_services_come_back() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    stack.kill(Service::Storage).await;
    let job = json!({"id": "kept", "task": "create_disk", "params": {"disk": "kept", "size": 512}});
    bus.publish(HIGH, &job).await;
    stack.kill(Service::Nats).await;
    stack.start_again(Service::Nats);
    let bus = stack.bus().await;
    stack.start_again(Service::Storage);
    let record = bus.end_of("kept").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    jobs_go_on(&bus).await;
    bus.ping(&format!("hypervisor.{}.default", stack.ready.hypervisor))
        .await;
    let unknown = bus.run("storage.nobody.low", "ping", json!({})).await;
    assert_eq!(
        code_of(&unknown),
        "queue.unknown",
        "core is back: {unknown:#}"
    );
    is_ready(&stack.ready.http).await;
    let (mut socket, _) = Socket::open(&stack.ready.http, &stack.ready.token).await;
    socket.send(&json!({"t": "sub", "id": 1})).await;
    socket.until_job(1, "kept", "succeeded").await;
    let mut survivors = stack.dead();
    survivors.retain(|service| !matches!(service, Service::Nats | Service::Storage));
    assert_eq!(survivors, [], "nobody else ended");
}

#[tokio::test]
async fn without_the_hypervisor_service_its_jobs_wait_and_others_go_on() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    let subject = format!("hypervisor.{}.default", stack.ready.hypervisor);
    bus.ping(&subject).await;
    stack.kill(Service::Hypervisor).await;
    let waits = bus.submit(&subject, "ping", json!({})).await;
    jobs_go_on(&bus).await;
    let record = bus.once(&waits, "registered", |_| true).await;
    assert_eq!(state_of(&record), "queued", "{record:#}");
    stack.start_again(Service::Hypervisor);
    let record = bus.end_of(&waits).await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
}

#[tokio::test]
async fn a_stack_that_was_stopped_starts_where_it_stopped() {
    let stack = Stack::start().await;
    let params = json!({"disk": "kept", "size": "1MiB"});
    let bus = stack.bus().await;
    bus.succeed(HIGH, "create_disk", params).await;
    let pool = json!({"pool": "default", "default": true, "weight": 7, "trash_keep": "1d"});
    let changed = bus.ask("virtbus.pools.register", &pool).await;
    assert_eq!(changed.unwrap()["weight"], 7);
    let before = stack.ready.clone();
    let again = stack.restart().await;
    assert_ne!(before.pids, again.ready.pids, "all of it is new");
    assert_eq!(before.pool_root, again.ready.pool_root);
    let bus = again.bus().await;
    let named = json!({"pool": "default"});
    let pool = bus.ask("virtbus.pools.get", &named).await.unwrap();
    assert_eq!(
        (&pool["weight"], &pool["trash_keep"]),
        (&json!(7), &json!("1d"))
    );
    assert_eq!(pool["transfer_url"], again.ready.transfer);
    assert_eq!(
        bus.disk("kept").await.map(|disk| disk["state"].clone()),
        Some(json!("ready"))
    );
    let params = json!({"disk": "kept", "size": "2MiB"});
    let result: Value = bus
        .succeed("storage.default.default", "resize", params)
        .await;
    assert_eq!(result["virtual_size"], 2 << 20);
}
