//! Claims of jobs that somebody had before.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use std::time::Duration;
use virtbus_testbed::until;
use virtbus_wire::{
    BootId, Code, Event, JobState, Record, StateName, Timestamp,
    state::{Cancel, Owner, Phase, WaitReason},
};
use virtbus_worker::WorkConfig;

const LOCK: &str = r#""locks":{"exclusive":["x.a"]}"#;

/// A process of a worker that nobody has seen.
fn dead() -> Owner {
    Owner {
        worker: "st-dead".parse().unwrap(),
        boot: BootId::from_u128(7),
    }
}

fn claim() -> Event {
    Event::Claim {
        owner: dead(),
        seq: 1,
        begin: false,
    }
}

/// Makes a job of this id whose record is what `events` make of a queued one, with its message.
pub(crate) async fn left_behind(site: &Site, id: &str, events: Vec<Event>) -> Record {
    left(site, id, &format!(",{LOCK}"), events).await
}

/// The same without locks of its own.
async fn left_behind_without_locks(site: &Site, id: &str, events: Vec<Event>) -> Record {
    left(site, id, "", events).await
}

async fn left(site: &Site, id: &str, more: &str, events: Vec<Event>) -> Record {
    let job = format!(r#"{{"id":"{id}","task":"ping","not_before":"2999-01-01T00:00:00Z"{more}}}"#);
    site.publish("storage.p.low", &job).await;
    let mut record = site.wait(id, &[StateName::Waiting]).await.value;
    for event in [Event::Publish { round: false }].into_iter().chain(events) {
        record = record.apply(event, Timestamp::now()).unwrap();
    }
    site.write(id, &record).await;
    site.jobs.publish(&record).await.unwrap();
    record
}

/// A worker on which a job holds the lock for a while.
async fn with_a_holder(site: &Site, probe: &Probe) -> crate::site::Running {
    let worker = site.worker("st-1", probe, WorkConfig::default()).await;
    let slow = format!(r#"{{"id":"slow","task":"ping","params":{{"sleep_ms":1500}},{LOCK}}}"#);
    site.publish("storage.p.low", &slow).await;
    site.wait("slow", &[StateName::Running]).await;
    worker
}

#[tokio::test]
async fn a_take_over_looks_for_an_effect_only_under_the_jobs_locks() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = with_a_holder(&site, &probe).await;
    probe.was_done("j");
    let reached_commit = [Phase::Work, Phase::Commit].map(Event::Enter);
    let events = [claim()].into_iter().chain(reached_commit);
    left_behind(&site, "j", events.collect()).await;
    let record = site.ended("j").await;
    assert_eq!(record.state.name(), StateName::Succeeded);
    let order = [
        probe.notes.place("slow", "effect"),
        probe.notes.place("j", "recover"),
    ];
    assert!(order[0] < order[1], "{order:?}");
    assert!(!probe.notes.steps_of("j").contains(&"run"));
    site.emptied().await;
    assert_eq!(site.lock("x.a").await, None);
    worker.end().await;
}

#[tokio::test]
async fn a_cancelled_job_whose_effect_is_there_has_succeeded() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = with_a_holder(&site, &probe).await;
    let cancel = Event::Cancel(Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    });
    let reached_commit = [Phase::Work, Phase::Commit].map(Event::Enter);
    // The second claim was cancelled before it came to look.
    let both = [claim()].into_iter().chain(reached_commit);
    let events: Vec<Event> = both.chain([claim(), cancel]).collect();
    probe.was_done("done");
    left_behind(&site, "done", events.clone()).await;
    left_behind(&site, "open", events).await;
    let done = site.ended("done").await;
    assert_eq!(done.state.name(), StateName::Succeeded);
    let open = site.ended("open").await;
    assert_eq!(open.state.name(), StateName::Cancelled);
    let order = [
        probe.notes.place("slow", "effect"),
        probe.notes.place("done", "recover"),
    ];
    assert!(order[0] < order[1], "{order:?}");
    assert_eq!(probe.notes.steps_of("open"), ["clean", "abandon"]);
    site.emptied().await;
    assert_eq!(site.lock("x.a").await, None);
    worker.end().await;
}

#[tokio::test]
async fn the_last_attempts_effect_counts_though_its_worker_died() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    probe.was_done("j");
    let attempt = [claim(), Event::Enter(Phase::Work)];
    let events: Vec<Event> = attempt.iter().cycle().take(6).cloned().collect();
    assert_eq!(left_behind(&site, "j", events).await.tries_left, 0);
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    worker.end().await;
}

