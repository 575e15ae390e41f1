//! What is asked of core, with core played by the test; and dead letters.

use crate::program::{Said, Site};
use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use virtbus_testbed::watch::soon;
use virtbus_wire::{Code, Event, JobError};

/// Runs the program and answers the one request it makes.
pub(crate) async fn asked(site: &Site, line: &str, subject: &str, answer: Value) -> (Value, Said) {
    let client = site.bus.client();
    let mut requests = client.subscribe(subject.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    let answered = async {
        let request = soon("a request", requests.next()).await.unwrap();
        let reply = request.reply.unwrap();
        client
            .publish(reply, answer.to_string().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
        serde_json::from_slice(&request.payload).unwrap()
    };
    tokio::join!(answered, site.run(line))
}

#[tokio::test]
async fn what_people_ask_for_names_them_and_the_exit_code_says_what_came_of_it() {
    let site = Site::start().await;
    let queue = "storage.default.low";
    for (line, subject, answer, asks, code, says) in [
        (
            "queues pause storage.default.low --reason full",
            "virtbus.queues.pause",
            json!({"queue": queue, "paused": true}),
            json!({"queue": queue, "reason": "full", "by": "alice"}),
            0,
            "storage.default.low: paused",
        ),
        (
            "queues resume storage.default.low",
            "virtbus.queues.resume",
            json!({"queue": queue, "paused": false}),
            json!({"queue": queue, "reason": null, "by": "alice"}),
            0,
            "goes on",
        ),
        (
            "queues purge storage.default.low",
            "virtbus.queues.purge",
            json!({"queue": queue, "cancelled": 7}),
            json!({"queue": queue, "reason": null, "by": "alice"}),
            0,
            "7 jobs cancelled",
        ),
        (
            "workers drain st-1 --reason disks",
            "virtbus.workers.drain",
            json!({"worker": "st-1", "drained": true}),
            json!({"worker": "st-1", "reason": "disks", "by": "alice"}),
            0,
            "st-1: takes no more jobs",
        ),
        (
            "workers undrain st-1",
            "virtbus.workers.undrain",
            json!({"worker": "st-1", "drained": false}),
            json!({"worker": "st-1", "reason": null, "by": "alice"}),
            0,
            "st-1: takes jobs",
        ),
        (
            "hypervisors drain hv-1 --reason memory",
            "virtbus.hypervisors.drain",
            json!({"hypervisor": "hv-1", "state": "draining"}),
            json!({"hypervisor": "hv-1", "reason": "memory", "by": "alice"}),
            0,
            "hv-1: draining",
        ),
        (
            "hypervisors",
            "virtbus.hypervisors.list",
            json!({"hypervisors": [{"hypervisor": "hv-1", "pool": "default", "worker": "hv-w",
                "state": "fenced", "by": "ipmi-7", "reason": "power cut"}]}),
            json!({}),
            0,
            "ipmi-7  power cut",
        ),
        (
            "hypervisors fence hv-1 --reason cut --restart",
            "virtbus.hypervisors.fence",
            json!({"domains": ["a", "b"], "restarted": []}),
            json!({"hypervisor": "hv-1", "reason": "cut", "restart": true, "by": "alice"}),
            0,
            "off now: a, b\nstarted elsewhere: none",
        ),
        (
            "priority high job-1",
            "virtbus.jobs.priority",
            json!({"outcome": "already_started"}),
            json!({"id": "job-1", "priority": "high", "by": "alice"}),
            4,
            "already started",
        ),
        (
            "retry job-1",
            "virtbus.jobs.retry",
            json!({"outcome": "queued"}),
            json!({"id": "job-1", "by": "alice"}),
            0,
            "job-1  queued",
        ),
        (
            "explain job-1",
            "virtbus.jobs.explain",
            json!({"state": "queued", "why": "no_worker", "queue": queue, "workers": 0,
                "detail": {}, "ahead": 3, "eta_s": null}),
            json!({"id": "job-1"}),
            0,
            "no worker",
        ),
    ] {
        let (request, said) = asked(&site, line, subject, answer).await;
        let said = said.ended(code);
        assert_eq!(request, asks, "{line}");
        assert!(said.out.contains(says), "{line}: {said:?}");
    }
}

#[tokio::test]
async fn a_drained_worker_is_listed_with_who_and_why() {
    let site = Site::start().await;
    let beat = json!({"worker": "st-1", "class": "storage", "at": "2026-11-21T16:30:00.000Z"});
    let lost = virtbus_bus::Bucket::<Value>::new(&site.bus, "workers_lost");
    lost.put("st-1", &beat).await.unwrap();
    let drains = virtbus_bus::Bucket::<Value>::new(&site.bus, "queues");
    let drain = json!({"paused": true, "by": "alice", "reason": "new disks",
        "at": "2026-11-21T16:30:00.000Z"});
    for id in ["st-1", "st-2"] {
        drains.put(&format!("_worker.{id}"), &drain).await.unwrap();
    }
    let said = site.run("workers").await.ended(0);
    let row = "lost, drained by alice: new disks";
    assert_eq!(said.out.matches(row).count(), 2, "{said:?}");
    let said = site.run("workers --json").await.ended(0).json();
    assert_eq!(said["workers"][1]["drain"]["by"], "alice");
    // It's no queue.
    let said = site.run("queues --json").await.ended(0).json();
    assert!(!said.to_string().contains("_worker"), "{said}");
}

async fn letter(site: &Site, subject: &str, headers: &[(&str, &str)], body: &str) -> u64 {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let js = site.bus.jetstream();
    let subject = format!("dlq.{subject}");
    let sent = js.publish_with_headers(subject, map, body.to_owned().into());
    sent.await.unwrap().await.unwrap().sequence
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_requeued() {
    let site = Site::start().await;
    let low = "storage.default.low";
    site.register("poison", r#"{"task":"ping"}"#, low).await;
    let error = JobError::new(Code::WorkerLost, "it died");
    site.apply("poison", Event::Fail(error)).await;
    let lost = letter(
        &site,
        low,
        &[
            ("Virtbus-Reason", "worker.lost"),
            ("Virtbus-Stream", "STORAGE"),
            ("Virtbus-Sequence", "1"),
            ("Virtbus-Job", "poison"),
        ],
        r#"{"task":"ping"}"#,
    )
    .await;
    let forgotten = letter(
        &site,
        low,
        &[("Virtbus-Reason", "internal")],
        r#"{"id":"forgotten","task":"ping"}"#,
    )
    .await;
    let malformed = letter(
        &site,
        low,
        &[
            ("Virtbus-Reason", "job.malformed"),
            ("Virtbus-Stream", "STORAGE"),
            ("Virtbus-Sequence", "3"),
            // It said so itself, and it's somebody else's name.
            ("Virtbus-Job", "poison"),
        ],
        "not json",
    )
    .await;

    let said = site.run("dlq list --json").await.ended(0).json();
    let jobs: Vec<&Value> = said["letters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| &letter["job"])
        .collect();
    assert_eq!(jobs, ["storage-3", "forgotten", "poison"]);
    let said = site.run("dlq list --reason worker.lost").await.ended(0);
    assert!(said.out.contains("poison") && !said.out.contains("forgotten"));
    let said = site.run(&format!("dlq show {malformed}")).await.ended(0);
    assert!(said.out.contains("not json") && said.out.contains("job.malformed"));
    site.run("dlq show 99").await.ended(3);

    // Its record is there: the same job once more.
    let subject = "virtbus.jobs.retry";
    let line = format!("dlq requeue {lost}");
    let running = json!({"outcome": "not_final"});
    let (_, said) = asked(&site, &line, subject, running).await;
    said.ended(4);
    let queued = json!({"outcome": "queued"});
    let (request, said) = asked(&site, &line, subject, queued).await;
    assert_eq!(request["id"], "poison");
    let said = said.ended(0);
    assert!(said.out.contains("job poison runs once more"), "{said:?}");
    site.run(&format!("dlq show {lost}")).await.ended(3);

    // No record: the message, under its id; and what couldn't be read, as it was.
    let line = format!("dlq requeue {forgotten} {malformed}");
    let said = site.run(&line).await.ended(0);
    assert_eq!(said.out.matches("published again").count(), 2, "{said:?}");
    let page = site.bus.browse("STORAGE", ">", 1).await.unwrap();
    assert_eq!(page.items[0].header("Nats-Msg-Id"), Some("forgotten"));
    assert_eq!(page.items[1].header("Nats-Msg-Id"), None);
    assert_eq!(page.items[1].payload, "not json");
    let said = site.run("dlq list --json").await.ended(0).json();
    assert_eq!(said, json!({"letters": []}));
}

#[tokio::test]
async fn a_wait_says_how_the_job_ended() {
    let site = Site::start().await;
    site.register("job-abcdefgh", r#"{"task":"ping"}"#, "storage.default.low")
        .await;
    let mut waiting = site.running("wait job-abcdefgh --json");
    let error = JobError::new(Code::ToolFailed, "no");
    site.apply("job-abcdefgh", Event::Fail(error)).await;
    assert_eq!(waiting.json().await["error"]["code"], "tool.failed");
    waiting.ended(10).await;
    site.register("job-hijklmno", r#"{"task":"ping"}"#, "storage.default.low")
        .await;
    site.run("wait job-hijklmno --timeout 1s").await.ended(7);
}
