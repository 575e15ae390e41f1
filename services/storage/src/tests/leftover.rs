//! Intents that came when their jobs were over.

use super::site::{MIB, Site};
use crate::{care::Leftovers, disks::Disk, pool::Name, task::Step};
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_testbed::until;
use virtbus_wire::{
    DiskId, Event, JobId, Timestamp,
    catalog::{DiskState, UseMode},
    state::Cancel,
};
use virtbus_worker::Assignment;

const WORKER: &str = "st-7";

/// What another service with the same pools looks after.
async fn service(site: &Site) -> Leftovers {
    let worker = WORKER.parse().unwrap();
    // Two of them are one worker's, with one lease.
    if site.store.leases.owner(&worker).await.unwrap().is_none() {
        site.live_worker(WORKER).await;
    }
    Leftovers::new(site.another_store(|_| {}), site.jobs.clone(), worker)
}

/// One look, when what is there is old enough.
async fn look(service: &mut Leftovers) {
    service.look(later()).await.unwrap();
}

/// Looks until nothing is left to be put back: a program that a test beside this one starts has
/// the pool's locks too, for the moment before it becomes that program.
async fn settle(service: &mut Leftovers) {
    until("the end of what is to be put back", async || {
        look(service).await;
        match service.due(later()).await.unwrap() {
            due if due.is_empty() => Ok(()),
            due => Err(due),
        }
    })
    .await;
}

fn later() -> Timestamp {
    Timestamp::now().after(Duration::from_secs(11))
}

/// Makes a job's record, as it is once the job was cancelled.
async fn over(site: &Site, job: &Assignment) {
    let by = Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    };
    let record = job.record.apply(Event::Cancel(by), Timestamp::now());
    let record = record.unwrap();
    assert!(record.state.name().is_final());
    site.jobs.create(&record).await.unwrap();
}

/// Asks for a job again, by hand.
async fn retry(site: &Site, job: &str) {
    let entry = site.jobs.get_latest(&job.parse().unwrap()).await.unwrap();
    site.jobs
        .change(&entry.unwrap(), Event::Retry)
        .await
        .unwrap();
}

/// The intent of a job that's over comes late: its claim sent it, and was cut off.
async fn late(site: &Site, job: &Assignment, disk: &str) -> Disk {
    let before = site.disk(disk).await.unwrap();
    site.store.disks.take(&before, &job.id).await.unwrap()
}

fn resize(site: &Site) -> Assignment {
    site.job("j1", "resize", json!({ "disk": "d1", "size": "9MiB" }))
}

/// A disk that a job which is over says it's changing.
async fn stuck(site: &Site) -> Disk {
    site.filled_disk("d1").await;
    let job = resize(site);
    over(site, &job).await;
    late(site, &job, "d1").await
}

async fn is_usable(site: &Site, disk: &str) {
    let params = json!({ "disk": disk, "size": "8MiB" });
    site.done("after", "resize", params).await;
    assert_eq!(site.record(disk).await.virtual_size, Some(8 * MIB));
}

#[tokio::test]
async fn a_disk_that_an_ended_job_says_it_changes_is_usable_again() {
    let site = Site::start().await;
    stuck(&site).await;
    let refused = json!({ "disk": "d1", "size": "8MiB" });
    let error = site.refused("j2", "resize", refused).await;
    assert_eq!(error.code, virtbus_wire::Code::DiskBusy);
    settle(&mut service(&site).await).await;
    let record = site.record("d1").await;
    assert_eq!(record.state, DiskState::Ready);
    assert_eq!(record.virtual_size, Some(4 * MIB));
    is_usable(&site, "d1").await;
}

