use super::site::{MIB, Site, code};
use crate::pool::Name;
use serde_json::json;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
    task::image::ImageFormat,
};

#[tokio::test]
async fn room_that_another_job_has_set_aside_is_not_given_twice() {
    let site = Site::start().await;
    let root = site.root();
    // Others use the same file system meanwhile, so the numbers are far apart.
    let most = root.free_bytes().unwrap() / 3 * 2;
    let params = json!({ "disk": "d1", "size": most / 512 * 512, "format": "raw",
                         "preallocation": "falloc" });
    let other = Name::disk(&"d2".parse().unwrap(), ImageFormat::Raw);
    let room = site.store.space.reserve(&root, &other, most, 0).unwrap();
    let refused = site.refused("j1", "create_disk", params).await;
    assert_eq!(code(&refused), Code::PoolNoSpace);
    assert!(refused.detail["free_bytes"].as_u64().unwrap() < most);
    assert_eq!(site.files("disks"), Vec::<String>::new());
    assert_eq!(site.disk("d1").await, None);
    drop(room);
}

#[tokio::test]
async fn a_new_disk_is_in_pool_and_catalogue() {
    let site = Site::start().await;
    let done = site
        .done("j1", "create_disk", json!({ "disk": "d1", "size": "8MiB" }))
        .await;
    assert_eq!(done["virtual_size"], 8 * MIB);
    assert_eq!(done["format"], "qcow2");
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    let record = site.record("d1").await;
    assert_eq!(record.state, DiskState::Ready);
    assert_eq!(record.virtual_size, Some(8 * MIB));
    assert_eq!(record.actual_size, done["actual_size"].as_u64());
    assert_eq!(record.tenant, Some("acme".parse().unwrap()));
    assert_eq!(record.owner_job, Some("j1".parse().unwrap()));
    assert_eq!(site.info("d1.qcow2", "qcow2")["virtual-size"], 8 * MIB);
}

#[tokio::test]
async fn options_are_the_jobs_and_else_the_pools() {
    let site = Site::start().await;
    let pool = json!({ "pool": "default", "qcow2": { "cluster_size": "128KiB",
                       "lazy_refcounts": true } });
    site.register(pool).await;
    let params = json!({ "disk": "d1", "size": "8MiB", "preallocation": "metadata",
                         "qcow2": { "cluster_size": "16KiB", "extended_l2": true } });
    site.done("j1", "create_disk", params).await;
    let info = site.info("d1.qcow2", "qcow2");
    assert_eq!(info["cluster-size"], 16 << 10);
    assert_eq!(info["format-specific"]["data"]["extended-l2"], true);
    assert_eq!(info["format-specific"]["data"]["lazy-refcounts"], true);
    let params = json!({ "disk": "d2", "size": "8MiB", "qcow2": { "compat": "0.10" } });
    assert_eq!(
        code(&site.refused("j2", "create_disk", params).await),
        Code::JobInvalidParams
    );
}

#[tokio::test]
async fn a_raw_disk_takes_its_room_when_asked() {
    let site = Site::start().await;
    let params = json!({ "disk": "d1", "size": 1_049_088, "format": "raw",
                         "preallocation": "falloc" });
    let done = site.done("j1", "create_disk", params).await;
    assert_eq!(done["virtual_size"], 1_049_088);
    assert!(done["actual_size"].as_u64().unwrap() >= 1_049_088);
    let length = std::fs::metadata(site.path("disks/d1.raw")).unwrap().len();
    assert_eq!(length, 1_049_088);
}

#[tokio::test]
async fn an_overlay_names_its_backing_relative_and_is_its_child() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let done = site
        .done(
            "j2",
            "create_disk",
            json!({ "disk": "d2", "backing": "d1" }),
        )
        .await;
    assert_eq!(done["virtual_size"], 4 * MIB);
    site.done(
        "j3",
        "create_disk",
        json!({ "disk": "d3", "backing": "d2", "size": "8MiB" }),
    )
    .await;
    let info = site.info("d2.qcow2", "qcow2");
    assert_eq!(info["backing-filename"], "d1.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    assert!(site.same(("d1.qcow2", "qcow2"), ("d2.qcow2", "qcow2")));
    assert_eq!(site.record("d1").await.children, ["d2".parse().unwrap()]);
    assert_eq!(site.record("d2").await.backing, Some("d1".parse().unwrap()));
    assert_eq!(site.record("d3").await.virtual_size, Some(8 * MIB));
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_leaves_nothing() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.register(json!({ "pool": "default", "size_max": "16MiB" }))
        .await;
    let of = |params| site.refused("j", "create_disk", params);
    let taken = of(json!({ "disk": "d1", "size": "1MiB" })).await;
    assert_eq!(code(&taken), Code::DiskExists);
    let large = of(json!({ "disk": "d2", "size": "17MiB" })).await;
    assert_eq!(code(&large), Code::ImageTooLarge);
    let missing = of(json!({ "disk": "d2", "backing": "d9" })).await;
    assert_eq!(code(&missing), Code::DiskNotFound);
    site.change("d1", |record| record.pool = "other".parse().unwrap())
        .await;
    let elsewhere = of(json!({ "disk": "d2", "backing": "d1" })).await;
    assert_eq!(code(&elsewhere), Code::DiskWrongPool);
    site.change("d1", |record| {
        record.pool = "default".parse().unwrap();
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    let written = of(json!({ "disk": "d2", "backing": "d1" })).await;
    assert_eq!(code(&written), Code::DiskInUse);
    site.register(json!({ "pool": "default", "state": "draining" }))
        .await;
    let draining = of(json!({ "disk": "d2", "size": "1MiB" })).await;
    assert_eq!(code(&draining), Code::PoolDisabled);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.disk("d2").await, None);
}

#[tokio::test]
async fn a_stray_file_is_neither_taken_nor_replaced() {
    let site = Site::start().await;
    std::fs::create_dir(site.path("disks")).unwrap();
    std::fs::write(site.path("disks/d1.qcow2"), "mine").unwrap();
    let refused = site
        .refused("j1", "create_disk", json!({ "disk": "d1", "size": "1MiB" }))
        .await;
    assert_eq!(code(&refused), Code::DiskExists);
    assert_eq!(std::fs::read(site.path("disks/d1.qcow2")).unwrap(), b"mine");
    assert_eq!(site.disk("d1").await, None);
}

#[tokio::test]
async fn a_pool_without_its_mark_is_unreachable() {
    let site = Site::start().await;
    std::fs::remove_file(site.path(".virtbus-pool")).unwrap();
    let refused = site
        .refused("j1", "create_disk", json!({ "disk": "d1", "size": "1MiB" }))
        .await;
    assert_eq!(code(&refused), Code::PoolUnreachable);
    assert!(refused.retryable);
    assert!(!refused.message.contains("/tmp"), "{}", refused.message);
}

#[tokio::test]
async fn a_pool_without_room_is_told_before_anything_is_written() {
    let site = Site::with(|pool| pool.free_min = "1PiB".parse().unwrap()).await;
    let refused = site
        .refused("j1", "create_disk", json!({ "disk": "d1", "size": "1MiB" }))
        .await;
    assert_eq!(code(&refused), Code::PoolNoSpace);
    assert_eq!(site.files("disks"), Vec::<String>::new());
}
