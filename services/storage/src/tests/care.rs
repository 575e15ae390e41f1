use super::site::Site;
use crate::care::{Kind, Report};
use serde_json::json;
use std::{os::unix::fs::symlink, time::Duration};
use virtbus_testbed::until;
use virtbus_wire::{Timestamp, catalog::DiskState};

async fn care(site: &Site, every: Duration) -> Option<Report> {
    let pools = site.store.pools();
    let pool = pools.get(&"default".parse().unwrap()).unwrap();
    site.store.care(&site.jobs, pool, every).await.unwrap()
}

/// A program that a test beside this one starts has all that's open, locks too, for the moment
/// before it becomes that program.
pub(super) async fn now(site: &Site) -> Report {
    until("the lock of whoever cares", async || {
        care(site, Duration::ZERO).await.ok_or("somebody has it")
    })
    .await
}

/// Cares until the disk is in this state.
pub(super) async fn becomes(site: &Site, disk: &str, wanted: DiskState) {
    until("the end of a disk", async || {
        now(site).await;
        match site.state(disk).await {
            Some(state) if state == wanted => Ok(()),
            state => Err(state),
        }
    })
    .await;
}

fn found(report: &Report) -> Vec<(Kind, &str)> {
    let findings = report.findings.iter();
    findings
        .map(|finding| (finding.kind, finding.file.as_str()))
        .collect()
}

/// Longer ago than a pool keeps its trash that doesn't say for how long.
pub(super) async fn long_ago(site: &Site, disk: &str) {
    days_ago(site, disk, 8).await;
}

async fn days_ago(site: &Site, disk: &str, days: u64) {
    let days = Duration::from_secs(days * 24 * 3600);
    let then = Timestamp::from_millis(
        Timestamp::now().as_millis() - i64::try_from(days.as_millis()).unwrap(),
    );
    site.change(disk, |record| record.updated_at = then).await;
}

#[tokio::test]
async fn the_trash_is_emptied_after_the_pools_time_children_first() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done(
        "make",
        "create_disk",
        json!({ "disk": "d2", "backing": "d1" }),
    )
    .await;
    site.filled_disk("d3").await;
    for (job, disk) in [("j1", "d1"), ("j3", "d3")] {
        site.done(job, "delete_disk", json!({ "disk": disk, "tree": true }))
            .await;
    }
    now(&site).await;
    assert_eq!(site.files("trash").len(), 3);
    long_ago(&site, "d1").await;
    now(&site).await;
    // What is on top of it isn't over yet.
    assert_eq!(site.state("d1").await, Some(DiskState::Trashed));
    long_ago(&site, "d2").await;
    long_ago(&site, "d1").await;
    becomes(&site, "d2", DiskState::Deleted).await;
    long_ago(&site, "d1").await;
    becomes(&site, "d1", DiskState::Deleted).await;
    let report = now(&site).await;
    for disk in ["d1", "d2"] {
        let record = site.record(disk).await;
        assert_eq!(record.state, DiskState::Deleted);
        assert!(record.actual_size.unwrap() > 0);
    }
    assert_eq!(site.files("trash"), ["disk.d3.j3.1"]);
    assert_eq!(found(&report), []);
    site.done("j4", "restore_disk", json!({ "disk": "d3" }))
        .await;
}

#[tokio::test]
async fn each_pool_keeps_its_trash_for_its_own_time() {
    let site = Site::start().await;
    for disk in ["d1", "d2"] {
        site.filled_disk(disk).await;
        let params = json!({ "disk": disk });
        site.done(&format!("j-{disk}"), "delete_disk", params).await;
    }
    for (keep, disk, days, state) in [
        ("30d", "d1", 8, DiskState::Trashed),
        ("1d", "d1", 2, DiskState::Deleted),
        ("1d", "d2", 0, DiskState::Trashed),
    ] {
        site.register(json!({ "pool": "default", "trash_keep": keep }))
            .await;
        days_ago(&site, disk, days).await;
        if state == DiskState::Deleted {
            becomes(&site, disk, state).await;
        }
        now(&site).await;
        assert_eq!(site.state(disk).await, Some(state), "{keep} {days}");
    }
    assert_eq!(site.files("trash"), ["disk.d2.j-d2.1"]);
}

