//! `commit` and `rebase`.

use super::site::{MIB, Site, Told, code, failed};
use crate::task::Step;
use serde_json::{Value, json};
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
};
use virtbus_worker::process;

/// `d2` on `d1`, each with something of its own.
async fn pair(site: &Site) {
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d2", "backing": "d1", "size": "6MiB" });
    site.done("make-d2", "create_disk", params).await;
    site.write("d2.qcow2", "qcow2", "write -P 9 2M 1M");
    site.write("d2.qcow2", "qcow2", "write -P 8 5M 1M");
}

#[tokio::test]
async fn a_commit_grows_the_backing_and_leaves_an_empty_overlay() {
    let site = Site::start().await;
    pair(&site).await;
    let shown = site.content("d2.qcow2", "qcow2");
    let job = site.job("j1", "commit", json!({ "disk": "d2" }));
    let told = Told::default();
    let note = |progress| told.note(&progress);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    assert_eq!(Value::Object(done.unwrap()), json!({ "backing": "d1" }));
    assert_eq!(told.stages(), [("commit".into(), 100.0)]);
    assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
    assert_eq!(site.content("d2.qcow2", "qcow2"), shown);
    let (disk, backing) = (site.record("d2").await, site.record("d1").await);
    assert_eq!(backing.virtual_size, Some(6 * MIB));
    assert_eq!(backing.children, ["d2".parse().unwrap()]);
    assert_eq!(disk.backing, Some("d1".parse().unwrap()));
    assert!(disk.actual_size < Some(MIB), "{:?}", disk.actual_size);
    assert!(
        backing.actual_size > Some(3 * MIB),
        "{:?}",
        backing.actual_size
    );
}

#[tokio::test]
async fn a_commit_takes_the_overlay_along_when_asked() {
    let site = Site::start().await;
    pair(&site).await;
    let shown = site.content("d2.qcow2", "qcow2");
    let params = json!({ "disk": "d2", "delete": true });
    let done = site.done("j1", "commit", params.clone()).await;
    assert_eq!(Value::Object(done), json!({ "backing": "d1" }));
    assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.files("trash"), Vec::<String>::new());
    assert_eq!(site.state("d2").await, Some(DiskState::Deleted));
    assert_eq!(site.record("d1").await.children, []);
    let gone = site.refused("j2", "commit", params).await;
    assert_eq!(code(&gone), Code::DiskNotFound);
    // The backing can be changed again.
    let resize = json!({ "disk": "d1", "size": "9MiB" });
    site.done("j3", "resize", resize).await;
}

#[tokio::test]
async fn a_commit_that_was_killed_halfway_leaves_the_disk_whole_and_is_finished() {
    for delete in [false, true] {
        let site = Site::start().await;
        pair(&site).await;
        let shown = site.content("d2.qcow2", "qcow2");
        let params = json!({ "disk": "d2", "delete": delete });
        let envelope = json!({ "id": "j", "task": "commit", "params": params });
        let first = site.claimed(envelope.clone(), 1);
        site.die(&first, Step::Commit).await;
        // As the tool leaves it that has written half of the backing.
        site.mark_lock("d2");
        site.write("d1.qcow2", "qcow2", "write -P 9 2M 512k");
        assert_eq!(site.content("d2.qcow2", "qcow2"), shown);
        let next = site.claimed(envelope, 2);
        let found = virtbus_worker::Perform::recover(&site.store, &next).await;
        assert!(found.unwrap().is_some(), "delete: {delete}");
        assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
        assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    }
}

/// `d2` with something compressed behind all else, which can't be read. What has to be put back
/// there to make it whole again.
fn unreadable(site: &Site) -> (std::path::PathBuf, Vec<u8>) {
    let path = site.path("disks/d2.qcow2");
    let before = std::fs::read(&path).unwrap().len();
    site.write("d2.qcow2", "qcow2", "write -c -P 3 3M 64k");
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[before..].fill(0);
    std::fs::write(&path, damaged).unwrap();
    (path, whole)
}

