//! `list`, `show`, `watch`: records and events, with the services played by the test.

use crate::program::Site;
use serde_json::{Value, json};
use virtbus_testbed::until;
use virtbus_wire::{Event, state::Progress};

const LOW: &str = "storage.default.low";

fn halfway() -> Progress {
    Progress {
        percent: Some(50.0),
        phase: Some("convert".to_owned()),
        ..Progress::default()
    }
}

#[tokio::test]
async fn a_job_is_listed_shown_and_watched_through_its_life() {
    let site = Site::start().await;
    site.register(
        "other-12345678",
        r#"{"task":"ping"}"#,
        "storage.default.high",
    )
    .await;
    site.register("job-abcdefgh", r#"{"task":"convert","user":"alice"}"#, LOW)
        .await;
    let said = site.run("list --user alice --json").await.ended(0).json();
    assert_eq!(said["jobs"].as_array().map(Vec::len), Some(1));
    let row = &said["jobs"][0];
    assert_eq!(
        (&row["id"], &row["state"]),
        (&json!("job-abcdefgh"), &json!("queued"))
    );
    assert!(
        row["seq"].as_u64().is_some() && row.get("params").is_none(),
        "{row}"
    );

    let mut watching = site.running("watch job-abcdefgh --json");
    let first = watching.json().await;
    assert_eq!(first["job"]["state"], "queued");
    site.claim("job-abcdefgh").await;
    let second = watching.json().await;
    assert_eq!(second["job"]["state"], "running");
    let progress = json!({"attempt": 1, "percent": 41.5, "phase": "convert"});
    let client = site.bus.client();
    // Of an attempt that is over: dropped.
    for attempt in [9, 1] {
        let mut progress = progress.clone();
        progress["attempt"] = json!(attempt);
        let payload = progress.to_string().into();
        client
            .publish("events.progress.job-abcdefgh", payload)
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    let third = watching.json().await;
    assert_eq!(
        (&third["event"], &third["attempt"]),
        (&json!("progress"), &json!(1))
    );
    site.apply("job-abcdefgh", Event::Progress(halfway())).await;
    assert_eq!(watching.json().await["job"]["progress"]["percent"], 50.0);
    let result = json!({"virtual_size": 7}).as_object().unwrap().clone();
    site.apply("job-abcdefgh", Event::Succeed(result)).await;
    assert_eq!(watching.json().await["job"]["state"], "succeeded");
    watching.ended(0).await;

    let after = site.run("watch job-abcdefgh").await.ended(0);
    assert!(
        after.out.starts_with("job-abcdefgh  convert  succeeded in"),
        "{after:?}"
    );
    for name in ["abcdefgh", "job-abcd", "last", "job-abcdefgh"] {
        let said = site
            .run(&format!("show {name} --json"))
            .await
            .ended(0)
            .json();
        assert_eq!(said["result"]["virtual_size"], 7, "{name}");
    }
    let said = site.run("list").await.ended(0);
    let first = said.out.lines().nth(1).unwrap();
    assert!(
        first.contains("succeeded") && first.contains("virtual_size 7"),
        "{said:?}"
    );
    assert!(
        !said.out.contains('\u{1b}'),
        "colours without a terminal: {said:?}"
    );
}

#[tokio::test]
async fn several_jobs_are_watched_until_the_last_is_over() {
    let site = Site::start().await;
    for id in ["a-good", "a-bad"] {
        site.register(id, r#"{"task":"ping"}"#, LOW).await;
    }
    let mut watching = site.running("watch a-good a-bad");
    for _ in 0..2 {
        let line = watching.line().await;
        assert!(line.ends_with("queued in storage.default.low"), "{line}");
    }
    let reason = virtbus_wire::JobError::new(virtbus_wire::Code::JobDependencyUnmet, "not met");
    site.apply("a-bad", Event::Drop(reason)).await;
    let line = watching.line().await;
    assert!(
        line.contains("cancelled: job.dependency_unmet: not met"),
        "{line}"
    );
    site.claim("a-good").await;
    assert!(watching.line().await.contains("running"));
    site.apply("a-good", Event::Succeed(serde_json::Map::new()))
        .await;
    assert!(watching.line().await.contains("succeeded"));
    watching.ended(11).await;
}

#[tokio::test]
async fn ctrl_c_detaches_and_says_that_the_job_goes_on() {
    let site = Site::start().await;
    site.register("j-detach", r#"{"task":"ping"}"#, LOW).await;
    let mut watching = site.running("watch j-detach");
    watching.line().await;
    watching.interrupt();
    let said = watching.ended(130).await;
    assert!(said.err.contains("the job goes on"), "{said:?}");
    assert!(said.err.contains("virtbus watch j-detach"), "{said:?}");
    let shown = site.run("show j-detach --json").await.ended(0).json();
    assert_eq!(shown["state"], "queued");
}

#[tokio::test]
async fn a_list_that_follows_shows_what_was_there_and_each_change() {
    let site = Site::start().await;
    site.register("l-1", r#"{"task":"ping"}"#, LOW).await;
    site.register("l-2", r#"{"task":"convert"}"#, LOW).await;
    let mut listing = site.running("list -w --json --task ping");
    assert_eq!(listing.json().await["id"], "l-1");
    site.claim("l-2").await;
    site.claim("l-1").await;
    let change = listing.json().await;
    assert_eq!(
        (&change["id"], &change["state"]),
        (&json!("l-1"), &json!("running"))
    );
    listing.interrupt();
    listing.ended(130).await;
}

#[tokio::test]
async fn a_long_list_is_read_from_its_end_in_windows() {
    const JOBS: usize = 1_700;
    let site = Site::start().await;
    let template = site.register("n-0", r#"{"task":"ping"}"#, LOW).await;
    let mut template = serde_json::to_value(&template).unwrap();
    let client = site.bus.client();
    for number in 1..JOBS {
        template["id"] = json!(format!("n-{number}"));
        let payload = template.to_string().into();
        let subject = format!("$KV.jobs.n-{number}");
        client.publish(subject, payload).await.unwrap();
    }
    client.flush().await.unwrap();
    until("all records", async || {
        let stream = site.bus.jetstream().get_stream("KV_jobs").await.unwrap();
        let stored = stream.cached_info().state.messages;
        if stored == JOBS as u64 {
            Ok(())
        } else {
            Err(stored)
        }
    })
    .await;
    let ids = |said: &Value| -> Vec<String> {
        let jobs = said["jobs"].as_array().unwrap().iter();
        jobs.map(|job| job["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let few = site.run("list --limit 3 --json").await.ended(0).json();
    let newest: Vec<String> = (JOBS - 3..JOBS).rev().map(|n| format!("n-{n}")).collect();
    assert_eq!(ids(&few), newest);
    let all = site.run("list --limit 0 --json").await.ended(0).json();
    let wanted: Vec<String> = (0..JOBS).rev().map(|n| format!("n-{n}")).collect();
    assert_eq!(ids(&all), wanted);
}
