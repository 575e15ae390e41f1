use super::site::{Site, code};
use serde_json::json;
use virtbus_wire::{Code, catalog::DiskState};
use virtbus_worker::Stop;

/// `d2` on top of `d1`, both in the trash.
async fn trashed(site: &Site) {
    site.filled_disk("d1").await;
    let overlay = json!({ "disk": "d2", "backing": "d1" });
    site.done("make-d2", "create_disk", overlay).await;
    site.write("d2.qcow2", "qcow2", "write -P 9 2M 1M");
    let delete = json!({ "disk": "d1", "tree": true });
    site.done("delete", "delete_disk", delete).await;
}

#[tokio::test]
async fn a_tree_comes_back_from_the_bottom_up_as_it_was() {
    let site = Site::start().await;
    trashed(&site).await;
    let early = site
        .refused("j1", "restore_disk", json!({ "disk": "d2" }))
        .await;
    assert_eq!(code(&early), Code::DiskWrongState);
    assert_eq!(early.detail["disk"], "d1");
    for disk in ["d1", "d2", "d2"] {
        let (job, params) = (format!("j-{disk}"), json!({ "disk": disk }));
        let done = site.done(&job, "restore_disk", params).await;
        assert!(done["actual_size"].as_u64().unwrap() > 0);
        assert_eq!(site.state(disk).await, Some(DiskState::Ready));
    }
    assert_eq!(site.files("trash"), Vec::<String>::new());
    site.write("d2.qcow2", "qcow2", "read -P 9 2M 1M");
    site.write("d2.qcow2", "qcow2", "read -P 7 1M 1M");
}

#[tokio::test]
async fn what_is_not_in_the_trash_is_not_brought_back() {
    let site = Site::start().await;
    trashed(&site).await;
    let restore = json!({ "disk": "d1" });
    std::fs::write(site.path("disks/d1.qcow2"), "mine").unwrap();
    let taken = site.refused("j1", "restore_disk", restore.clone()).await;
    assert_eq!(code(&taken), Code::DiskExists);
    std::fs::remove_file(site.path("disks/d1.qcow2")).unwrap();
    let name = site.files("trash")[0].clone();
    std::fs::remove_file(site.path("trash").join(name)).unwrap();
    let gone = site.refused("j2", "restore_disk", restore).await;
    assert_eq!(code(&gone), Code::DiskWrongState);
    assert_eq!(site.state("d1").await, Some(DiskState::Trashed));
    let unknown = site.refused("j3", "restore_disk", json!({ "disk": "d9" }));
    assert_eq!(code(&unknown.await), Code::DiskNotFound);
}

#[tokio::test]
async fn what_lies_in_another_pool_is_not_said_to_be_so_already() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.filled_medium("m1").await;
    let elsewhere = || "other".parse().unwrap();
    let (disk, medium) = (json!({ "disk": "d1" }), json!({ "media": "m1" }));
    for (task, params, state) in [
        ("restore_disk", &disk, DiskState::Ready),
        ("unarchive_disk", &disk, DiskState::Ready),
        ("archive_disk", &disk, DiskState::Archived),
        ("delete_disk", &disk, DiskState::Trashed),
        ("delete_media", &medium, DiskState::Trashed),
    ] {
        site.change("d1", |record| {
            record.pool = elsewhere();
            record.state = state;
        })
        .await;
        let there = site.medium("m1").await.unwrap();
        let mut record = there.record.clone();
        record.pool = elsewhere();
        record.state = state;
        site.store.media.update(&there, record).await.unwrap();
        let ended = site.run(&site.job(task, task, params.clone())).await;
        let Err(Stop::Failed(error)) = ended else {
            panic!("{task}: {ended:?}");
        };
        assert_eq!(code(&error), Code::DiskWrongPool, "{task}");
        assert_eq!(error.detail["pool"], "other", "{task}");
    }
}

#[tokio::test]
async fn a_file_that_took_the_place_is_left_alone() {
    let site = Site::start().await;
    trashed(&site).await;
    let job = site.job("j1", "restore_disk", json!({ "disk": "d1" }));
    site.die(&job, crate::task::Step::Intend).await;
    std::fs::write(site.path("disks/d1.qcow2"), "mine").unwrap();
    let later = site.claimed(
        json!({ "id": "j1", "task": "restore_disk", "params": { "disk": "d1" } }),
        2,
    );
    assert!(site.run(&later).await.is_err());
    assert_eq!(std::fs::read(site.path("disks/d1.qcow2")).unwrap(), b"mine");
    assert_eq!(site.files("trash").len(), 2);
}
