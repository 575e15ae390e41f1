use super::site::{Site, code, failed};
use serde_json::json;
use virtbus_wire::{Code, Queue};

#[tokio::test]
async fn a_ping_says_who_answered_and_leaves_nothing() {
    let site = Site::start().await;
    let done = site.done("j1", "ping", json!({ "sleep_ms": 1 })).await;
    assert_eq!(done["worker"], "st-1");
    assert_eq!(done["boot"], json!(site.owner.boot));
    assert_eq!(done["checks"], json!(["pool default"]));
    assert_eq!(site.files("disks"), Vec::<String>::new());
}

#[tokio::test]
async fn a_ping_fails_when_asked_to_and_when_the_pool_is_away() {
    let site = Site::start().await;
    let refused = site.refused("j1", "ping", json!({ "fail": true })).await;
    assert_eq!(code(&refused), Code::ToolFailed);
    std::fs::remove_file(site.path(".virtbus-pool")).unwrap();
    let refused = site.refused("j2", "ping", json!({})).await;
    assert_eq!(code(&refused), Code::PoolUnreachable);
}

#[tokio::test]
async fn a_ping_of_two_pools_needs_both() {
    let site = Site::start().await;
    let mut job = site.job("j1", "ping", json!({}));
    let queue: Queue = "storage.default_third.low".parse().unwrap();
    job.record.queue = queue.into();
    assert_eq!(code(&failed(site.run(&job).await)), Code::PoolNotFound);
}

#[tokio::test]
async fn tasks_that_are_not_known_are_refused() {
    let site = Site::start().await;
    let refused = site
        .run(&site.job("j1", "download", json!({ "disk": "d1" })))
        .await;
    assert_eq!(code(&failed(refused)), Code::JobUnknownTask);
}
