use super::site::{MIB, Site, code};
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
    state::WaitReason,
};
use virtbus_worker::Stop;

#[tokio::test]
async fn a_disk_gets_the_size_and_keeps_its_content() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let done = site
        .done("j1", "resize", json!({ "disk": "d1", "size": "9MiB" }))
        .await;
    assert_eq!(done["virtual_size"], 9 * MIB);
    let record = site.record("d1").await;
    assert_eq!(
        (record.state, record.virtual_size),
        (DiskState::Ready, Some(9 * MIB))
    );
    assert_eq!(record.epoch, 2);
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
    assert_eq!(site.info("d1.qcow2", "qcow2")["virtual-size"], 9 * MIB);
}

#[tokio::test]
async fn a_disk_that_has_the_size_is_left_alone() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let before = site.disk("d1").await;
    let done = site
        .done("j1", "resize", json!({ "disk": "d1", "size": "4MiB" }))
        .await;
    assert_eq!(done["virtual_size"], 4 * MIB);
    assert_eq!(site.disk("d1").await, before);
}

#[tokio::test]
async fn a_disk_becomes_smaller_only_on_request() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let refused = site
        .refused("j1", "resize", json!({ "disk": "d1", "size": "3MiB" }))
        .await;
    assert_eq!(code(&refused), Code::JobInvalidParams);
    assert_eq!(refused.detail["field"], "size");
    let params = json!({ "disk": "d1", "size": "3MiB", "shrink": true });
    assert_eq!(
        site.done("j2", "resize", params).await["virtual_size"],
        3 * MIB
    );
    assert_eq!(site.info("d1.qcow2", "qcow2")["virtual-size"], 3 * MIB);
}

#[tokio::test]
async fn what_others_depend_on_or_use_is_left_alone() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done(
        "j2",
        "create_disk",
        json!({ "disk": "d2", "backing": "d1" }),
    )
    .await;
    let params = json!({ "disk": "d1", "size": "9MiB" });
    let frozen = site.refused("j3", "resize", params.clone()).await;
    assert_eq!(code(&frozen), Code::DiskHasChildren);
    assert_eq!(frozen.detail["children"], json!(["d2"]));
    let params = json!({ "disk": "d2", "size": "9MiB" });
    site.change("d2", |record| {
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    let used = site.refused("j4", "resize", params.clone()).await;
    assert_eq!(code(&used), Code::DiskInUse);
    let patient = json!({ "id": "j5", "task": "resize", "params": params, "if_in_use": "wait" });
    let waits = site.run(&site.claimed(patient, 1)).await;
    assert!(
        matches!(&waits, Err(Stop::Wait(WaitReason::Lock { resource, .. })) if resource == "disk.d2"),
        "{waits:?}"
    );
    site.change("d2", |record| record.in_use_by.clear()).await;
    site.done("j6", "resize", params).await;
}

#[tokio::test]
async fn limits_and_absence_are_told() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.register(json!({ "pool": "default", "size_max": "16MiB" }))
        .await;
    let large = site
        .refused("j1", "resize", json!({ "disk": "d1", "size": "17MiB" }))
        .await;
    assert_eq!(code(&large), Code::ImageTooLarge);
    let missing = site
        .refused("j2", "resize", json!({ "disk": "d9", "size": "1MiB" }))
        .await;
    assert_eq!(code(&missing), Code::DiskNotFound);
    site.register(json!({ "pool": "default", "state": "disabled" }))
        .await;
    let disabled = site
        .refused("j3", "resize", json!({ "disk": "d1", "size": "9MiB" }))
        .await;
    assert_eq!(code(&disabled), Code::PoolDisabled);
}

#[tokio::test]
async fn a_header_that_the_catalogue_does_not_know_reaches_no_tool() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let path = site.path("disks/d1.qcow2");
    super::attacks::backing(&path, "/etc/passwd");
    let refused = site
        .refused("j1", "resize", json!({ "disk": "d1", "size": "9MiB" }))
        .await;
    assert_eq!(code(&refused), Code::ImageBackingFile);
    let refused = site
        .refused(
            "j2",
            "convert",
            json!({ "disk": "d1", "to": "d2", "format": "raw" }),
        )
        .await;
    assert_eq!(code(&refused), Code::ImageBackingFile);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
}

#[tokio::test]
async fn a_format_that_can_not_be_resized_is_refused_before_anything_changes() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    for format in ["vmdk", "vdi", "vhdx", "vpc"] {
        let params = json!({ "disk": "d1", "to": format, "format": format });
        site.done(&format!("make-{format}"), "convert", params)
            .await;
        let before = site.disk(format).await;
        let params = json!({ "disk": format, "size": "9MiB" });
        let refused = site.refused("j1", "resize", params).await;
        assert_eq!(code(&refused), Code::JobInvalidParams, "{format}");
        assert_eq!(refused.detail["field"], "disk");
        assert_eq!(site.disk(format).await, before);
        // As it is already.
        let params = json!({ "disk": format, "size": "4MiB" });
        site.done("j2", "resize", params).await;
        // Nor by what is on top of it.
        let overlay = format!("on-{format}");
        let params = json!({ "disk": overlay, "backing": format, "size": "9MiB" });
        site.done(&overlay, "create_disk", params).await;
        let refused = site.refused("j3", "commit", json!({ "disk": overlay }));
        assert_eq!(code(&refused.await), Code::JobInvalidParams, "{format}");
        assert_eq!(site.state(format).await, Some(DiskState::Ready));
    }
}
