use super::site::{MIB, Site, code};
use crate::task::Step;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use virtbus_wire::{
    Code,
    catalog::{DiskState, InUseBy, UseMode},
};
use virtbus_worker::Perform;

/// Writes the count of references to a cluster: the first beyond the file's end, which then
/// ends behind it, or the last one within.
fn count(site: &Site, file: &str, is_beyond: bool, references: u16) {
    const CLUSTER_BYTES: u64 = 65536;
    let path = site.path("disks").join(file);
    let options = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    let image = options.unwrap();
    let be64 = |at| {
        let mut bytes = [0; 8];
        image.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let clusters = image.metadata().unwrap().len().div_ceil(CLUSTER_BYTES);
    let at = if is_beyond { clusters } else { clusters - 1 };
    image.set_len((at + 1) * CLUSTER_BYTES).unwrap();
    let block = be64(be64(48));
    image
        .write_all_at(&references.to_be_bytes(), block + at * 2)
        .unwrap();
}

/// A cluster that nothing refers to.
fn leak(site: &Site, file: &str) {
    count(site, file, true, 1);
}

/// A cluster that's in use and counted as free.
pub(super) fn damage(site: &Site, file: &str) {
    count(site, file, false, 0);
}

async fn check(site: &Site, id: &str, disk: &str, repair: &str) -> Value {
    let params = json!({ "disk": disk, "repair": repair });
    Value::Object(site.done(id, "check_disk", params).await)
}

#[tokio::test]
async fn a_whole_disk_is_measured_in_every_format() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.write("d1.qcow2", "qcow2", "write -P 1 3M 1M");
    let found = check(&site, "j1", "d1", "none").await;
    assert_eq!(found["virtual_size"], 4 * MIB);
    assert_eq!(
        (&found["leaks"], &found["corruptions"]),
        (&json!(0), &json!(0))
    );
    let record = site.record("d1").await;
    assert_eq!(record.actual_size, found["actual_size"].as_u64());
    assert!(record.actual_size > Some(2 * MIB));
    assert_eq!((record.state, record.epoch), (DiskState::Ready, 1));
    for format in ["raw", "vmdk", "vdi", "vhdx", "vpc"] {
        let params = json!({ "disk": "d1", "to": format, "format": format });
        site.done(&format!("make-{format}"), "convert", params)
            .await;
        let found = check(&site, &format!("j-{format}"), format, "none").await;
        assert_eq!(found["virtual_size"], 4 * MIB, "{format}");
        assert_eq!(found["corruptions"], 0, "{format}");
    }
}

#[tokio::test]
async fn leaks_are_found_and_given_back_on_request() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let shown = site.content("d1.qcow2", "qcow2");
    leak(&site, "d1.qcow2");
    assert_eq!(check(&site, "j1", "d1", "none").await["leaks"], 1);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    assert_eq!(check(&site, "j2", "d1", "leaks").await["leaks"], 0);
    assert_eq!(check(&site, "j3", "d1", "none").await["leaks"], 0);
    assert_eq!(site.content("d1.qcow2", "qcow2"), shown);
}

#[tokio::test]
async fn a_damaged_disk_is_broken_until_it_is_repaired() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let path = site.path("disks/d1.qcow2");
    let whole = std::fs::read(&path).unwrap();
    damage(&site, "d1.qcow2");
    let damaged = std::fs::read(&path).unwrap();
    assert!(check(&site, "j1", "d1", "none").await["corruptions"].as_u64() > Some(0));
    assert_eq!(site.state("d1").await, Some(DiskState::Broken));
    // Somebody puts the file of yesterday there.
    for (bytes, state) in [(whole, DiskState::Ready), (damaged, DiskState::Broken)] {
        std::fs::write(&path, bytes).unwrap();
        check(&site, "j1", "d1", "none").await;
        assert_eq!(site.state("d1").await, Some(state));
    }
    let resize = json!({ "disk": "d1", "size": "9MiB" });
    let refused = site.refused("j2", "resize", resize).await;
    assert_eq!(code(&refused), Code::DiskWrongState);
    assert_eq!(check(&site, "j3", "d1", "all").await["corruptions"], 0);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_disk_that_a_tool_marked_as_damaged_is_opened_only_to_repair_it() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let path = site.path("disks/d1.qcow2");
    let image = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    image.write_all_at(&[2], 79).unwrap();
    let params = json!({ "disk": "d1" });
    let marked = site.refused("j1", "check_disk", params).await;
    assert_eq!(code(&marked), Code::ImageCorrupt);
    assert_eq!(site.state("d1").await, Some(DiskState::Broken));
    assert_eq!(check(&site, "j2", "d1", "all").await["corruptions"], 0);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
    // What else is wrong with a marked file still keeps it from every tool.
    image.write_all_at(&[2 | 4], 79).unwrap();
    let params = json!({ "disk": "d1", "repair": "all" });
    let refused = site.refused("j3", "check_disk", params).await;
    assert_eq!(code(&refused), Code::ImageDataFile);
}

