//! One job, one record, one effect.

use crate::{
    probe::Probe,
    site::{Site, one_slot},
};
use futures_util::StreamExt;
use virtbus_testbed::{until, watch::soon};
use virtbus_wire::{
    Code, Event, JobState, Record, StateName, Timestamp, protocol::arrival::MSG_ID_HEADER,
    state::Progress,
};
use virtbus_worker::{ServeError, WorkConfig};

#[tokio::test]
async fn a_plain_publish_is_enough() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let seq = site
        .publish("storage.p.default", r#"{"task":"ping"}"#)
        .await;
    let record = site.ended(&format!("storage-{seq}")).await;
    assert_eq!(record.state.name(), StateName::Succeeded);
    assert_eq!((record.claim, record.attempt, record.generation), (1, 1, 1));
    assert_eq!(record.dedupe.unwrap().seq, seq);
    site.emptied().await;
    worker.end().await;
}

#[tokio::test]
async fn progress_never_goes_back_in_the_record_or_live() {
    let (site, probe) = (Site::start().await, Probe::default());
    let client = site.jetstream.client();
    let mut events = client.subscribe("events.jobs.j").await.unwrap();
    let mut live = client.subscribe("events.progress.j").await.unwrap();
    client.flush().await.unwrap();
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let job = r#"{"id":"j","task":"ping","params":{"sleep_ms":200}}"#;
    site.publish("storage.p.low", job).await;
    let mut seen = Vec::new();
    loop {
        let event = soon("the next event", events.next()).await.unwrap();
        let record: Record = serde_json::from_slice(&event.payload).unwrap();
        seen.extend(record.progress.and_then(|progress| progress.percent));
        if record.state.name().is_final() {
            break;
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(
        (seen.contains(&90.0), seen.last()),
        (true, Some(&100.0)),
        "{seen:?}"
    );
    worker.end().await;
    live.unsubscribe().await.unwrap();
    let mut told = Vec::new();
    while let Some(message) = live.next().await {
        let step: Progress = serde_json::from_slice(&message.payload).unwrap();
        told.extend(step.percent);
    }
    // The first is told before the job is watched, and no later one came in its place.
    let ends = (told.first(), told.last());
    assert_eq!(ends, (Some(&0.0), Some(&90.0)), "{told:?}");
    assert!(told.is_sorted(), "{told:?}");
}

#[tokio::test]
async fn a_claim_that_a_living_worker_gave_up_is_claimed_anew() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let first = site.publish("storage.p.low", r#"{"task":"ping"}"#).await;
    let first = site.ended(&format!("storage-{first}")).await;
    let JobState::Succeeded(ended, _) = first.state else {
        panic!("{:?}", first.state)
    };
    // As a claim looks whose acknowledgement was lost: written, and run by nobody.
    let job = r#"{"id":"j","task":"ping","not_before":"2999-01-01T00:00:00Z"}"#;
    site.publish("storage.p.low", job).await;
    let waiting = site.wait("j", &[StateName::Waiting]).await.value;
    let queued = waiting
        .apply(Event::Publish { round: false }, Timestamp::now())
        .unwrap();
    let owner = ended.by.unwrap();
    let claim = Event::Claim {
        owner,
        seq: 1,
        begin: true,
    };
    let claimed = queued.apply(claim, Timestamp::now()).unwrap();
    site.write("j", &claimed).await;
    site.jobs.publish(&claimed).await.unwrap();
    let record = site.ended("j").await;
    assert_eq!(
        (record.state.name(), record.claim),
        (StateName::Succeeded, 2)
    );
    assert_eq!(probe.notes.steps_of("j"), ["clean", "run", "effect"]);
    worker.end().await;
}

#[tokio::test]
async fn a_job_of_a_later_life_of_its_stream_has_a_name_of_its_own() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let seq = site.publish("storage.p.low", r#"{"task":"ping"}"#).await;
    let first = site.ended(&format!("storage-{seq}")).await;
    // The record of the next number, as an earlier life of the stream left it.
    let mut old = first.clone();
    old.id = format!("storage-{}", seq + 1).parse().unwrap();
    site.jobs.create(&old).await.unwrap();
    site.publish("storage.p.low", r#"{"task":"ping"}"#).await;
    until("two jobs that ran", async || {
        match probe.notes.jobs_at("effect") {
            ran if ran.len() == 2 => Ok(()),
            ran => Err(ran),
        }
    })
    .await;
    let later = &probe.notes.jobs_at("effect")[1];
    assert!(
        later.starts_with(&format!("storage-{}-", seq + 1)),
        "{later}"
    );
    assert_eq!(site.ended(later).await.state.name(), StateName::Succeeded);
    worker.end().await;
}

#[tokio::test]
async fn the_same_id_twice_is_one_job() {
    let (site, probe) = (Site::start().await, Probe::default());
    for priority in ["low", "high", "default"] {
        let job = r#"{"id":"once","task":"ping","params":{"sleep_ms":50}}"#;
        site.publish(&format!("storage.p.{priority}"), job).await;
    }
    site.publish_as("storage.p.low", "once-too", r#"{"task":"ping"}"#)
        .await;
    let workers = [
        site.worker("st-1", &probe, WorkConfig::default()).await,
        site.worker("st-2", &probe, WorkConfig::default()).await,
    ];
    assert_eq!(site.ended("once").await.state.name(), StateName::Succeeded);
    assert_eq!(
        site.ended("once-too").await.state.name(),
        StateName::Succeeded
    );
    site.emptied().await;
    assert_eq!(probe.notes.steps_of("once"), ["run", "effect"]);
    for worker in workers {
        worker.end().await;
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_fails_and_is_kept_as_a_dead_letter() {
    let (site, probe) = (Site::start().await, Probe::default());
    let worker = site.worker("st-1", &probe, WorkConfig::default()).await;
    let seq = site.publish("storage.p.high", "{not json").await;
    let wrong = site
        .publish(
            "storage.p.high",
            r#"{"task":"resize","params":{"disk":"d"}}"#,
        )
        .await;
    site.publish_as("storage.p.high", "core-7", r#"{"task":"ping"}"#)
        .await;
    let named = site
        .publish_with(
            "storage.p.high",
            ("Virtbus-Job", "bad/id"),
            r#"{"task":"ping"}"#,
        )
        .await;
    let code = |record: virtbus_wire::Record| {
        let JobState::Failed(_, error) = record.state else {
            panic!("{:?}", record.state)
        };
        error.code
    };
    assert_eq!(
        code(site.ended(&format!("storage-{seq}")).await),
        Code::JobMalformed
    );
    assert_eq!(
        code(site.ended(&format!("storage-{wrong}")).await),
        Code::JobInvalidParams
    );
    let forged = format!("storage-{}", wrong + 1);
    assert_eq!(
        code(site.ended(&forged).await),
        Code::JobMalformed,
        "{MSG_ID_HEADER}"
    );
    let named = format!("storage-{named}");
    assert_eq!(code(site.ended(&named).await), Code::JobMalformed);
    site.emptied().await;
    let dlq = site.jetstream.get_stream("DLQ").await.unwrap();
    let mut buried = Vec::new();
    for number in 1..=3 {
        let letter = dlq.get_raw_message(number).await.unwrap();
        let header = |name: &str| letter.headers.get(name).unwrap().to_string();
        assert_eq!(letter.subject.as_str(), "dlq.storage.p.high");
        assert_eq!(header("Virtbus-Reason"), "job.malformed");
        buried.push(header("Virtbus-Job"));
    }
    buried.sort_unstable();
    // Not the names that their publishers gave them.
    assert_eq!(buried, [format!("storage-{seq}"), forged, named]);
    let job = site.publish("storage.p.high", r#"{"task":"ping"}"#).await;
    assert_eq!(
        site.ended(&format!("storage-{job}")).await.state.name(),
        StateName::Succeeded
    );
    worker.end().await;
}

#[tokio::test]
async fn a_second_process_of_one_name_is_refused_on_the_same_host() {
    let (site, probe) = (Site::start().await, Probe::default());
    let folder = tempfile::tempdir().unwrap();
    let dir = camino::Utf8Path::from_path(folder.path())
        .unwrap()
        .to_owned();
    let first = site
        .worker_in("st-1", &probe, one_slot(), Some(dir.clone()))
        .await;
    let seq = site.publish("storage.p.high", r#"{"task":"ping"}"#).await;
    site.ended(&format!("storage-{seq}")).await;
    let second = site.worker_in("st-1", &probe, one_slot(), Some(dir)).await;
    assert!(matches!(
        second.task.await.unwrap(),
        Err(ServeError::Running(_))
    ));
    first.end().await;
}

#[tokio::test]
async fn killed_worker_leaves_the_job_to_another() {
    let (site, probe) = (Site::start().await, Probe::default());
    let first = site.worker("st-1", &probe, one_slot()).await;
    probe.hold("long");
    site.publish("storage.p.low", r#"{"id":"long","task":"ping"}"#)
        .await;
    // The record says so before the work begins.
    until("the work", async || match probe.notes.steps_of("long") {
        steps if steps == ["run"] => Ok(()),
        steps => Err(steps),
    })
    .await;
    first.task.abort();
    drop(first.task.await);
    probe.let_go("long");
    let second = site.worker("st-2", &probe, one_slot()).await;
    let record = site.ended("long").await;
    assert_eq!(record.state.name(), StateName::Succeeded);
    assert_eq!((record.claim, record.attempt), (2, 2));
    assert_eq!(
        probe.notes.steps_of("long"),
        ["run", "clean", "run", "effect"]
    );
    site.emptied().await;
    second.end().await;
}
