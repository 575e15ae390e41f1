//! Lines that are longer than a lock's record names, and those who don't stand in them.

use crate::{
    probe::{CROWD, Gate, Probe},
    site::{Site, one_slot},
};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::interval;
use tokio_util::task::AbortOnDropHandle;
use virtbus_bus::{Bucket, locks};
use virtbus_testbed::until;
use virtbus_wire::{
    StateName,
    protocol::lock::{Holder, Lock},
};
use virtbus_worker::WorkConfig;

const LOCK: &str = r#""locks":{"exclusive":["x.a"]}"#;

/// Another job has the lock, and all who ask are behind some whom its record doesn't name.
async fn long_line(site: &Site) {
    let (job, claim) = ("other".parse().unwrap(), 1);
    let since = None;
    let line = Lock {
        exclusive: Some(Holder { job, claim, since }),
        beyond: Some(1),
        ..Lock::default()
    };
    let locks: Bucket<Lock> = Bucket::new(&site.bus().await, locks::BUCKET);
    locks.put("x.a", &line).await.unwrap();
}

/// Two slots.
fn two_slots() -> WorkConfig {
    WorkConfig {
        slots: 2,
        ..one_slot()
    }
}

#[tokio::test]
async fn jobs_at_the_end_of_a_long_line_need_no_slot_and_those_between_them_do() {
    let (site, probe) = (Site::start().await, Probe::default());
    long_line(&site).await;
    for n in 0..100 {
        let next = format!(r#"{{"id":"next-{n}","task":"ping","labels":{{"crowd":""}},{LOCK}}}"#);
        site.publish("storage.p.low", &next).await;
        if n % 10 == 5 {
            let free = format!(r#"{{"id":"free-{n}","task":"ping"}}"#);
            site.publish("storage.p.low", &free).await;
        }
    }
    let worker = site.worker("st-1", &probe, two_slots()).await;
    site.emptied().await;
    for n in 0..100 {
        let parked = site.wait(&format!("next-{n}"), &[StateName::Waiting]).await;
        assert_eq!((parked.value.claim, parked.value.attempt), (1, 0), "{n}");
        if n % 10 == 5 {
            let ended = site.ended(&format!("free-{n}")).await;
            assert_eq!((ended.state.name(), ended.claim), (StateName::Succeeded, 1));
        }
    }
    let at_once = probe.crowd_max.load(Ordering::Relaxed);
    assert!(at_once >= CROWD, "{at_once} at once");
    worker.end().await;
}

/// Jobs that all go to the end of the line.
async fn throng(site: &Site, count: usize) {
    for n in 0..count {
        let next = format!(r#"{{"id":"next-{n}","task":"ping","labels":{{"throng":""}},{LOCK}}}"#);
        site.publish("storage.p.low", &next).await;
    }
}

/// Lets them through one after the other, until dropped. Each asks twice for its locks.
fn slowly(gate: Gate, each: Duration) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut ticks = interval(each / 2);
        loop {
            ticks.tick().await;
            gate.open_for(1);
        }
    }))
}

/// Waits until the server gave out so many.
async fn given_out(site: &Site, count: usize) {
    until("all were given out", async || {
        match site.deliveries().await {
            given if given >= count => Ok(()),
            given => Err(given.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_is_behind_a_crowd_for_one_lock_does_not_wait_until_it_stands_in_line() {
    const COUNT: usize = 400;
    let (site, probe) = (Site::start().await, Probe::default());
    long_line(&site).await;
    throng(&site, COUNT).await;
    for n in 0..10 {
        let free = format!(r#"{{"id":"free-{n}","task":"ping"}}"#);
        site.publish("storage.p.low", &free).await;
    }
    let worker = site.worker("st-1", &probe, two_slots()).await;
    let slowly = slowly(probe.throng.clone(), Duration::from_millis(200));
    for n in 0..10 {
        let ended = site.ended(&format!("free-{n}")).await;
        assert_eq!((ended.state.name(), ended.claim), (StateName::Succeeded, 1));
    }
    let middle = format!("next-{}", COUNT / 2).parse().unwrap();
    assert_eq!(site.jobs.get_latest(&middle).await.unwrap(), None);
    drop(slowly);
    probe.throng.open_for(100 * COUNT);
    site.emptied().await;
    for n in 0..COUNT {
        let parked = site.wait(&format!("next-{n}"), &[StateName::Waiting]).await;
        assert_eq!((parked.value.claim, parked.value.attempt), (1, 0), "{n}");
    }
    worker.end().await;
}

#[tokio::test]
async fn a_worker_that_ends_hands_back_what_it_read_ahead() {
    const COUNT: usize = 200;
    let (site, probe) = (Site::start().await, Probe::default());
    // What isn't handed back comes again after the test's patience.
    site.set_ack_wait(Duration::from_secs(3600)).await;
    long_line(&site).await;
    throng(&site, COUNT).await;
    let worker = site.worker("st-1", &probe, two_slots()).await;
    let slowly = slowly(probe.throng.clone(), Duration::from_millis(200));
    given_out(&site, COUNT).await;
    assert!(site.with_workers().await > 100);
    drop(slowly);
    probe.throng.open_for(100 * COUNT);
    worker.end().await;
    let worker = site.worker("st-2", &probe, two_slots()).await;
    site.emptied().await;
    worker.end().await;
}

#[tokio::test]
async fn what_was_read_ahead_is_given_to_nobody_else_while_it_waits_for_its_turn() {
    const COUNT: usize = 400;
    let (site, probe) = (Site::start().await, Probe::default());
    site.set_ack_wait(Duration::from_secs(4)).await;
    long_line(&site).await;
    throng(&site, COUNT).await;
    let worker = site.worker("st-1", &probe, two_slots()).await;
    let slowly = slowly(probe.throng.clone(), Duration::from_millis(20));
    given_out(&site, COUNT).await;
    let idle = Probe::default();
    let other = site.worker("st-2", &idle, two_slots()).await;
    // In line after longer than the server waits for a word.
    site.wait("next-250", &[StateName::Waiting]).await;
    assert!(site.deliveries().await < COUNT + 40);
    drop(slowly);
    for probe in [probe, idle] {
        probe.throng.open_for(100 * COUNT);
    }
    site.emptied().await;
    worker.end().await;
    other.end().await;
}