#[tokio::test]
async fn a_commit_whose_tool_fails_halfway_leaves_the_disk_whole_and_is_finished_by_a_retry() {
    for delete in [false, true] {
        let site = Site::start().await;
        pair(&site).await;
        let below = site.content("d1.qcow2", "qcow2");
        let (path, whole) = unreadable(&site);
        let params = json!({ "disk": "d2", "delete": delete });
        let envelope = json!({ "id": "j", "task": "commit", "params": params });
        for attempt in [1, 2] {
            let error = failed(site.run(&site.claimed(envelope.clone(), attempt)).await);
            assert_eq!(code(&error), Code::PoolUnreachable, "{error:?}");
            assert_eq!(error.detail["backing"], "d1");
            assert_eq!(site.state("d2").await, Some(DiskState::Ready));
            assert_eq!(site.state("d1").await, Some(DiskState::Broken));
        }
        // Half of it is there, and nobody takes it for anything whole.
        std::fs::write(&path, &whole).unwrap();
        let shown = site.content("d2.qcow2", "qcow2");
        assert_ne!(site.content("d1.qcow2", "qcow2"), below);
        let copy = json!({ "disk": "d1", "to": "d3", "format": "raw" });
        let refused = site.refused("j2", "convert", copy).await;
        assert_eq!(code(&refused), Code::DiskWrongState);
        site.run(&site.claimed(envelope, 3)).await.unwrap();
        assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
        assert_eq!(site.state("d1").await, Some(DiskState::Ready));
        let gone = if delete {
            DiskState::Deleted
        } else {
            DiskState::Ready
        };
        assert_eq!(site.state("d2").await, Some(gone));
    }
}

/// `d1`, half written by a commit of `d2` that ended so; what `d2` shows.
async fn half_written(site: &Site) -> u64 {
    pair(site).await;
    let (path, whole) = unreadable(site);
    let error = site.refused("j", "commit", json!({ "disk": "d2" })).await;
    assert_eq!(error.detail["backing"], "d1");
    std::fs::write(path, whole).unwrap();
    site.content("d2.qcow2", "qcow2")
}

#[tokio::test]
async fn what_a_commit_left_half_written_is_not_made_ready_by_a_look_or_a_repair() {
    let site = Site::start().await;
    let shown = half_written(&site).await;
    for repair in ["none", "leaks", "all"] {
        let params = json!({ "disk": "d1", "repair": repair });
        let checked = site.run(&site.job(repair, "check_disk", params)).await;
        match repair {
            "none" => assert_eq!(checked.unwrap()["corruptions"], 0),
            _ => {
                let refused = failed(checked);
                assert_eq!(code(&refused), Code::DiskWrongState);
                assert_eq!(refused.detail["above"], "d2");
            }
        }
        assert_eq!(site.state("d1").await, Some(DiskState::Broken), "{repair}");
    }
    // Another job's commit makes it whole as well as the first one's retry.
    site.done("j2", "commit", json!({ "disk": "d2" })).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
}

#[tokio::test]
async fn a_half_written_disk_still_belongs_to_the_one_above_when_another_commit_fails() {
    let site = Site::start().await;
    let shown = half_written(&site).await;
    let commit = json!({ "id": "j2", "task": "commit", "params": { "disk": "d2" } });
    // It has said of the backing alone that it's its own.
    let (job, disks) = (site.claimed(commit.clone(), 1), &site.store.disks);
    let below = site.disk("d1").await.unwrap();
    disks.take(&below, &job.id).await.unwrap();
    super::claims::abandon(&site.store, &job).await.unwrap();
    assert_eq!(site.record("d1").await.state, DiskState::Broken);
    site.done("j3", "commit", json!({ "disk": "d2" })).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
}

