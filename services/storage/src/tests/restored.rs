//! Buckets that were put back from a copy, and are older than the pool: whoever is claimed then for
//! the first time finds what it did before. Its record alone is looked at in `cuts`, for each task.

use super::site::{Site, code};
use serde_json::{Value, json};
use virtbus_wire::{Code, catalog::DiskState};

fn new_disk() -> Value {
    json!({ "disk": "d1", "size": "4MiB" })
}

/// A disk that the job `j1` made, and that a guest has written to since.
async fn made(site: &Site) -> u64 {
    site.done("j1", "create_disk", new_disk()).await;
    site.write("d1.qcow2", "qcow2", "write -P 7 0 1M");
    site.content("d1.qcow2", "qcow2")
}

#[tokio::test]
async fn a_disk_whose_record_is_still_to_be_finished_is_found() {
    let site = Site::start().await;
    let content = made(&site).await;
    site.change("d1", |record| record.state = DiskState::Creating)
        .await;
    site.done("j1", "create_disk", new_disk()).await;
    assert_eq!(site.record("d1").await.state, DiskState::Ready);
    assert_eq!(site.content("d1.qcow2", "qcow2"), content);
}

#[tokio::test]
async fn a_disk_without_a_record_is_told_and_stays_as_it_is() {
    let site = Site::start().await;
    let content = made(&site).await;
    let there = site.disk("d1").await.unwrap();
    site.store.disks.remove(&there).await.unwrap();
    let refused = site.refused("j1", "create_disk", new_disk()).await;
    assert_eq!(code(&refused), Code::DiskExists);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.files("trash"), Vec::<String>::new());
    assert_eq!(site.content("d1.qcow2", "qcow2"), content);
}
