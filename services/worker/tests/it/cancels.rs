//! How running work ends before it is done.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use std::time::{Duration, Instant};
use virtbus_testbed::until;
use virtbus_wire::{
    Code, Event, JobState, StateName, Timestamp,
    state::{Cancel, WaitReason},
};
use virtbus_worker::WorkConfig;

fn cancel() -> Event {
    Event::Cancel(Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    })
}

#[tokio::test]
async fn a_running_job_is_stopped_and_put_back_before_it_is_cancelled() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let job = r#"{"id":"j","task":"ping","params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.low", job).await;
    site.wait("j", &[StateName::Running]).await;
    site.change("j", cancel()).await;
    let record = site.ended("j").await;
    assert_eq!(record.state.name(), StateName::Cancelled);
    assert_eq!(probe.notes.steps_of("j"), ["run", "stopped", "abandon"]);
    site.emptied().await;
    worker.end().await;
}

/// Other workers see that its owner lives, and would let its message lie again and again.
#[tokio::test]
async fn what_could_not_be_put_back_is_put_back_later_by_the_same_worker() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    probe.freeze("j", "abandon");
    probe.hold("j");
    site.publish("storage.p.low", r#"{"id":"j","task":"ping"}"#)
        .await;
    site.wait("j", &[StateName::Running]).await;
    site.change("j", cancel()).await;
    until("a second claim", async || {
        let steps = probe.notes.steps_of("j");
        if steps.contains(&"clean") {
            Ok(())
        } else {
            Err(steps)
        }
    })
    .await;
    probe.thaw("j");
    let record = site.ended("j").await;
    assert_eq!(record.state.name(), StateName::Cancelled);
    assert!(record.claim > 1);
    site.emptied().await;
    assert_eq!(site.deliveries().await, 1);
    worker.end().await;
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_tried_again_later() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let job = r#"{"id":"j","task":"ping","timeout_s":1,"params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.low", job).await;
    let parked = site.wait("j", &[StateName::Waiting]).await.value;
    let JobState::Waiting(waiting) = &parked.state else {
        panic!("{:?}", parked.state)
    };
    let WaitReason::Time {
        error: Some(error), ..
    } = &waiting.on
    else {
        panic!("{waiting:?}")
    };
    assert_eq!(error.code, Code::JobTimeout);
    assert_eq!(parked.tries_left, 2);
    site.emptied().await;
    worker.end().await;
}

#[tokio::test]
async fn work_of_which_nothing_is_heard_is_tried_again_later() {
    let (site, probe) = (Site::start().await, Probe::default());
    let work = WorkConfig {
        // Longer than a machine stands still in which the probe would tell something.
        stall_long_s: 5,
        ..one_slot()
    };
    let worker = site.worker("st-1", &probe, work).await;
    // The probe's convert tells its progress for a second, then hangs.
    let job = r#"{"id":"j","task":"convert","params":{"disk":"d","to":"e","format":"raw"}}"#;
    site.publish("storage.p.low", job).await;
    let parked = site.wait("j", &[StateName::Waiting]).await.value;
    let JobState::Waiting(waiting) = &parked.state else {
        panic!("{:?}", parked.state)
    };
    let WaitReason::Time {
        error: Some(error), ..
    } = &waiting.on
    else {
        panic!("{waiting:?}")
    };
    assert_eq!((error.code, error.retryable), (Code::JobStalled, true));
    assert_eq!(parked.tries_left, 2);
    let ran = waiting.since.since(parked.started_at.unwrap());
    assert!(ran >= Duration::from_millis(5_900), "{ran:?}");
    assert_eq!(probe.notes.steps_of("j"), ["run", "stopped", "abandon"]);
    worker.end().await;
}

#[tokio::test]
async fn a_stopped_worker_gives_its_jobs_back_with_their_try() {
    let (site, probe) = (Site::start().await, Probe::default());
    let work = WorkConfig {
        drain_s: 0,
        ..one_slot()
    };
    let worker = site.worker("st-1", &probe, work).await;
    let job = r#"{"id":"j","task":"ping","params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.low", job).await;
    site.wait("j", &[StateName::Running]).await;
    worker.end().await;
    let parked = site.wait("j", &[StateName::Waiting]).await.value;
    assert_eq!((parked.tries_left, parked.attempt), (3, 1));
    assert_eq!(probe.notes.steps_of("j"), ["run", "stopped", "abandon"]);
}

/// How often a worker's end is measured: it takes longer while the machine stands still.
const ROUNDS: u32 = 4;

#[tokio::test]
async fn a_worker_stops_in_time_while_the_server_is_silent() {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let time = time_to_stop_while_the_server_is_silent().await;
        // An answer that isn't there would be waited for longer, in every round.
        if time < Duration::from_secs(4) {
            return;
        }
        took.push(time);
    }
    panic!("{took:?}");
}

async fn time_to_stop_while_the_server_is_silent() -> Duration {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let seq = site.publish("storage.p.low", r#"{"task":"ping"}"#).await;
    site.ended(&format!("storage-{seq}")).await;
    site.server.freeze();
    // Longer than between two looks for the queue that isn't there.
    let looking = Duration::from_millis(1_500);
    assert!(
        tokio::time::timeout(looking, worker.stop.cancelled())
            .await
            .is_err()
    );
    let began = Instant::now();
    worker.end().await;
    began.elapsed()
}

#[tokio::test]
async fn an_error_that_may_pass_holds_no_slot_while_it_waits() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    site.publish(
        "storage.p.low",
        r#"{"id":"f","task":"ping","params":{"fail":true}}"#,
    )
    .await;
    site.wait("f", &[StateName::Waiting]).await;
    site.publish("storage.p.low", r#"{"id":"g","task":"ping"}"#)
        .await;
    assert_eq!(site.ended("g").await.state.name(), StateName::Succeeded);
    site.emptied().await;
    worker.end().await;
}