#[tokio::test]
async fn what_lost_the_disk_that_hid_it_is_taken_as_it_is_only_by_a_person() {
    let site = Site::start().await;
    half_written(&site).await;
    let delete = json!({ "disk": "d2", "mode": "unlink" });
    site.done("j2", "delete_disk", delete).await;
    for (repair, state) in [
        ("none", DiskState::Broken),
        ("leaks", DiskState::Broken),
        ("none", DiskState::Broken),
        ("all", DiskState::Ready),
    ] {
        let params = json!({ "disk": "d1", "repair": repair });
        site.done(&format!("j-{repair}"), "check_disk", params)
            .await;
        assert_eq!(site.state("d1").await, Some(state), "{repair}");
    }
}

#[tokio::test]
async fn a_commit_that_can_not_be_is_refused_before_anything_changes() {
    let site = Site::start().await;
    pair(&site).await;
    let refused = async |disk: &str, delete: bool| {
        let params = json!({ "disk": disk, "delete": delete });
        site.refused("j", "commit", params).await
    };
    assert_eq!(refused("d1", false).await.code, Code::DiskWrongState);
    assert_eq!(refused("d9", false).await.code, Code::DiskNotFound);
    let overlay = json!({ "disk": "d1", "overlay": "d3" });
    site.done("j1", "create_snapshot", overlay).await;
    let siblings = refused("d2", false).await;
    assert_eq!(siblings.code, Code::DiskHasChildren);
    assert_eq!(siblings.detail["disk"], "d1");
    assert_eq!(siblings.detail["children"], json!(["d3"]));
    let params = json!({ "disk": "d3", "mode": "unlink" });
    site.done("j2", "delete_disk", params).await;
    let overlay = json!({ "disk": "d2", "overlay": "d4" });
    site.done("j3", "create_snapshot", overlay).await;
    assert_eq!(refused("d2", true).await.code, Code::DiskHasChildren);
    // What the disk above reads stays the same if the disk does.
    let shown = site.content("d4.qcow2", "qcow2");
    site.done("j4", "commit", json!({ "disk": "d2" })).await;
    assert_eq!(site.content("d4.qcow2", "qcow2"), shown);
    let snapshot = json!({ "disk": "d4", "snapshot": "s" });
    site.done("j5", "create_snapshot", snapshot).await;
    assert_eq!(refused("d4", false).await.code, Code::DiskWrongState);
    for used in ["d1", "d2"] {
        site.change(used, |record| {
            record.in_use_by = vec![InUseBy::Domain {
                domain: "web1".parse().unwrap(),
                hypervisor: "hv-1".parse().unwrap(),
                mode: UseMode::Shared,
            }];
        })
        .await;
        let in_use = refused("d2", false).await;
        assert_eq!(in_use.code, Code::DiskInUse);
        assert_eq!(in_use.detail["disk"], used);
        site.change(used, |record| record.in_use_by.clear()).await;
    }
}