#[tokio::test]
async fn the_end_of_any_task_puts_back_what_came_late_of_it() {
    let site = Site::start().await;
    let mut service = service(&site).await;
    let tasks: [(&str, Value); 8] = [
        ("delete_disk", json!({ "disk": "d1", "mode": "unlink" })),
        ("create_snapshot", json!({ "disk": "d1", "snapshot": "s1" })),
        ("create_snapshot", json!({ "disk": "d1", "base": "b1" })),
        ("move_disk", json!({ "disk": "d1", "pool": "other" })),
        ("archive_disk", json!({ "disk": "d1" })),
        ("sparsify", json!({ "disk": "d1" })),
        ("rebase", json!({ "disk": "d1", "backing": null })),
        ("check_disk", json!({ "disk": "d1", "repair": "leaks" })),
    ];
    site.filled_disk("d1").await;
    for (n, (task, params)) in tasks.into_iter().enumerate() {
        let job = site.job(&format!("late-{n}"), task, params);
        over(&site, &job).await;
        late(&site, &job, "d1").await;
        settle(&mut service).await;
        assert_eq!(site.state("d1").await, Some(DiskState::Ready), "{task}");
        assert_eq!(site.files("disks"), ["d1.qcow2"], "{task}");
    }
    is_usable(&site, "d1").await;
}

#[tokio::test]
async fn what_ended_jobs_say_they_make_is_not_made() {
    let site = Site::start().await;
    let mut service = service(&site).await;
    site.filled_disk("d1").await;
    let of = |id: &str, task, params| site.job(id, task, params);
    let new = json!({ "disk": "d2", "backing": "d1" });
    let create = of("j2", "create_disk", new.clone());
    let adopt = json!({ "disk": "d3", "format": "qcow2", "file": "x.qcow2" });
    let base = json!({ "disk": "d1", "base": "d4" });
    for (disk, job) in [
        ("d2", create),
        ("d3", of("j3", "adopt_disk", adopt)),
        ("d4", of("j4", "create_snapshot", base)),
    ] {
        over(&site, &job).await;
        let mut record = site.record("d1").await;
        record.state = DiskState::Creating;
        record.owner_job = Some(job.id.clone());
        record.backing = Some("d1".parse().unwrap());
        record.children.clear();
        let id: DiskId = disk.parse().unwrap();
        site.store.disks.create(&id, record).await.unwrap();
        let below = "d1".parse().unwrap();
        site.store.disks.add_child(&below, &id).await.unwrap();
    }
    settle(&mut service).await;
    for disk in ["d2", "d3", "d4"] {
        assert_eq!(site.state(disk).await, None, "{disk}");
    }
    assert_eq!(site.record("d1").await.children, Vec::<DiskId>::new());
    site.done("again", "create_disk", new).await;
}

#[tokio::test]
async fn what_is_left_of_a_job_that_is_gone_is_put_back() {
    let site = Site::start().await;
    let mut service = service(&site).await;
    for (disk, state) in [("d1", DiskState::Changing), ("d2", DiskState::Archiving)] {
        site.filled_disk(disk).await;
        let before = site.disk(disk).await.unwrap();
        let job: JobId = format!("gone-{disk}").parse().unwrap();
        let disks = &site.store.disks;
        disks.take_as(&before, state, &job).await.unwrap();
    }
    site.filled_medium("m1").await;
    let medium = site.medium("m1").await.unwrap();
    let gone = "gone-m1".parse().unwrap();
    site.store.media.take(&medium, &gone).await.unwrap();
    settle(&mut service).await;
    for disk in ["d1", "d2"] {
        assert_eq!(site.state(disk).await, Some(DiskState::Ready), "{disk}");
    }
    let medium = site.medium("m1").await.unwrap();
    assert_eq!(medium.record.state, DiskState::Ready);
    is_usable(&site, "d1").await;
}

#[tokio::test]
async fn what_a_living_job_began_is_never_touched() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let job = resize(&site);
    site.jobs.create(&job.record).await.unwrap();
    site.die(&job, Step::Effect).await;
    let before = site.disk("d1").await;
    look(&mut service(&site).await).await;
    assert_eq!(site.disk("d1").await, before);
}

