//! `create_snapshot`, `revert_snapshot`, `delete_snapshot`.

use super::site::{MIB, Site, code};
use serde_json::{Value, json};
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskState, InUseBy, UseMode},
};

async fn snapshot(site: &Site, id: &str, disk: &str, name: &str) {
    let params = json!({ "disk": disk, "snapshot": name });
    let done = site.done(id, "create_snapshot", params).await;
    assert_eq!(Value::Object(done), json!({ "snapshot": name }));
}

fn domain(mode: UseMode) -> Vec<InUseBy> {
    vec![InUseBy::Domain {
        domain: "web1".parse().unwrap(),
        hypervisor: "hv-1".parse().unwrap(),
        mode,
    }]
}

#[tokio::test]
async fn a_disk_goes_back_to_what_it_held() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    snapshot(&site, "j1", "d1", "monday").await;
    site.write("d1.qcow2", "qcow2", "write -P 9 1M 1M");
    snapshot(&site, "j2", "d1", "tuesday").await;
    let names = ["monday", "tuesday"].map(|name| name.parse().unwrap());
    assert_eq!(site.record("d1").await.snapshots, names);
    for (id, name, read) in [
        ("j3", "monday", "read -P 7 1M 1M"),
        ("j4", "tuesday", "read -P 9 1M 1M"),
    ] {
        let params = json!({ "disk": "d1", "snapshot": name });
        let done = site.done(id, "revert_snapshot", params).await;
        assert_eq!(Value::Object(done), json!({}));
        site.write("d1.qcow2", "qcow2", read);
    }
    let params = json!({ "disk": "d1", "snapshot": "monday" });
    site.done("j5", "delete_snapshot", params.clone()).await;
    assert_eq!(site.record("d1").await.snapshots, names[1..]);
    // Already so is success.
    site.done("j6", "delete_snapshot", params).await;
    assert_eq!(site.record("d1").await.epoch, 6);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_snapshot_that_is_called_like_anothers_number_is_not_taken_for_it() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    for name in ["2", "1"] {
        snapshot(&site, &format!("j-{name}"), "d1", name).await;
        site.write("d1.qcow2", "qcow2", &format!("write -P 2{name} 1M 1M"));
    }
    let params = json!({ "disk": "d1", "snapshot": "2" });
    site.done("j1", "revert_snapshot", params.clone()).await;
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
    site.done("j2", "delete_snapshot", params).await;
    assert_eq!(site.record("d1").await.snapshots, ["1".parse().unwrap()]);
}

#[tokio::test]
async fn what_was_reverted_has_the_size_of_then() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    snapshot(&site, "j1", "d1", "s").await;
    site.done("j2", "resize", json!({ "disk": "d1", "size": "9MiB" }))
        .await;
    let params = json!({ "disk": "d1", "snapshot": "s" });
    site.done("j3", "revert_snapshot", params).await;
    let size = site.info("d1.qcow2", "qcow2")["virtual-size"].as_u64();
    assert_eq!(size, Some(4 * MIB));
    assert_eq!(site.record("d1").await.virtual_size, size);
}

#[tokio::test]
async fn a_frozen_disk_takes_snapshots_but_does_not_go_back() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    snapshot(&site, "j1", "d1", "s").await;
    let overlay = json!({ "disk": "d1", "overlay": "d2" });
    let done = site.done("j2", "create_snapshot", overlay).await;
    assert_eq!(Value::Object(done), json!({ "overlay": "d2" }));
    let params = json!({ "disk": "d1", "snapshot": "s" });
    let refused = site.refused("j3", "revert_snapshot", params.clone()).await;
    assert_eq!(code(&refused), Code::DiskHasChildren);
    snapshot(&site, "j4", "d1", "t").await;
    site.done("j5", "delete_snapshot", params).await;
    assert!(site.same(("d1.qcow2", "qcow2"), ("d2.qcow2", "qcow2")));
}

