//! Jobs that wait for locks, for time and for one another.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use virtbus_bus::{Bucket, limits::tenant_lock, locks};
use virtbus_wire::{
    Class, JobState, StateName,
    catalog::{LIMITS_KEY, LimitsRecord, TenantLimits},
    protocol::lock::{Holder, Lock, Mode},
    state::WaitReason,
};
use virtbus_worker::WorkConfig;

const LOCK: &str = r#""locks":{"exclusive":["x.a"]}"#;

#[tokio::test]
async fn a_job_that_waits_for_a_lock_goes_on_as_soon_as_it_is_free() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    probe.hold("slow");
    let slow = format!(r#"{{"id":"slow","task":"ping",{LOCK}}}"#);
    site.publish("storage.p.low", &slow).await;
    site.wait("slow", &[StateName::Running]).await;
    for n in 0..5 {
        let next = format!(r#"{{"id":"next-{n}","task":"ping",{LOCK}}}"#);
        site.publish("storage.p.low", &next).await;
        let parked = site
            .wait(&format!("next-{n}"), &[StateName::Waiting])
            .await
            .value;
        let JobState::Waiting(waiting) = &parked.state else {
            panic!("{:?}", parked.state)
        };
        let taken = site.lock("x.a").await.unwrap().exclusive.unwrap();
        assert!(taken.since.is_some());
        let on = WaitReason::Lock {
            resource: "x.a".to_owned(),
            holder: Some("job.slow".to_owned()),
            since: taken.since,
        };
        assert_eq!(waiting.on, on);
        assert!(parked.ticket.is_some());
    }
    probe.let_go("slow");
    for n in 0..5 {
        assert_eq!(
            site.ended(&format!("next-{n}")).await.state.name(),
            StateName::Succeeded
        );
    }
    let expected = ["slow", "next-0", "next-1", "next-2", "next-3", "next-4"];
    assert_eq!(probe.notes.jobs_at("effect"), expected);
    site.emptied().await;
    let locks = site.jetstream.get_key_value("locks").await.unwrap();
    let left = locks.entry("x.a").await.unwrap();
    assert!(
        left.is_none_or(|entry| entry.value.is_empty()),
        "the lock's record is gone"
    );
    worker.end().await;
}

#[tokio::test]
async fn behind_one_that_has_not_come_for_the_lock_yet_that_one_is_named() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let first = r#"{"id":"first","task":"ping","not_before":"2999-01-01T00:00:00Z"}"#;
    site.publish("storage.p.low", first).await;
    let first = site.wait("first", &[StateName::Waiting]).await.value;
    let (job, claim, since) = (first.id, first.claim, None);
    let line = Lock::default().enlist(&Holder { job, claim, since }, 1, Mode::Exclusive);
    let locks: Bucket<Lock> = Bucket::new(&site.bus().await, locks::BUCKET);
    locks.put("x.a", &line).await.unwrap();
    let second = format!(r#"{{"id":"second","task":"ping",{LOCK}}}"#);
    site.publish("storage.p.low", &second).await;
    let parked = site.wait("second", &[StateName::Waiting]).await.value;
    let JobState::Waiting(waiting) = &parked.state else {
        panic!("{:?}", parked.state)
    };
    let on = WaitReason::Lock {
        resource: "x.a".to_owned(),
        holder: Some("job.first".to_owned()),
        since: None,
    };
    assert_eq!(waiting.on, on);
    worker.end().await;
}

#[tokio::test]
async fn a_job_whose_disk_is_in_use_waits_in_line_for_its_locks() {
    let (site, probe) = (Site::start().await, Probe::default());
    probe.use_by("x.a", "web1");
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    for (id, mode) in [
        ("alone", "exclusive"),
        ("shares", "shared"),
        ("too", "shared"),
    ] {
        let job = format!(r#"{{"id":"{id}","task":"ping","locks":{{"{mode}":["x.a"]}}}}"#);
        site.publish("storage.p.low", &job).await;
        site.wait(id, &[StateName::Waiting]).await;
    }
    site.emptied().await;
    let mut tickets = Vec::new();
    for id in ["alone", "shares", "too"] {
        let parked = site.wait(id, &[StateName::Waiting]).await.value;
        let JobState::Waiting(waiting) = &parked.state else {
            panic!("{:?}", parked.state)
        };
        let WaitReason::Lock { resource, .. } = &waiting.on else {
            panic!("{waiting:?}")
        };
        assert_eq!(resource, "x.a");
        // Nobody wakes the others in turn: what they wait for is still there.
        assert_eq!((parked.claim, parked.tries_left), (1, 3), "{id}");
        tickets.push((id.to_owned(), parked.ticket.unwrap()));
    }
    let lock = site.lock("x.a").await.unwrap();
    let in_line = lock.waiters.iter();
    let in_line: Vec<(String, u64)> = in_line.map(|w| (w.job.to_string(), w.ticket)).collect();
    assert_eq!(in_line, tickets);
    assert!(lock.exclusive.is_none() && lock.shared.is_empty());
    worker.end().await;
}

#[tokio::test]
async fn a_tenants_jobs_wait_for_each_other_and_not_those_of_others() {
    let (site, probe) = (Site::start().await, Probe::default());
    let limits: Bucket<LimitsRecord> = Bucket::new(&site.bus().await, "pools");
    let two = TenantLimits {
        storage: 2,
        hypervisor: 0,
    };
    let record = LimitsRecord {
        tenant_max_running: two,
        ..LimitsRecord::default()
    };
    limits.put(LIMITS_KEY, &record).await.unwrap();
    let work = WorkConfig {
        slots: 8,
        reserved_high: 0,
        ..WorkConfig::default()
    };
    let worker = site.worker("st-1", &probe, work).await;
    let publish = async |id: &str, tenant: &str| {
        let job = format!(r#"{{"id":"{id}","task":"ping","tenant":"{tenant}"}}"#);
        site.publish("storage.p.low", &job).await;
    };
    let first = ["first-0", "first-1"];
    for id in first {
        probe.hold(id);
        publish(id, "acme").await;
        site.wait(id, &[StateName::Running]).await;
    }
    for n in 0..6 {
        publish(&format!("acme-{n}"), "acme").await;
        let parked = site.wait(&format!("acme-{n}"), &[StateName::Waiting]).await;
        let JobState::Waiting(waiting) = &parked.value.state else {
            panic!("{:?}", parked.value.state)
        };
        let full = WaitReason::Tenant {
            running: 2,
            limit: 2,
        };
        assert_eq!(waiting.on, full);
    }
    publish("other", "other").await;
    assert_eq!(site.ended("other").await.state.name(), StateName::Succeeded);
    assert_eq!(probe.notes.jobs_at("effect"), ["other"]);
    for id in first {
        probe.let_go(id);
    }
    for n in 0..6 {
        let ended = site.ended(&format!("acme-{n}")).await;
        // One claim that was refused, and one that was granted: nobody is woken in vain.
        assert_eq!((ended.state.name(), ended.claim), (StateName::Succeeded, 2));
    }
    site.emptied().await;
    let lock = tenant_lock(Class::Storage, &"acme".parse().unwrap());
    assert_eq!(site.lock(&lock).await, None);
    worker.end().await;
}

#[tokio::test]
async fn each_class_has_its_own_cap_for_a_tenant() {
    let class = Class::Hypervisor;
    let (site, probe) = (Site::start_of(class).await, Probe::of(class));
    let limits: Bucket<LimitsRecord> = Bucket::new(&site.bus().await, "pools");
    let record = LimitsRecord {
        tenant_max_running: TenantLimits {
            storage: 1,
            hypervisor: 2,
        },
        ..LimitsRecord::default()
    };
    limits.put(LIMITS_KEY, &record).await.unwrap();
    let worker = site.worker("hv-1", &probe, WorkConfig::default()).await;
    let publish = async |id: &str| {
        let job = format!(r#"{{"id":"{id}","task":"ping","tenant":"acme"}}"#);
        site.publish("hypervisor.p.high", &job).await;
    };
    for id in ["a", "b"] {
        probe.hold(id);
        publish(id).await;
        site.wait(id, &[StateName::Running]).await;
    }
    publish("c").await;
    let parked = site.wait("c", &[StateName::Waiting]).await.value;
    let JobState::Waiting(waiting) = &parked.state else {
        panic!("{:?}", parked.state)
    };
    let (running, limit) = (2, 2);
    assert_eq!(waiting.on, WaitReason::Tenant { running, limit });
    let lock = tenant_lock(class, &"acme".parse().unwrap());
    let lock = site.lock(&lock).await.unwrap();
    assert_eq!((lock.shared.len(), lock.waiters.len()), (2, 1));
    probe.let_go("a");
    assert_eq!(site.ended("c").await.state.name(), StateName::Succeeded);
    probe.let_go("b");
    site.ended("b").await;
    worker.end().await;
}

#[tokio::test]
async fn a_waiting_job_holds_no_slot() {
    let (site, probe) = (Site::start().await, Probe::default());
    let work = WorkConfig {
        slots: 2,
        reserved_high: 0,
        ..WorkConfig::default()
    };
    let worker = site.worker("st-1", &probe, work).await;
    let slow = format!(r#"{{"id":"slow","task":"ping","params":{{"sleep_ms":60000}},{LOCK}}}"#);
    site.publish("storage.p.low", &slow).await;
    site.wait("slow", &[StateName::Running]).await;
    for n in 0..20 {
        let blocked = format!(r#"{{"id":"blocked-{n}","task":"ping",{LOCK}}}"#);
        site.publish("storage.p.low", &blocked).await;
    }
    site.publish("storage.p.low", r#"{"id":"free","task":"ping"}"#)
        .await;
    assert_eq!(site.ended("free").await.state.name(), StateName::Succeeded);
    worker.task.abort();
}

#[tokio::test]
async fn a_job_is_not_claimed_before_its_time_nor_before_those_it_comes_after() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let early = r#"{"id":"early","task":"ping","not_before":"2999-01-01T00:00:00Z"}"#;
    site.publish("storage.p.low", early).await;
    site.publish(
        "storage.p.low",
        r#"{"id":"next","task":"ping","after":["unknown"]}"#,
    )
    .await;
    let late = r#"{"id":"late","task":"ping","expires_at":"2001-01-01T00:00:00Z"}"#;
    site.publish("storage.p.low", late).await;
    assert_eq!(site.ended("late").await.state.name(), StateName::Failed);
    for id in ["early", "next"] {
        assert_eq!(site.wait(id, &[StateName::Waiting]).await.value.claim, 0);
    }
    site.emptied().await;
    worker.end().await;
}