#[tokio::test]
async fn a_claim_that_can_not_clean_up_does_not_end_a_job_whose_effect_is_there() {
    let (site, probe) = (Site::start().await, Probe::default());
    probe.was_done("j");
    probe.freeze("j", "clean");
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let attempt = [claim(), Event::Enter(Phase::Work)];
    let events: Vec<Event> = attempt.iter().cycle().take(4).cloned().collect();
    assert_eq!(left_behind(&site, "j", events).await.tries_left, 1);
    until("two tries to clean up", async || {
        let steps = probe.notes.steps_of("j");
        if steps.len() > 1 { Ok(()) } else { Err(steps) }
    })
    .await;
    probe.thaw("j");
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    worker.end().await;
}

#[tokio::test]
async fn a_take_over_does_not_begin_work_that_is_too_late_to_begin() {
    let (site, probe) = (Site::start().await, Probe::default());
    let job = r#"{"id":"j","task":"ping","not_before":"2999-01-01T00:00:00Z"}"#;
    let worker = site.worker("st-1", &probe, one_slot()).await;
    site.publish("storage.p.low", job).await;
    let mut record = site.wait("j", &[StateName::Waiting]).await.value;
    // Its worker died before it had the locks.
    for event in [Event::Publish { round: false }, claim()] {
        record = record.apply(event, Timestamp::now()).unwrap();
    }
    record.expires_at = Some(Timestamp::now());
    site.write("j", &record).await;
    site.jobs.publish(&record).await.unwrap();
    let JobState::Failed(_, error) = site.ended("j").await.state else {
        panic!("it was begun")
    };
    assert_eq!(error.code, Code::JobExpired);
    assert!(!probe.notes.steps_of("j").contains(&"run"));
    worker.end().await;
}

/// What a job went through whose only attempt's worker stands still behind the fence.
fn at_its_only_fence() -> Vec<Event> {
    let reached_commit = [Phase::Work, Phase::Commit].map(Event::Enter);
    [claim()].into_iter().chain(reached_commit).collect()
}

/// Waits until a job's claim has found an earlier one in its way, more than once.
async fn found_in_the_way(probe: &Probe, job: &str) {
    until("the wait for the earlier claim", async || {
        let steps = probe.notes.steps_of(job);
        let waits = steps.iter().filter(|step| **step == "waits").count();
        if waits > 1 { Ok(()) } else { Err(steps) }
    })
    .await;
}

#[tokio::test]
async fn a_job_without_tries_ends_only_when_nothing_more_can_come_of_its_frozen_worker() {
    let (site, probe) = (Site::start().await, Probe::default());
    for job in ["done", "open", "cancelled"] {
        probe.freeze(job, "recover");
    }
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let cancel = Event::Cancel(Cancel {
        by: None,
        at: Timestamp::now(),
        force: false,
        reason: None,
    });
    for job in ["done", "open", "cancelled"] {
        let attempts = [claim(), Event::Enter(Phase::Work)];
        let events = attempts.iter().cycle().take(4).cloned();
        let mut events: Vec<Event> = events.chain(at_its_only_fence()).collect();
        if job == "cancelled" {
            events.extend([claim(), cancel.clone()]);
        }
        let record = left_behind_without_locks(&site, job, events).await;
        assert_eq!(record.tries_left, 0);
    }
    for job in ["done", "open", "cancelled"] {
        found_in_the_way(&probe, job).await;
        let states = [StateName::Running, StateName::Cancelling];
        site.wait(job, &states).await;
    }
    probe.was_done("done");
    for job in ["done", "open", "cancelled"] {
        probe.thaw(job);
    }
    assert_eq!(site.ended("done").await.state.name(), StateName::Succeeded);
    let open = site.ended("open").await;
    let JobState::Failed(_, error) = &open.state else {
        panic!("{:?}", open.state)
    };
    assert_eq!(error.code, Code::WorkerLost);
    let given_up = site.ended("cancelled").await;
    assert_eq!(given_up.state.name(), StateName::Cancelled);
    site.emptied().await;
    worker.end().await;
}

