use super::site::Site;
use crate::task::Step;
use serde_json::json;
use virtbus_wire::catalog::DiskState;

#[tokio::test]
async fn what_dead_claims_left_is_removed_at_start_and_nothing_else() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1", "to": "d2", "format": "raw" });
    let envelope = |id: &str| json!({ "id": id, "task": "convert", "params": params });
    for (id, claim) in [("gone", 1), ("older", 1), ("lives", 2)] {
        let job = site.claimed(envelope(id), claim);
        site.die(&job, Step::Work).await;
        if id != "gone" {
            let mut record = job.record.clone();
            record.claim = 2;
            site.jobs.create(&record).await.unwrap();
        }
    }
    assert_eq!(site.files("disks").len(), 4);
    site.store.sweep(&site.jobs).await.unwrap();
    assert_eq!(site.files("disks"), [".lives.2.d2.part", "d1.qcow2"]);
}

#[tokio::test]
async fn the_trash_keeps_what_was_not_deleted_for_good() {
    let site = Site::start().await;
    for disk in ["d1", "d2"] {
        site.filled_disk(disk).await;
        site.done(&format!("j-{disk}"), "delete_disk", json!({ "disk": disk }))
            .await;
    }
    site.change("d2", |record| record.state = DiskState::Deleted)
        .await;
    site.store.sweep(&site.jobs).await.unwrap();
    assert_eq!(site.files("trash"), ["disk.d1.j-d1.1"]);
}