#[tokio::test]
async fn a_disk_without_its_file_is_missing_until_it_is_back() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let (here, away) = (site.path("disks/d1.qcow2"), site.path("away"));
    std::fs::rename(&here, &away).unwrap();
    let params = json!({ "disk": "d1" });
    let refused = site.refused("j1", "check_disk", params.clone()).await;
    assert_eq!(code(&refused), Code::DiskWrongState);
    assert_eq!(refused.detail["state"], "missing");
    assert_eq!(site.state("d1").await, Some(DiskState::Missing));
    std::fs::rename(&away, &here).unwrap();
    check(&site, "j2", "d1", "none").await;
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
    // A pool that's away is another thing.
    std::fs::remove_file(site.path(".virtbus-pool")).unwrap();
    let refused = site.refused("j3", "check_disk", params).await;
    assert_eq!(code(&refused), Code::PoolUnreachable);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn looking_goes_beside_readers_and_repairing_does_not() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let overlay = json!({ "disk": "d1", "overlay": "d2" });
    site.done("j1", "create_snapshot", overlay).await;
    let of = async |repair: &str| {
        let params = json!({ "disk": "d1", "repair": repair });
        code(&site.refused("j", "check_disk", params).await)
    };
    assert_eq!(of("all").await, Code::DiskHasChildren);
    let domain = |mode| InUseBy::Domain {
        domain: "web1".parse().unwrap(),
        hypervisor: "hv-1".parse().unwrap(),
        mode,
    };
    site.change("d1", |record| {
        record.in_use_by = vec![domain(UseMode::Shared)]
    })
    .await;
    check(&site, "j2", "d1", "none").await;
    assert_eq!(of("leaks").await, Code::DiskInUse);
    site.change("d1", |record| {
        record.in_use_by = vec![domain(UseMode::Exclusive)]
    })
    .await;
    assert_eq!(of("none").await, Code::DiskInUse);
}

#[tokio::test]
async fn a_repair_that_was_killed_is_finished_by_the_next_claim() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    damage(&site, "d1.qcow2");
    let params = json!({ "disk": "d1", "repair": "all" });
    let envelope = json!({ "id": "j", "task": "check_disk", "params": params });
    site.die(&site.claimed(envelope.clone(), 1), Step::Commit)
        .await;
    site.mark_lock("d1");
    let found = site.store.recover(&site.claimed(envelope, 2)).await;
    assert_eq!(found.unwrap().unwrap()["corruptions"], 0);
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_slept_while_the_disk_was_changed_says_nothing_of_it() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let check = site.job("j1", "check_disk", json!({ "disk": "d1" }));
    let resize = || {
        let resized = site.done("j2", "resize", json!({ "disk": "d1", "size": "9MiB" }));
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(resized));
    };
    let found = site.run_and(&check, Step::Commit, &resize).await.unwrap();
    assert_eq!(found["virtual_size"], 4 * MIB);
    assert_eq!(site.record("d1").await.virtual_size, Some(9 * MIB));
    let params = json!({ "disk": "d1" });
    site.done("j3", "check_disk", params).await;
}

#[tokio::test]
async fn a_damaged_backing_is_not_held_against_the_disk_on_top() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let overlay = json!({ "disk": "d1", "overlay": "d2" });
    site.done("j1", "create_snapshot", overlay).await;
    let mark = |file: &str, byte: u8| {
        let path = site.path("disks").join(file);
        let image = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        image.write_all_at(&[byte], 79).unwrap();
    };
    mark("d1.qcow2", 2);
    let params = json!({ "disk": "d2" });
    let below = site.refused("j2", "check_disk", params.clone()).await;
    assert_eq!(code(&below), Code::ImageCorrupt);
    assert_eq!(below.detail["disk"], "d1");
    assert_eq!(site.state("d2").await, Some(DiskState::Ready));
    mark("d2.qcow2", 2);
    let both = site.refused("j3", "check_disk", params).await;
    assert_eq!(code(&both), Code::ImageCorrupt);
    assert_eq!(site.state("d2").await, Some(DiskState::Broken));
    let params = json!({ "disk": "d1" });
    site.refused("j4", "check_disk", params).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Broken));
}
