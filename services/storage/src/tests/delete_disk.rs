use super::site::{Site, Told, code};
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
};
use virtbus_worker::process;

/// `d1` with `d2` and `d3` on top of it, and `d4` on top of `d3`.
async fn tree(site: &Site) {
    site.filled_disk("d1").await;
    for (disk, backing) in [("d2", "d1"), ("d3", "d1"), ("d4", "d3")] {
        let params = json!({ "disk": disk, "backing": backing });
        site.done(&format!("make-{disk}"), "create_disk", params)
            .await;
    }
}

#[tokio::test]
async fn a_deleted_disk_is_in_the_trash_by_default() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let done = site
        .done("j1", "delete_disk", json!({ "disk": "d1" }))
        .await;
    assert_eq!(done["freed"], 0);
    assert_eq!(site.files("disks"), Vec::<String>::new());
    assert_eq!(site.files("trash"), ["disk.d1.j1.1"]);
    let record = site.record("d1").await;
    assert_eq!(record.state, DiskState::Trashed);
    assert_eq!(record.owner_job, Some("j1".parse().unwrap()));
    // Already so is success; so is going further.
    site.done("j2", "delete_disk", json!({ "disk": "d1" }))
        .await;
    let params = json!({ "disk": "d1", "mode": "unlink" });
    let done = site.done("j3", "delete_disk", params).await;
    assert!(done["freed"].as_u64().unwrap() > 1 << 20);
    assert_eq!(site.files("trash"), Vec::<String>::new());
    assert_eq!(site.state("d1").await, Some(DiskState::Deleted));
}

#[tokio::test]
async fn a_disk_that_is_gone_stays_gone() {
    let site = Site::start().await;
    for (disk, mode) in [("d1", "unlink"), ("d2", "wipe")] {
        site.filled_disk(disk).await;
        let params = json!({ "disk": disk, "mode": mode });
        let freed = site.done(disk, "delete_disk", params.clone()).await["freed"].as_u64();
        assert!(freed.unwrap() > 1 << 20, "{mode}: {freed:?}");
        assert_eq!(site.state(disk).await, Some(DiskState::Deleted));
        assert_eq!(site.record(disk).await.actual_size, freed);
        let again = site
            .done(&format!("again-{disk}"), "delete_disk", params)
            .await;
        assert_eq!(again["freed"], 0);
        let create = json!({ "disk": disk, "size": "1MiB" });
        let refused = site.refused("j", "create_disk", create).await;
        assert_eq!(code(&refused), Code::DiskExists);
        let resize = json!({ "disk": disk, "size": "1MiB" });
        let refused = site.refused("j", "resize", resize).await;
        assert_eq!(code(&refused), Code::DiskNotFound);
    }
    for folder in ["disks", "trash", "locks"] {
        assert_eq!(site.files(folder), Vec::<String>::new(), "{folder}");
    }
    let never = site
        .refused("j", "delete_disk", json!({ "disk": "d9" }))
        .await;
    assert_eq!(code(&never), Code::DiskNotFound);
}

#[tokio::test]
async fn a_tree_is_overwritten_as_one_whole() {
    let site = Site::start().await;
    tree(&site).await;
    let params = json!({ "disk": "d1", "mode": "wipe", "tree": true });
    let (job, told) = (site.job("j1", "delete_disk", params), Told::default());
    let note = |progress| told.note(&progress);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    assert!(done.unwrap()["freed"].as_u64().unwrap() > 1 << 20);
    assert_eq!(told.stages(), [("wipe".into(), 100.0)]);
    // Four files, of which the last to go is the largest.
    let percents = told.percents();
    assert!(percents.len() > 3 && percents[2] < 60.0, "{percents:?}");
}

#[tokio::test]
async fn a_disk_without_its_file_is_deleted_on_a_pool_that_is_there() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.filled_disk("d2").await;
    std::fs::remove_file(site.path("disks/d1.qcow2")).unwrap();
    let params = json!({ "disk": "d1", "mode": "unlink" });
    assert_eq!(site.done("j1", "delete_disk", params).await["freed"], 0);
    assert_eq!(site.state("d1").await, Some(DiskState::Deleted));
    std::fs::rename(site.path(""), site.dir.path().join("away")).unwrap();
    let refused = site
        .refused("j2", "delete_disk", json!({ "disk": "d2" }))
        .await;
    assert_eq!(code(&refused), Code::PoolUnreachable);
    assert_eq!(site.state("d2").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_disk_with_children_goes_only_with_them_and_they_first() {
    let site = Site::start().await;
    tree(&site).await;
    let refused = site
        .refused("j1", "delete_disk", json!({ "disk": "d1" }))
        .await;
    assert_eq!(code(&refused), Code::DiskHasChildren);
    let params = json!({ "disk": "d3", "mode": "unlink", "tree": true });
    assert!(
        site.done("j2", "delete_disk", params).await["freed"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert_eq!(site.files("disks"), ["d1.qcow2", "d2.qcow2"]);
    assert_eq!(site.record("d1").await.children, ["d2".parse().unwrap()]);
    for disk in ["d3", "d4"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Deleted));
    }
    let params = json!({ "disk": "d1", "tree": true });
    site.done("j3", "delete_disk", params).await;
    assert_eq!(site.files("trash"), ["disk.d1.j3.1", "disk.d2.j3.1"]);
    assert_eq!(site.files("disks"), Vec::<String>::new());
}

#[tokio::test]
async fn a_trashed_disk_still_counts_as_a_child() {
    let site = Site::start().await;
    tree(&site).await;
    site.done("j1", "delete_disk", json!({ "disk": "d4" }))
        .await;
    let refused = site
        .refused("j2", "delete_disk", json!({ "disk": "d3" }))
        .await;
    assert_eq!(code(&refused), Code::DiskHasChildren);
    let params = json!({ "disk": "d4", "mode": "unlink" });
    site.done("j3", "delete_disk", params).await;
    site.done("j4", "delete_disk", json!({ "disk": "d3" }))
        .await;
}

#[tokio::test]
async fn one_disk_in_use_keeps_the_whole_tree() {
    let site = Site::start().await;
    tree(&site).await;
    site.change("d4", |record| {
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Shared,
        }];
    })
    .await;
    let params = json!({ "disk": "d1", "mode": "unlink", "tree": true });
    let refused = site.refused("j1", "delete_disk", params).await;
    assert_eq!(code(&refused), Code::DiskInUse);
    assert_eq!(refused.detail["disk"], "d4");
    assert_eq!(site.files("disks").len(), 4);
    for disk in ["d1", "d2", "d3", "d4"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Ready));
    }
}

#[tokio::test]
async fn what_can_not_be_used_can_be_deleted() {
    let site = Site::start().await;
    for (disk, state) in [("d1", DiskState::Missing), ("d2", DiskState::Broken)] {
        site.filled_disk(disk).await;
        site.change(disk, |record| record.state = state).await;
        let params = json!({ "disk": disk, "mode": "unlink" });
        site.done(&format!("j-{disk}"), "delete_disk", params).await;
        assert_eq!(site.state(disk).await, Some(DiskState::Deleted));
    }
    site.filled_disk("d3").await;
    site.change("d3", |record| record.state = DiskState::Uploading)
        .await;
    let refused = site
        .refused("j", "delete_disk", json!({ "disk": "d3" }))
        .await;
    assert_eq!(code(&refused), Code::DiskBusy);
}
