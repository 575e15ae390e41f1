use super::site::{MIB, Site, Told, code, failed};
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
};
use virtbus_worker::{Stop, process};

#[tokio::test]
async fn every_format_holds_what_the_source_shows() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    for format in ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"] {
        let (job, to) = (format!("j-{format}"), format!("to-{format}"));
        let params = json!({ "disk": "d1", "to": to, "format": format });
        let done = site.done(&job, "convert", params).await;
        assert_eq!(done["virtual_size"], 4 * MIB, "{format}");
        let record = site.record(&to).await;
        assert_eq!(record.state, DiskState::Ready);
        assert_eq!(record.actual_size, done["actual_size"].as_u64());
        let file = format!("{to}.{format}");
        assert!(
            site.same(("d1.qcow2", "qcow2"), (&file, format)),
            "{format}"
        );
    }
    assert!(
        site.files("disks")
            .iter()
            .all(|name| !name.starts_with('.'))
    );
}

#[tokio::test]
async fn compression_and_subformat_are_as_asked() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1", "to": "d2", "format": "qcow2", "compress": "zstd" });
    site.done("j1", "convert", params).await;
    let info = site.info("d2.qcow2", "qcow2");
    assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
    let params = json!({ "disk": "d1", "to": "d3", "format": "vmdk", "compress": "zlib" });
    site.done("j2", "convert", params).await;
    let info = site.info("d3.vmdk", "vmdk");
    assert_eq!(
        info["format-specific"]["data"]["create-type"],
        "streamOptimized"
    );
    // What was made can be read again.
    let params = json!({ "disk": "d3", "to": "d4", "format": "raw" });
    site.done("j3", "convert", params).await;
    assert!(site.same(("d1.qcow2", "qcow2"), ("d4.raw", "raw")));
}

