//! What a worker leaves that dies, or can't write down what it did. (Cuts at every step: `cuts.rs`.)

use super::{
    claims::{Own, abandon},
    site::Site,
};
use crate::task::Step;
use serde_json::{Value, json};
use virtbus_wire::catalog::DiskState;
use virtbus_worker::Perform;

/// The jobs whose workers die, each on disks of its own.
fn jobs() -> [(&'static str, Value); 5] {
    [
        ("create_disk", json!({ "disk": "new", "backing": "d1" })),
        (
            "convert",
            json!({ "disk": "d1", "to": "new", "format": "raw" }),
        ),
        ("resize", json!({ "disk": "d1", "size": "9MiB" })),
        ("delete_disk", json!({ "disk": "d1", "mode": "unlink" })),
        ("delete_disk", json!({ "disk": "d1" })),
    ]
}

fn envelope(task: &str, params: &Value) -> Value {
    json!({ "id": "j", "task": task, "params": params })
}

#[tokio::test]
async fn an_effect_that_could_not_be_written_down_is_taken_back_or_told() {
    for (task, params) in jobs() {
        let site = Site::start().await;
        site.filled_disk("d1").await;
        let job = site.claimed(envelope(task, &params), 1);
        site.die(&job, Step::Effect).await;
        for _ in 0..2 {
            abandon(&site.store, &job).await.unwrap();
        }
        assert_eq!(site.state("new").await, None, "{task}");
        let record = site.record("d1").await;
        assert_eq!(record.children, [], "{task}");
        if params["mode"] == "unlink" {
            assert_eq!(record.state, DiskState::Deleted);
            assert_eq!(site.files("disks"), Vec::<String>::new());
            continue;
        }
        assert_eq!(record.state, DiskState::Ready, "{task}");
        assert_eq!(site.files("disks"), ["d1.qcow2"], "{task}");
        let size = site.info("d1.qcow2", "qcow2")["virtual-size"].as_u64();
        assert_eq!(record.virtual_size, size, "{task}");
        // The next attempt finds nothing in its way.
        site.run(&site.claimed(envelope(task, &params), 2))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_a_later_claim_began_is_not_put_back_by_an_earlier_one() {
    for (task, params) in jobs() {
        let site = Site::start().await;
        site.filled_disk("d1").await;
        let claim = |number| site.claimed(envelope(task, &params), number);
        site.die(&claim(2), Step::Intend).await;
        let began = (site.disk("d1").await, site.disk("new").await);
        let woken = site.store.abandon(&claim(1), &Own(false)).await;
        woken.unwrap_err();
        let now = (site.disk("d1").await, site.disk("new").await);
        assert_eq!(now, began, "{task}");
    }
}

#[tokio::test]
async fn a_disk_that_was_being_overwritten_is_broken() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1", "mode": "wipe" });
    let job = site.claimed(envelope("delete_disk", &params), 1);
    site.die(&job, Step::Intend).await;
    std::fs::create_dir_all(site.path("trash")).unwrap();
    std::fs::rename(site.path("disks/d1.qcow2"), site.path("trash/disk.d1.j.1")).unwrap();
    abandon(&site.store, &job).await.unwrap();
    assert_eq!(site.state("d1").await, Some(DiskState::Broken));
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    // Its tables may be whole; that says nothing of its bytes.
    let check = json!({ "disk": "d1" });
    site.done("j2", "check_disk", check).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Broken));
}

#[tokio::test]
async fn a_base_that_the_disk_never_went_on_top_of_is_taken_back() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let content = site.content("d1.qcow2", "qcow2");
    let params = json!({ "disk": "d1", "base": "new" });
    let job = site.claimed(envelope("create_snapshot", &params), 1);
    // The first rename is done; the second one can't be.
    let disk = site.path("disks/d1.qcow2");
    let rename = || std::fs::rename(&disk, site.path("disks/new.qcow2")).unwrap();
    assert!(site.run_and(&job, Step::Commit, &rename).await.is_err());
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    assert_eq!(site.state("new").await, None);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.content("d1.qcow2", "qcow2"), content);
}

#[tokio::test]
async fn a_file_that_came_between_is_not_taken_for_ones_own() {
    let site = Site::start().await;
    let params = json!({ "disk": "new", "size": "4MiB" });
    let job = site.claimed(envelope("create_disk", &params), 1);
    let stray = site.path("disks/new.qcow2");
    let write = || std::fs::write(&stray, "mine").unwrap();
    assert!(site.run_and(&job, Step::Intend, &write).await.is_err());
    assert_eq!(
        std::fs::read(site.path("disks/new.qcow2")).unwrap(),
        b"mine"
    );
    assert_eq!(site.state("new").await, None);
}

#[tokio::test]
async fn a_result_is_written_over_what_others_wrote_but_not_over_a_newer_claim() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let before = site.disk("d1").await.unwrap();
    let disks = &site.store.disks;
    let intent = disks.take(&before, &"j".parse().unwrap()).await.unwrap();
    site.change("d1", |record| record.last_used_at = Some(record.updated_at))
        .await;
    let back = |record: &virtbus_wire::catalog::DiskRecord| {
        crate::catalog::given_back(record, record.updated_at)
    };
    let written = disks.finish(&intent, back).await.unwrap().unwrap();
    assert_eq!(written.record.state, DiskState::Ready);
    assert!(written.record.last_used_at.is_some());
    let older = disks.take(&written, &"j".parse().unwrap()).await.unwrap();
    let newer = disks.take(&older, &"j".parse().unwrap()).await.unwrap();
    assert_eq!(disks.finish(&older, back).await.unwrap(), None);
    assert_eq!(site.disk("d1").await, Some(newer));
}

#[tokio::test]
async fn a_tree_that_began_to_go_goes_as_a_whole() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done(
        "j2",
        "create_disk",
        json!({ "disk": "d2", "backing": "d1" }),
    )
    .await;
    let params = json!({ "disk": "d1", "mode": "unlink", "tree": true });
    let first = site.claimed(envelope("delete_disk", &params), 1);
    site.die(&first, Step::Intend).await;
    // As if it had died between the two.
    std::fs::create_dir_all(site.path("trash")).unwrap();
    std::fs::rename(site.path("disks/d2.qcow2"), site.path("trash/disk.d2.j.1")).unwrap();
    let next = site.claimed(envelope("delete_disk", &params), 2);
    assert!(site.store.recover(&next).await.unwrap().is_some());
    for disk in ["d1", "d2"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Deleted));
    }
    assert_eq!(site.files("disks"), Vec::<String>::new());
    assert_eq!(site.files("trash"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_claim_that_wakes_up_has_no_effect() {
    let site = Site::start().await;
    let params = json!({ "disk": "new", "size": "4MiB" });
    let first = site.claimed(envelope("create_disk", &params), 1);
    let next = site.claimed(envelope("create_disk", &params), 2);
    let (woken, done) = site.frozen(&first, Step::Commit, &next).await;
    done.unwrap();
    assert!(woken.is_err());
    let before = site.disk("new").await;
    abandon(&site.store, &first).await.unwrap();
    assert_eq!(site.disk("new").await, before);
    assert_eq!(site.state("new").await, Some(DiskState::Ready));
    assert_eq!(site.files("disks"), ["new.qcow2"]);
}
