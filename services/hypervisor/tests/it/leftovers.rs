//! Intents in the catalogue that were written when their jobs were over.

use crate::guests::{Guests, payload, template};
use serde_json::{Value, json};
use virtbus_testbed::until;
use virtbus_wire::{
    JobId, Timestamp,
    catalog::{Desired, DiskRecord, DiskState, DomainRecord, InUseBy, UseMode},
};

const QUEUE: &str = "hypervisor.hv-test.default";

/// A job that ended without having begun.
async fn over(guests: &Guests, task: &str, params: Value) -> JobId {
    let job = json!({"task": task, "params": params, "expires_at": "2001-01-01T00:00:00.000Z"});
    let id = guests.site.publish(QUEUE, job.to_string()).await;
    let state = guests.site.ended(&id).await.state;
    assert_eq!(state.name().as_str(), "failed", "{state:?}");
    id
}

/// Has a job's intent come late: the disk is being changed by it.
async fn takes(guests: &Guests, disk: &str, job: &JobId) {
    let mut record = guests.disk_record(disk).await;
    record.state = DiskState::Changing;
    record.owner_job = Some(job.clone());
    record.epoch += 1;
    guests.site.disks().put(disk, &record).await.unwrap();
}

fn by(domain: &str) -> InUseBy {
    InUseBy::Domain {
        domain: domain.parse().unwrap(),
        hypervisor: "hv-test".parse().unwrap(),
        mode: UseMode::Exclusive,
    }
}

/// Has a domain's hold on a disk come late.
async fn holds(guests: &Guests, domain: &str, disk: &str) {
    let mut record = guests.disk_record(disk).await;
    record.in_use_by.push(by(domain));
    guests.site.disks().put(disk, &record).await.unwrap();
}

async fn is_ready(guests: &Guests, disk: &str) {
    until(disk, async || match guests.disk_record(disk).await {
        record if record.state == DiskState::Ready => Ok(()),
        record => Err(record),
    })
    .await;
}

async fn is_free(guests: &Guests, disk: &str) {
    until(disk, async || match guests.site.users(disk).await {
        users if users.is_empty() => Ok(()),
        users => Err(users),
    })
    .await;
}

/// A start's intent that comes late, for a domain that has this record, or none.
async fn about_to_start(guests: &Guests, domain: &str, disk: &str, job: &JobId) {
    let before = guests.site.domain(domain).await;
    let new = json!({"uuid": "0199b1c2-0000-7000-8000-000000000001", "pool": "default",
        "state": "shutoff", "desired": "shutoff", "updated_at": Timestamp::now()});
    let before = before.unwrap_or_else(|| serde_json::from_value(new).unwrap());
    let record = DomainRecord {
        hypervisor: "hv-test".parse().ok(),
        desired: Desired::Running,
        disks: vec![disk.parse().unwrap()],
        owner_job: Some(job.clone()),
        epoch: before.epoch + 1,
        updated_at: Timestamp::now(),
        ..before
    };
    guests.site.domains().put(domain, &record).await.unwrap();
}

// One test: what is put back is left alone for ten seconds first, all of it the same ten.
#[tokio::test]
async fn what_a_job_that_is_over_had_begun_is_put_back() {
    let guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    guests.site.done(QUEUE, guests.start_of("web1")).await;
    for domain in ["off", "other"] {
        guests.run(domain).await;
        let destroy = json!({"domain": domain, "mode": "destroy"});
        guests.done("stop_domain", destroy).await;
    }
    for disk in ["new", "old", "spare", "living"] {
        guests.disk(disk).await;
    }

    // Of a domain that runs: a size, a commit, a new disk on top.
    let size = json!({"domain": "web1", "disk": "web1", "size": "8MiB"});
    let resize = over(&guests, "resize", size.clone()).await;
    takes(&guests, "web1", &resize).await;
    let commit = json!({"domain": "web1", "disk": "web1"});
    let commit_job = over(&guests, "commit", commit.clone()).await;
    takes(&guests, "base", &commit_job).await;
    let overlays = json!({"domain": "web1", "overlays": {"web1": "web1-a"}});
    let overlay = over(&guests, "create_snapshot", overlays.clone()).await;
    let above = DiskRecord {
        state: DiskState::Creating,
        backing: "web1".parse().ok(),
        owner_job: Some(overlay),
        in_use_by: vec![by("web1")],
        ..guests.disk_record("new").await
    };
    let disks = guests.site.disks();
    disks.put("web1-a", &above).await.unwrap();
    // Of a start that gave the domain another disk, before the one that it runs since.
    holds(&guests, "web1", "spare").await;
    // Of domains that are off: a start of one that there wasn't, one with another disk, a hold.
    let start = json!({"domain": "web2", "template": template(&["new"])});
    let start = over(&guests, "start_domain", start).await;
    about_to_start(&guests, "web2", "new", &start).await;
    holds(&guests, "web2", "new").await;
    let before = guests.site.domain("off").await.unwrap();
    let start = json!({"domain": "off", "template": template(&["old"])});
    let start = over(&guests, "start_domain", start).await;
    about_to_start(&guests, "off", "old", &start).await;
    holds(&guests, "off", "old").await;
    holds(&guests, "other", "other").await;
    // Of a job that isn't over: another host's, which is slow.
    let queue = "hypervisor.hv-slow.default";
    let slow = json!({"domain": "web1", "disk": "living", "size": "8MiB"});
    let slow = guests.site.claimed_by_the_dead(queue, "resize", slow).await;
    takes(&guests, "living", &slow).await;

    for disk in ["web1", "base"] {
        is_ready(&guests, disk).await;
    }
    for disk in ["new", "old", "other", "spare"] {
        is_free(&guests, disk).await;
    }
    until("no domain that never was", async || {
        match guests.site.domain("web2").await {
            None => Ok(()),
            Some(record) => Err(record.desired),
        }
    })
    .await;
    until("the domain as it was", async || {
        let record = guests.site.domain("off").await.ok_or("none")?;
        let is_so = (&record.disks, record.desired) == (&before.disks, Desired::Shutoff);
        if is_so { Ok(()) } else { Err("another one") }
    })
    .await;
    until("no disk on top", async || {
        let found = disks.get_latest("web1-a").await.unwrap();
        found.map_or(Ok(()), |entry| Err(entry.value.state))
    })
    .await;
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    assert_eq!(guests.site.users("base").await, ["web1 Shared"]);
    let living = guests.disk_record("living").await;
    assert_eq!(living.state, DiskState::Changing, "its job may go on");

    // All of it can be had again.
    guests.done("resize", size).await;
    guests.done("commit", commit).await;
    guests
        .site
        .done(QUEUE, payload("create_snapshot", &overlays))
        .await;
    guests.done("start_domain", json!({"domain": "off"})).await;
    let start = json!({"domain": "web2", "template": template(&["new"])});
    guests.done("start_domain", start).await;
}