#[tokio::test]
async fn what_was_begun_just_now_is_not_touched() {
    let site = Site::start().await;
    let before = stuck(&site).await;
    let mut service = service(&site).await;
    service.look(Timestamp::now()).await.unwrap();
    assert_eq!(site.disk("d1").await.as_ref(), Some(&before));
    settle(&mut service).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_disk_that_a_domain_uses_is_left_when_the_job_is_gone() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.change("d1", |record| {
        record.state = DiskState::Changing;
        record.owner_job = Some("gone".parse().unwrap());
        record.in_use_by = vec![virtbus_wire::catalog::InUseBy::Domain {
            domain: "vm".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode: UseMode::Exclusive,
        }];
    })
    .await;
    let before = site.disk("d1").await;
    look(&mut service(&site).await).await;
    assert_eq!(site.disk("d1").await, before);
}

#[tokio::test]
async fn a_job_that_is_retried_between_the_looks_keeps_what_it_began() {
    let site = Site::start().await;
    stuck(&site).await;
    // The effect of the claim to come is begun, which only its mark says.
    site.die(&resize(&site), Step::Intend).await;
    site.mark_lock("d1");
    let mut service = service(&site).await;
    let due = service.due(later()).await.unwrap();
    assert_eq!(due.len(), 1);
    retry(&site, "j1").await;
    let before = site.disk("d1").await;
    for leftover in due {
        service.put_back(leftover).await.unwrap();
    }
    assert_eq!(site.disk("d1").await, before);
    let text = std::fs::read_to_string(site.path("locks/disk.d1")).unwrap();
    assert!(text.contains("mark"), "{text}");
    assert_eq!(service.due(later()).await.unwrap().len(), 0);
}

#[tokio::test]
async fn two_services_put_one_thing_back_once() {
    let site = Site::start().await;
    let intent = stuck(&site).await;
    let (mut one, mut other) = (service(&site).await, service(&site).await);
    let too_late = other.due(later()).await.unwrap();
    assert_eq!(too_late.len(), 1);
    settle(&mut one).await;
    let back = site.disk("d1").await.unwrap();
    assert_eq!(back.revision, intent.revision + 1);
    // By now a job of somebody else's is at it.
    let next = site.store.disks.take(&back, &"j8".parse().unwrap()).await;
    for leftover in too_late {
        other.put_back(leftover).await.unwrap();
    }
    assert_eq!(site.disk("d1").await, next.ok());
}

#[tokio::test]
async fn two_services_at_the_same_time_write_once() {
    let site = Site::start().await;
    let intent = stuck(&site).await;
    let (mut one, mut other) = (service(&site).await, service(&site).await);
    tokio::join!(settle(&mut one), settle(&mut other));
    let back = site.disk("d1").await.unwrap();
    assert_eq!(back.record.state, DiskState::Ready);
    assert_eq!(back.revision, intent.revision + 1);
}

#[tokio::test]
async fn while_another_program_has_the_disk_it_is_not_put_back() {
    let site = Site::start().await;
    let intent = stuck(&site).await;
    let held = until("the disk's lock", async || {
        let lock = Name::lock(&"d1".parse::<DiskId>().unwrap());
        let taken = crate::fence::Quiet::take(&site.root(), lock).await.unwrap();
        taken.ok_or("somebody has it")
    })
    .await;
    let mut service = service(&site).await;
    look(&mut service).await;
    assert_eq!(site.disk("d1").await.as_ref(), Some(&intent));
    drop(held);
    settle(&mut service).await;
    assert_eq!(site.state("d1").await, Some(DiskState::Ready));
}

#[tokio::test]
async fn a_service_without_a_lease_puts_nothing_back() {
    let site = Site::start().await;
    let intent = stuck(&site).await;
    let store = site.another_store(|_| {});
    let mut service = Leftovers::new(store, site.jobs.clone(), "st-8".parse().unwrap());
    look(&mut service).await;
    assert_eq!(site.disk("d1").await, Some(intent));
}
