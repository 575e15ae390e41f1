//! Which job is taken next.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use std::time::{Duration, Instant};
use virtbus_testbed::until;
use virtbus_wire::{JobState, StateName};
use virtbus_worker::WorkConfig;

#[tokio::test]
async fn jobs_of_three_priorities_come_out_in_priority_order() {
    let (site, probe) = (Site::start().await, Probe::default());
    for (number, priority) in [
        "low", "default", "high", "low", "high", "default", "low", "default", "high", "low",
    ]
    .iter()
    .enumerate()
    {
        let job = format!(r#"{{"id":"{priority}-{number}","task":"ping"}}"#);
        site.publish(&format!("storage.p.{priority}"), &job).await;
    }
    let worker = site.worker("st-1", &probe, one_slot()).await;
    site.emptied().await;
    let taken = probe.notes.jobs_at("run");
    let expected = [
        "high-2",
        "high-4",
        "high-8",
        "default-1",
        "default-5",
        "default-7",
        "low-0",
        "low-3",
        "low-6",
        "low-9",
    ];
    assert_eq!(taken, expected);
    worker.end().await;
}

#[tokio::test]
async fn an_urgent_job_starts_at_once_while_all_other_slots_are_busy() {
    let (site, probe) = (Site::start().await, Probe::default());
    let work = WorkConfig {
        slots: 2,
        reserved_high: 1,
        ..WorkConfig::default()
    };
    let worker = site.worker("st-1", &probe, work).await;
    let long = r#"{"task":"ping","params":{"sleep_ms":60000}}"#;
    for _ in 0..3 {
        site.publish("storage.p.low", long).await;
    }
    until("a busy worker", async || {
        match probe.notes.jobs_at("run").len() {
            1 => Ok(()),
            n => Err(n),
        }
    })
    .await;
    let began = Instant::now();
    site.publish("storage.p.high", r#"{"id":"urgent","task":"ping"}"#)
        .await;
    let urgent = site.ended("urgent").await;
    assert_eq!(urgent.state.name(), StateName::Succeeded);
    assert_eq!(probe.notes.jobs_at("effect"), ["urgent"]);
    // A request that waits at the server ends after 7 s: it doesn't have to.
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    worker.task.abort();
}

#[tokio::test]
async fn jobs_for_many_idle_workers_are_stranded_with_none() {
    let (site, probe) = (Site::start().await, Probe::default());
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(site.worker(&format!("st-{n}"), &probe, one_slot()).await);
    }
    let began = Instant::now();
    for round in 0..50 {
        for priority in ["low", "high", "default"] {
            let job = format!(r#"{{"id":"{priority}-{round}","task":"ping"}}"#);
            site.publish(&format!("storage.p.{priority}"), &job).await;
        }
    }
    site.emptied().await;
    // A message handed to a worker that didn't want it would come back after 30 s.
    assert!(
        began.elapsed() < Duration::from_secs(29),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(probe.notes.jobs_at("effect").len(), 150);
    for worker in workers {
        worker.end().await;
    }
}

#[tokio::test]
async fn long_jobs_without_a_slot_are_put_aside_a_few_at_a_time_whatever_their_priority() {
    let (site, probe) = (Site::start().await, Probe::default());
    let work = WorkConfig {
        slots: 3,
        reserved_high: 1,
        long_max: 1,
        ..WorkConfig::default()
    };
    for priority in ["default", "high"] {
        for n in 0..20 {
            let job = format!(
                r#"{{"id":"{priority}-{n}","task":"convert",
                    "params":{{"disk":"d","to":"{priority}-{n}","format":"raw"}}}}"#
            );
            site.publish(&format!("storage.p.{priority}"), &job).await;
        }
    }
    site.publish("storage.p.default", r#"{"id":"short","task":"ping"}"#)
        .await;
    let worker = site.worker("st-1", &probe, work).await;
    assert_eq!(site.ended("short").await.state.name(), StateName::Succeeded);
    for (priority, last) in [("high", 19), ("default", 19)] {
        let mut since = Vec::new();
        for n in 0..=last {
            let (id, states) = (
                format!("{priority}-{n}"),
                [StateName::Waiting, StateName::Running],
            );
            if let JobState::Waiting(waiting) = site.wait(&id, &states).await.value.state {
                since.push(waiting.since);
            }
        }
        since.sort();
        let apart = since[16].since(since[0]);
        assert!(apart >= Duration::from_secs(8), "{priority}: {apart:?}");
    }
    worker.task.abort();
}

#[tokio::test]
async fn a_long_job_stands_still_only_while_a_short_one_on_high_runs() {
    let (site, probe) = (Site::start().await, Probe::default());
    let long = |id: &str| {
        format!(
            r#"{{"id":"{id}","task":"convert","params":{{"disk":"d","to":"{id}","format":"raw"}}}}"#
        )
    };
    let steps = |id: &str| {
        let mut steps = probe.notes.steps_of(id);
        steps.retain(|step| ["stands", "goes"].contains(step));
        steps
    };
    site.publish("storage.p.low", &long("low")).await;
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    site.wait("low", &[StateName::Running]).await;
    site.publish("storage.p.high", &long("high")).await;
    site.wait("high", &[StateName::Running]).await;
    let other = r#"{"id":"other","task":"ping","params":{"sleep_ms":50}}"#;
    site.publish("storage.p.default", other).await;
    site.ended("other").await;
    let both_have = async |count: usize| {
        until("both stand, or go on", async || {
            let seen = ["low", "high"].map(steps);
            let all = seen.iter().all(|steps| steps.len() == count);
            all.then_some(()).ok_or(seen)
        })
        .await;
    };
    for round in 1..=2 {
        let first = format!("first-{round}");
        probe.hold(&first);
        let job = format!(r#"{{"id":"{first}","task":"ping"}}"#);
        site.publish("storage.p.high", &job).await;
        both_have(2 * round - 1).await;
        probe.let_go(&first);
        both_have(2 * round).await;
    }
    assert_eq!(steps("low"), ["stands", "goes", "stands", "goes"]);
    worker.task.abort();
}