#[tokio::test]
async fn a_rebase_keeps_what_the_disk_shows_and_moves_it_between_its_backings() {
    let site = Site::start().await;
    pair(&site).await;
    site.filled_disk("d3").await;
    site.write("d3.qcow2", "qcow2", "write -P 1 0 4M");
    let shown = site.content("d2.qcow2", "qcow2");
    // What is set aside at the start of the tool: for the copy, and for what it adds.
    let set_aside = || {
        let left = site.files("space").into_iter();
        let texts = left.map(|file| std::fs::read(site.path("space").join(file)).unwrap());
        let promises = texts.filter_map(|text| serde_json::from_slice::<Value>(&text).ok());
        promises
            .map(|promised| promised[0]["bytes"].as_u64().unwrap())
            .sum::<u64>()
    };
    let most = std::sync::atomic::AtomicU64::new(0);
    let rebase = async |id: &str, backing: Value| {
        let params = json!({ "disk": "d2", "backing": backing });
        let job = site.job(id, "rebase", params);
        let told = Told::default();
        let note = |progress: virtbus_wire::state::Progress| {
            told.note(&progress);
            most.fetch_max(set_aside(), std::sync::atomic::Ordering::Relaxed);
        };
        let done = site.run_within(&job, &process::Stop::new(), &note).await;
        assert_eq!(Value::Object(done.unwrap()), json!({ "backing": backing }));
        assert_eq!(site.content("d2.qcow2", "qcow2"), shown);
        let stages = told.stages().into_iter();
        stages.map(|(phase, _)| phase).collect::<Vec<_>>()
    };
    assert_eq!(rebase("j1", json!("d3")).await, ["copy", "rebase"]);
    // 2 MiB of its own, and what is in one of the backings only: 1 and 4.
    let set_aside_most = most.load(std::sync::atomic::Ordering::Relaxed);
    assert!(set_aside_most > 7 * MIB, "{set_aside_most}");
    assert_eq!(set_aside(), 0);
    assert_eq!(
        site.info("d2.qcow2", "qcow2")["backing-filename"],
        "d3.qcow2"
    );
    assert_eq!(site.record("d1").await.children, []);
    assert_eq!(site.record("d3").await.children, ["d2".parse().unwrap()]);
    // Already so is success, and moves nothing.
    assert_eq!(rebase("j2", json!("d3")).await, Vec::<String>::new());
    assert_eq!(rebase("j3", Value::Null).await, ["flatten"]);
    assert!(
        site.info("d2.qcow2", "qcow2")
            .get("backing-filename")
            .is_none()
    );
    assert_eq!(site.record("d3").await.children, []);
    assert_eq!(site.record("d2").await.backing, None);
    // And one that stood alone goes onto another.
    assert_eq!(rebase("j4", json!("d1")).await, ["copy", "rebase"]);
    assert_eq!(site.record("d1").await.children, ["d2".parse().unwrap()]);
    assert_eq!(site.files("disks"), ["d1.qcow2", "d2.qcow2", "d3.qcow2"]);
}

#[tokio::test]
async fn a_flat_copy_is_made_like_the_disk_was() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d2", "backing": "d1",
                         "qcow2": { "cluster_size": "128KiB", "extended_l2": true } });
    site.done("j1", "create_disk", params).await;
    let params = json!({ "disk": "d2", "backing": null });
    site.done("j2", "rebase", params).await;
    let info = site.info("d2.qcow2", "qcow2");
    assert_eq!(info["cluster-size"], 128 << 10);
    assert_eq!(info["format-specific"]["data"]["extended-l2"], true);
}

#[tokio::test]
async fn a_rebase_that_can_not_be_is_refused_before_anything_changes() {
    let site = Site::start().await;
    pair(&site).await;
    let overlay = json!({ "disk": "d2", "overlay": "d3" });
    site.done("j1", "create_snapshot", overlay).await;
    let raw = json!({ "disk": "r1", "size": "1MiB", "format": "raw" });
    site.done("j2", "create_disk", raw).await;
    let files = site.files("disks");
    let refused = async |disk: &str, backing: Value| {
        let params = json!({ "disk": disk, "backing": backing });
        code(&site.refused("j", "rebase", params).await)
    };
    assert_eq!(refused("d2", json!("d3")).await, Code::JobInvalidParams);
    assert_eq!(refused("r1", json!("d1")).await, Code::JobInvalidParams);
    assert_eq!(refused("d2", json!("d9")).await, Code::DiskNotFound);
    let snapshot = json!({ "disk": "d3", "snapshot": "s" });
    site.done("j3", "create_snapshot", snapshot).await;
    assert_eq!(refused("d3", Value::Null).await, Code::DiskWrongState);
    site.change("d1", |record| {
        record.in_use_by = vec![InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    assert_eq!(refused("d2", Value::Null).await, Code::DiskInUse);
    assert_eq!(site.files("disks"), files);
    assert_eq!(site.state("d2").await, Some(DiskState::Ready));
}