#[tokio::test]
async fn an_earlier_claim_in_the_way_of_the_work_costs_no_try() {
    let (site, probe) = (Site::start().await, Probe::default());
    probe.freeze("j", "run");
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let before = left_behind_without_locks(&site, "j", at_its_only_fence()).await;
    let parked = site.wait("j", &[StateName::Waiting]).await.value;
    assert_eq!(parked.tries_left, before.tries_left);
    let JobState::Waiting(waiting) = &parked.state else {
        panic!("{:?}", parked.state)
    };
    let busy = Some(Code::DiskBusy);
    assert!(
        matches!(&waiting.on, WaitReason::Time { error, .. }
            if error.as_ref().map(|error| error.code) == busy),
        "{waiting:?}"
    );
    probe.thaw("j");
    // There's no core here that would wake it.
    let woken = site.change("j", Event::Publish { round: false }).await;
    site.jobs.publish(&woken.value).await.unwrap();
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    worker.end().await;
}

#[tokio::test]
async fn work_that_fails_past_its_fence_has_succeeded_if_its_effect_is_there() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, one_slot()).await;
    let job = r#"{"id":"j","task":"ping","labels":{"breaks":"1"},"retry":{"max_attempts":1}}"#;
    site.publish("storage.p.low", job).await;
    assert_eq!(site.ended("j").await.state.name(), StateName::Succeeded);
    assert_eq!(probe.notes.steps_of("j"), ["run", "effect", "recover"]);
    worker.end().await;
}

#[tokio::test]
async fn a_claim_given_up_in_doubt_is_a_dead_owners_for_everybody() {
    let (site, probe) = (Site::start().await, Probe::default());
    let first = site.worker("st-1", &probe, one_slot()).await;
    probe.hold("long");
    site.publish("storage.p.low", r#"{"id":"long","task":"ping"}"#)
        .await;
    let running = site.wait("long", &[StateName::Running]).await.value;
    let old = running.state.hold().unwrap().owner.clone();
    // As when its beats weren't heard for too long.
    site.end_lease("st-1").await;
    until("the work was stopped", async || {
        match probe.notes.steps_of("long") {
            steps if steps.contains(&"stopped") => Ok(()),
            steps => Err(steps),
        }
    })
    .await;
    probe.let_go("long");
    let other = r#"{"id":"other","task":"ping","params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.high", other).await;
    let other = site.wait("other", &[StateName::Running]).await.value;
    let new = other.state.hold().unwrap().owner.clone();
    assert_eq!((&new.worker, new.boot == old.boot), (&old.worker, false));
    // The first worker has no slot left: its message must do for another one.
    let second = site.worker("st-2", &probe, one_slot()).await;
    let record = site.ended("long").await;
    assert_eq!(record.state.name(), StateName::Succeeded);
    assert_eq!((record.claim, record.attempt), (2, 2));
    let steps = ["run", "stopped", "clean", "run", "effect"];
    assert_eq!(probe.notes.steps_of("long"), steps);
    first.task.abort();
    second.end().await;
}

#[tokio::test]
async fn a_job_that_kills_each_of_its_workers_ends_and_is_kept_as_a_dead_letter() {
    let (site, probe) = (Site::start().await, Probe::default());
    site.set_ack_wait(Duration::from_secs(2)).await;
    let job = r#"{"id":"poison","task":"ping","params":{"sleep_ms":60000}}"#;
    site.publish("storage.p.low", job).await;
    for attempt in 1..=3 {
        let worker = site
            .worker(&format!("st-{attempt}"), &probe, one_slot())
            .await;
        until("the next attempt", async || {
            match site.wait("poison", &[StateName::Running]).await.value {
                record if record.attempt == attempt => Ok(()),
                record => Err(record.attempt),
            }
        })
        .await;
        // The record says so before the work begins.
        until("its work", async || {
            match u32::try_from(probe.notes.jobs_at("run").len()) {
                Ok(runs) if runs == attempt => Ok(()),
                other => Err(other),
            }
        })
        .await;
        worker.task.abort();
        drop(worker.task.await);
    }
    let last = site.worker("st-4", &probe, one_slot()).await;
    let record = site.ended("poison").await;
    let JobState::Failed(_, error) = &record.state else {
        panic!("{:?}", record.state)
    };
    assert_eq!((error.code, record.attempt), (Code::WorkerLost, 3));
    assert_eq!(record.claim, 4);
    let runs = probe.notes.jobs_at("run").len();
    assert_eq!(runs, 3, "the last claim doesn't run it");
    site.emptied().await;
    let dlq = site.jetstream.get_stream("DLQ").await.unwrap();
    let letter = dlq
        .get_last_raw_message_by_subject("dlq.storage.p.low")
        .await
        .unwrap();
    let reason = letter.headers.get("Virtbus-Reason").unwrap();
    assert_eq!(reason.as_str(), "worker.lost");
    last.end().await;
}