#[tokio::test]
async fn the_trash_keeps_what_a_job_is_at() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done("j1", "delete_disk", json!({ "disk": "d1" }))
        .await;
    long_ago(&site, "d1").await;
    let held = until("the disk's lock", async || {
        let lock = crate::pool::Name::lock(&"d1".parse::<virtbus_wire::DiskId>().unwrap());
        let taken = crate::fence::Quiet::take(&site.root(), lock).await.unwrap();
        taken.ok_or("somebody has it")
    })
    .await;
    now(&site).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Trashed));
    assert_eq!(site.files("trash").len(), 1);
    drop(held);
    becomes(&site, "d1", DiskState::Deleted).await;
}

#[tokio::test]
async fn what_does_not_agree_is_told_and_left_as_it_is() {
    let site = Site::start().await;
    for disk in ["d1", "d2", "d3", "d4", "d5", "d6"] {
        site.filled_disk(disk).await;
    }
    for medium in ["m1", "m2", "m3", "m4"] {
        site.filled_medium(medium).await;
    }
    site.done("j5", "archive_disk", json!({ "disk": "d5" }))
        .await;
    assert_eq!(found(&now(&site).await), []);
    std::fs::remove_file(site.path("disks/d1.qcow2")).unwrap();
    std::fs::remove_file(site.dir.path().join("archive/disks/d5.qcow2.zst")).unwrap();
    std::fs::write(site.path("disks/d2.qcow2"), vec![0; 4096]).unwrap();
    site.change("d3", |record| record.virtual_size = Some(1 << 20))
        .await;
    std::fs::remove_file(site.path("disks/d6.qcow2")).unwrap();
    symlink("/etc/passwd", site.path("disks/d6.qcow2")).unwrap();
    std::fs::write(site.path("disks/d9.qcow2"), "mine").unwrap();
    std::fs::write(site.path("disks/.j9.1.d8.part"), "left").unwrap();
    std::fs::write(site.path("media/notes.txt"), "mine").unwrap();
    let medium = std::fs::OpenOptions::new()
        .append(true)
        .open(site.path("media/m2.iso"));
    medium.unwrap().set_len(1 << 19).unwrap();
    std::fs::write(site.path("media/m3.iso"), vec![3; 1 << 20]).unwrap();
    std::fs::remove_file(site.path("media/m4.iso")).unwrap();
    let report = now(&site).await;
    assert_eq!(
        found(&report),
        [
            (Kind::Missing, "disks/d1.qcow2"),
            (Kind::Missing, "disks/d5.qcow2.zst"),
            (Kind::Missing, "media/m4.iso"),
            (Kind::Stray, "disks/d9.qcow2"),
            (Kind::Stray, "media/notes.txt"),
            (Kind::Size, "disks/d3.qcow2"),
            (Kind::Size, "media/m2.iso"),
            (Kind::Header, "disks/d2.qcow2"),
            (Kind::Header, "disks/d6.qcow2"),
            (Kind::Header, "media/m3.iso"),
        ]
    );
    assert_eq!(report.count(Kind::Header), 3);
    assert_eq!(report.records, 10);
    for disk in ["d1", "d2", "d3", "d4", "d6"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Ready), "{disk}");
    }
    assert!(site.path("disks/d9.qcow2").exists());
    assert!(!site.path("disks/.j9.1.d8.part").exists(), "nobody's");
    // It's there to be read, by people and by the other workers.
    let text = std::fs::read_to_string(site.path(".virtbus-report.json")).unwrap();
    assert!(!text.contains(site.dir.path().to_str().unwrap()), "{text}");
    std::fs::remove_file(site.path("disks/d9.qcow2")).unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(care(&site, hour).await, Some(report));
}

#[tokio::test]
async fn a_disk_on_top_that_never_came_to_be_is_forgotten() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let overlay = json!({ "disk": "d2", "backing": "d1" });
    site.done("make", "create_disk", overlay).await;
    site.change("d1", |record| record.children.push("d9".parse().unwrap()))
        .await;
    now(&site).await;
    assert_eq!(site.record("d1").await.children, ["d2".parse().unwrap()]);
}

#[tokio::test]
async fn a_pool_that_is_away_misses_nothing() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    std::fs::rename(site.path(""), site.dir.path().join("away")).unwrap();
    std::fs::create_dir(site.path("")).unwrap();
    let pools = site.store.pools();
    let pool = pools.get(&"default".parse().unwrap()).unwrap();
    let cared = site.store.care(&site.jobs, pool, Duration::ZERO).await;
    assert!(cared.is_err());
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn an_archive_that_is_away_misses_nothing() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done("j1", "archive_disk", json!({ "disk": "d1" }))
        .await;
    let archive = site.dir.path().join("archive");
    std::fs::rename(archive, site.dir.path().join("away")).unwrap();
    let report = now(&site).await;
    assert_eq!((found(&report), report.archive), (Vec::new(), false));
}