#[tokio::test]
async fn what_can_not_be_is_refused_before_anything_changes() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    snapshot(&site, "j1", "d1", "s").await;
    site.done(
        "j2",
        "create_disk",
        json!({ "disk": "r1", "size": "1MiB", "format": "raw" }),
    )
    .await;
    let before = (site.disk("d1").await, site.files("disks"));
    let refused =
        async |task: &str, params: Value| -> JobError { site.refused("j3", task, params).await };
    let create = async |params| refused("create_snapshot", params).await.code;
    let twice = json!({ "disk": "d1", "snapshot": "s" });
    assert_eq!(create(twice).await, Code::SnapshotExists);
    let raw = json!({ "disk": "r1", "snapshot": "s" });
    assert_eq!(create(raw).await, Code::JobInvalidParams);
    for kind in ["overlay", "base"] {
        let taken = json!({ "disk": "d1", kind: "r1" });
        assert_eq!(create(taken).await, Code::DiskExists, "{kind}");
        let missing = json!({ "disk": "d9", kind: "d2" });
        assert_eq!(create(missing).await, Code::DiskNotFound, "{kind}");
    }
    let missing = json!({ "disk": "d1", "snapshot": "t" });
    let missing = refused("revert_snapshot", missing).await;
    assert_eq!(missing.code, Code::SnapshotNotFound);
    assert_eq!((site.disk("d1").await, site.files("disks")), before);

    for mode in [UseMode::Shared, UseMode::Exclusive] {
        site.change("d1", |record| record.in_use_by = domain(mode))
            .await;
        for kind in ["snapshot", "overlay", "base"] {
            let used = json!({ "disk": "d1", kind: "n1" });
            assert_eq!(create(used).await, Code::DiskInUse, "{kind}");
        }
    }
    site.change("d1", |record| {
        record.in_use_by.clear();
        record.state = DiskState::Broken;
    })
    .await;
    for kind in ["snapshot", "overlay", "base"] {
        let broken = json!({ "disk": "d1", kind: "n1" });
        assert_eq!(create(broken).await, Code::DiskWrongState, "{kind}");
    }
    assert_eq!(site.files("disks"), before.1);
}

#[tokio::test]
async fn a_template_is_made_in_one_job() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let base = json!({ "disk": "d1", "base": "t1" });
    let done = site.done("j1", "create_snapshot", base.clone()).await;
    assert_eq!(Value::Object(done), json!({ "base": "t1" }));
    let (disk, template) = (site.record("d1").await, site.record("t1").await);
    assert_eq!(disk.backing, Some("t1".parse().unwrap()));
    assert_eq!(template.children, ["d1".parse().unwrap()]);
    assert_eq!(template.state, DiskState::Ready);
    assert_eq!(template.tenant, Some("acme".parse().unwrap()));
    let info = site.info("d1.qcow2", "qcow2");
    assert_eq!(info["backing-filename"], "t1.qcow2");
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
    site.write("d1.qcow2", "qcow2", "write -P 5 1M 1M");
    site.write("t1.qcow2", "qcow2", "read -P 7 1M 1M");
    // The disk has no children, so it can be a template's source again; the template has one.
    let again = json!({ "disk": "d1", "base": "t2" });
    site.done("j2", "create_snapshot", again).await;
    assert_eq!(site.record("t1").await.children, ["t2".parse().unwrap()]);
    assert_eq!(site.record("t2").await.children, ["d1".parse().unwrap()]);
    let refused = json!({ "disk": "t1", "base": "t3" });
    let refused = site.refused("j3", "create_snapshot", refused).await;
    assert_eq!(code(&refused), Code::DiskHasChildren);
    site.write("d1.qcow2", "qcow2", "read -P 5 1M 1M");
}

#[tokio::test]
async fn a_raw_disk_becomes_a_raw_base_and_goes_on_as_a_qcow2() {
    let site = Site::start().await;
    let params = json!({ "disk": "d1", "size": "4MiB", "format": "raw" });
    site.done("j1", "create_disk", params).await;
    site.write("d1.raw", "raw", "write -P 7 1M 1M");
    let base = json!({ "disk": "d1", "base": "t1" });
    site.done("j2", "create_snapshot", base).await;
    assert_eq!(site.files("disks"), ["d1.qcow2", "t1.raw"]);
    assert_eq!(site.record("d1").await.format.as_str(), "qcow2");
    assert_eq!(site.record("t1").await.format.as_str(), "raw");
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
}

#[tokio::test]
async fn a_stranger_in_the_bases_place_stays_there_and_so_does_the_disk() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let before = site.record("d1").await;
    let base = json!({ "id": "j", "task": "create_snapshot",
                       "params": { "disk": "d1", "base": "t1" } });
    let stranger = site.path("disks/t1.qcow2");
    let write = || std::fs::write(&stranger, "mine").unwrap();
    let job = site.claimed(base, 1);
    let ended = site.run_and(&job, crate::task::Step::Commit, &write).await;
    assert!(ended.is_err());
    assert_eq!(std::fs::read(&stranger).unwrap(), b"mine");
    assert_eq!(site.disk("t1").await, None);
    let record = site.record("d1").await;
    assert_eq!(
        (record.state, record.backing),
        (DiskState::Ready, before.backing)
    );
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
}