#[tokio::test]
async fn a_copy_of_an_overlay_stands_by_itself() {
    let site = Site::with(|pool| pool.cache = crate::config::Cache::None).await;
    site.filled_disk("d1").await;
    site.done(
        "j2",
        "create_disk",
        json!({ "disk": "d2", "backing": "d1" }),
    )
    .await;
    site.write("d2.qcow2", "qcow2", "write -P 9 2M 1M");
    let told = Told::default();
    let params = json!({ "disk": "d2", "to": "d3", "format": "qcow2" });
    let job = site.job("j3", "convert", params);
    let note = |progress| told.note(&progress);
    site.run_within(&job, &process::Stop::new(), &note)
        .await
        .unwrap();
    let info = site.info("d3.qcow2", "qcow2");
    assert!(info.get("backing-filename").is_none());
    assert!(site.same(("d2.qcow2", "qcow2"), ("d3.qcow2", "qcow2")));
    assert_eq!(site.record("d3").await.backing, None);
    assert_eq!(told.stages(), [("convert".into(), 100.0)]);
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_leaves_nothing() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.filled_disk("d2").await;
    let of = |to: &str| {
        site.job(
            "j",
            "convert",
            json!({ "disk": "d1", "to": to, "format": "raw" }),
        )
    };
    assert_eq!(code(&failed(site.run(&of("d2")).await)), Code::DiskExists);
    let missing = json!({ "disk": "d9", "to": "d3", "format": "raw" });
    assert_eq!(
        code(&site.refused("j", "convert", missing).await),
        Code::DiskNotFound
    );
    site.change("d1", |record| {
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    let used = failed(site.run(&of("d3")).await);
    assert_eq!(code(&used), Code::DiskInUse);
    assert_eq!(used.detail["hypervisor"], "hv-1");
    site.change("d1", |record| {
        record.in_use_by.clear();
        record.state = DiskState::Broken;
    })
    .await;
    assert_eq!(
        code(&failed(site.run(&of("d3")).await)),
        Code::DiskWrongState
    );
    site.change("d1", |record| record.state = DiskState::Ready)
        .await;
    std::fs::remove_file(site.path("disks/d1.qcow2")).unwrap();
    assert_eq!(
        code(&failed(site.run(&of("d3")).await)),
        Code::DiskWrongState
    );
    assert_eq!(site.files("disks"), ["d2.qcow2"]);
    assert_eq!(site.disk("d3").await, None);
}

#[tokio::test]
async fn a_raw_copy_of_a_raw_disk_is_the_same_file_once_more() {
    let site = Site::start().await;
    let params = json!({ "disk": "r1", "size": "64MiB", "format": "raw" });
    site.done("make", "create_disk", params).await;
    site.write("r1.raw", "raw", "write -P 7 20M 1M");
    let told = Told::default();
    let params = json!({ "disk": "r1", "to": "r2", "format": "raw" });
    let job = site.job("j1", "convert", params);
    let note = |progress| told.note(&progress);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    assert_eq!(done.unwrap()["virtual_size"], 64 * MIB);
    assert_eq!(told.stages(), [("convert".into(), 100.0)]);
    assert!(site.same(("r1.raw", "raw"), ("r2.raw", "raw")));
    // Holes are holes, cloned or not.
    let record = site.record("r2").await;
    assert!(record.actual_size < Some(4 * MIB), "{record:?}");
    // Whichever it is, the two have nothing to do with each other afterwards.
    site.write("r2.raw", "raw", "write -P 8 20M 1M");
    site.write("r1.raw", "raw", "read -P 7 20M 1M");
}

#[tokio::test]
async fn a_cancelled_copy_leaves_no_file_and_no_record() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let stop = process::Stop::new();
    let params = json!({ "disk": "d1", "to": "d2", "format": "raw" });
    let job = site.job("j1", "convert", params);
    // At the first sign of progress.
    let cancel = |_| stop.stop();
    let stopped = site.run_within(&job, &stop, &cancel).await;
    assert_eq!(stopped, Err(Stop::Stopped));
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.disk("d2").await, None);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn room_is_measured_before_the_copy() {
    let site = Site::with(|pool| pool.free_min = "1PiB".parse().unwrap()).await;
    let record = json!({ "pool": "default", "format": "raw", "virtual_size": 4 * MIB,
                         "state": "ready", "updated_at": "2026-11-21T16:30:00.000Z" });
    let record = serde_json::from_value(record).unwrap();
    site.store
        .disks
        .create(&"d1".parse().unwrap(), record)
        .await
        .unwrap();
    std::fs::create_dir(site.path("disks")).unwrap();
    std::fs::write(site.path("disks/d1.raw"), vec![1; 4 << 20]).unwrap();
    let params = json!({ "disk": "d1", "to": "d2", "format": "qcow2" });
    let refused = site.refused("j1", "convert", params).await;
    assert_eq!(code(&refused), Code::PoolNoSpace);
    assert!(refused.detail["needed_bytes"].as_u64().unwrap() >= 4 * MIB);
    assert_eq!(site.files("disks"), ["d1.raw"]);
}

#[tokio::test]
async fn what_is_too_large_for_the_format_is_refused_before_anything_is_made() {
    let site = Site::start().await;
    let create = json!({ "disk": "d1", "size": "2041GiB" });
    site.done("j1", "create_disk", create).await;
    let params = json!({ "disk": "d1", "to": "d2", "format": "vpc" });
    let refused = site.refused("j2", "convert", params).await;
    assert_eq!(code(&refused), Code::JobInvalidParams);
    assert_eq!(refused.detail["field"], "format");
    assert_eq!(refused.detail["size_max"], 2040_u64 << 30);
    assert_eq!(site.state("d2").await, None);
}

/// The limit was lowered after the disk was made: it's still used, but there's no second one.
#[tokio::test]
async fn what_is_larger_than_the_pool_allows_by_now_is_not_made_once_more() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.register(json!({ "pool": "default", "size_max": "2MiB" }))
        .await;
    for (task, params) in [
        (
            "convert",
            json!({ "disk": "d1", "to": "n", "format": "raw" }),
        ),
        ("create_disk", json!({ "disk": "n", "backing": "d1" })),
        ("create_snapshot", json!({ "disk": "d1", "overlay": "n" })),
        ("create_snapshot", json!({ "disk": "d1", "base": "n" })),
    ] {
        let refused = failed(site.run(&site.job("j", task, params.clone())).await);
        let said = (code(&refused), &refused.detail["size_max"]);
        let wanted = (Code::ImageTooLarge, &json!(2 * MIB));
        assert_eq!(said, wanted, "{task} {params}");
        assert_eq!(site.files("disks"), ["d1.qcow2"]);
        assert_eq!(site.disk("n").await, None);
    }
    let snapshot = json!({ "disk": "d1", "snapshot": "s" });
    site.done("j", "create_snapshot", snapshot).await;
}
