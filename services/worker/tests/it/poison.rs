//! Jobs that cost each worker that looked at them, before their work began.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
    takeovers::left_behind,
};
use virtbus_testbed::until;
use virtbus_wire::{
    BootId, Code, Event, JobState, StateName, Timestamp,
    protocol::poison::LOST_MAX,
    state::{Cancel, Owner, Phase},
};

/// A claim by one of many workers that nobody has seen.
fn claim(number: u32) -> Event {
    Event::Claim {
        owner: Owner {
            worker: format!("st-dead-{number}").parse().unwrap(),
            boot: BootId::from_u128(number.into()),
        },
        seq: 1,
        begin: false,
    }
}

/// Claims that were lost one after the other before their work: so many that one more is too many.
fn lost_claims() -> impl Iterator<Item = Event> {
    (0..LOST_MAX).map(claim)
}

async fn letters(site: &Site) -> u64 {
    let dlq = site.jetstream.get_stream("DLQ").await.unwrap();
    dlq.get_info().await.unwrap().state.messages
}

#[tokio::test]
async fn a_job_killed_its_workers_before_its_work_and_ends_without_another_look_at_it() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    left_behind(&site, "j", lost_claims().collect()).await;
    let record = site.ended("j").await;
    let JobState::Failed(_, error) = &record.state else {
        panic!("{:?}", record.state)
    };
    assert_eq!((error.code, record.attempt), (Code::WorkerLost, 0));
    assert_eq!((record.lost, record.claim), (5, 6));
    assert!(probe.notes.steps_of("j").is_empty());
    site.emptied().await;
    assert_eq!(letters(&site).await, 1);
    // Once more by hand, and now it's well.
    let again = site.change("j", Event::Retry).await;
    site.jobs.publish(&again.value).await.unwrap();
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    worker.end().await;
}

#[tokio::test]
async fn a_job_that_was_cancelled_as_it_killed_its_workers_is_cancelled() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let cancel = Event::Cancel(Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    });
    left_behind(&site, "j", lost_claims().chain([cancel]).collect()).await;
    assert_eq!(site.ended("j").await.state.name(), StateName::Cancelled);
    assert!(probe.notes.steps_of("j").is_empty());
    site.emptied().await;
    assert_eq!(letters(&site).await, 0);
    worker.end().await;
}

#[tokio::test]
async fn a_job_whose_work_had_begun_is_left_alone_for_a_while_and_takes_no_slot() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let began = [claim(100), Event::Enter(Phase::Work)];
    let events = began.into_iter().chain(lost_claims());
    let before = left_behind(&site, "j", events.collect()).await;
    until("a delivery of it", async || match site.deliveries().await {
        // The first one is that of its publication.
        0 | 1 => Err("none"),
        _ => Ok(()),
    })
    .await;
    site.publish("storage.p.low", r#"{"id":"other","task":"ping"}"#)
        .await;
    let other = site.ended("other").await;
    assert_eq!(other.state.name(), StateName::Succeeded);
    let record = site.wait("j", &[StateName::Running]).await.value;
    assert_eq!(record, before);
    assert!(probe.notes.steps_of("j").is_empty());
    worker.end().await;
}
