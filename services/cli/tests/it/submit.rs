//! `submit`: what reaches the queue, and what doesn't.

use crate::program::Site;
use serde_json::{Value, json};
use virtbus_bus::Bucket;
use virtbus_wire::{Code, Event, JobError};

#[tokio::test]
async fn a_job_reaches_the_queue_that_is_its_tasks_home() {
    let site = Site::start().await;
    let pools = Bucket::<Value>::new(&site.bus, "pools");
    pools.put("fast", &json!({"pool": "fast"})).await.unwrap();
    let disks = Bucket::<Value>::new(&site.bus, "disks");
    disks.put("d7", &json!({"pool": "slow"})).await.unwrap();
    for (line, subject) in [
        ("ping --pool p1", "storage.p1.default"),
        ("ping --pool p1 --priority high", "storage.p1.high"),
        ("create_disk -p disk=n1 -p size=1MiB", "storage.fast.high"),
        (
            "convert -p disk=d7 -p to=n2 -p format=raw",
            "storage.slow.low",
        ),
        ("move_disk -p disk=d7 -p pool=fast", "storage.fast_slow.low"),
        ("--queue storage.p2.low ping", "storage.p2.low"),
    ] {
        let said = site.run(&format!("submit {line}")).await.ended(0);
        let (queue, job) = site.published(said.out.trim()).await;
        assert_eq!(queue, subject, "{line}: {job}");
    }
    let said =
        site.run("submit resize -p domain=v1 -p disk=d1 -p size=1GiB --json --hypervisor hv1");
    let said = said.await.ended(0).json();
    assert_eq!(said["queue"], "hypervisor.hv1.default");
}

#[tokio::test]
async fn the_same_id_is_taken_once() {
    let site = Site::start().await;
    let line = "submit ping --pool p1 --id once --json";
    let first = site.run(line).await.ended(0).json();
    assert_eq!(first["duplicate"], false);
    let second = site.run(line).await.ended(0).json();
    assert_eq!(
        (&second["duplicate"], &second["seq"]),
        (&json!(true), &first["seq"])
    );
}

#[tokio::test]
async fn a_job_that_would_be_refused_is_not_published() {
    let site = Site::start().await;
    for (line, code, field) in [
        ("resize -p disk=d1 -p size=-1", "job.invalid_params", "size"),
        (
            "resize -p disk=../d1 -p size=1GiB",
            "job.invalid_params",
            "disk",
        ),
        (
            "resize -p disk=d1 -p size=1GiB -p sise=1",
            "job.invalid_params",
            "sise",
        ),
        ("mkfs", "job.unknown_task", "mkfs"),
        ("ping --id a/b", "usage", "id"),
        ("ping --id storage-7", "usage", "id"),
    ] {
        let said = site
            .run(&format!("submit --pool p1 --json {line}"))
            .await
            .ended(2);
        let error: Value = serde_json::from_str(&said.err).expect(&said.err);
        assert_eq!(error["error"]["code"], code, "{line}: {error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(field), "{line}: {error}");
        assert_eq!(said.out, "");
    }
    let said = site
        .run("submit --queue storage.p1.urgent ping --json")
        .await
        .ended(2);
    assert!(said.err.contains("queue.unknown"), "{said:?}");
    let said = site.run("queues --json").await.ended(0).json();
    assert_eq!(said["queues"].as_array().map(Vec::len), Some(1));
    let js = site.bus.jetstream();
    let stream = js.get_stream("STORAGE").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0);

    let said = site
        .run("submit --no-check --queue storage.p1.low resize -p size=-1")
        .await;
    let said = said.ended(0);
    let (_, job) = site.published(said.out.trim()).await;
    assert_eq!(job["params"], json!({"size": -1}));
}

#[tokio::test]
async fn waiting_ends_with_the_job_and_its_exit_code() {
    let site = Site::start().await;
    let error = |code| Event::Fail(JobError::new(code, "no luck"));
    for (id, event, code) in [
        ("w-good", Event::Succeed(serde_json::Map::new()), 0),
        ("w-bad", error(Code::DiskExists), 10),
        ("w-lost", error(Code::WorkerLost), 12),
    ] {
        let waiting = site.running(&format!("submit ping --pool p1 --id {id} --wait --json"));
        let (queue, job) = site.published(id).await;
        site.register(id, &job.to_string(), &queue).await;
        site.claim(id).await;
        let last = site.apply(id, event).await;
        let said = waiting.ended(code).await;
        drop(said);
        let shown = site.run(&format!("show {id} --json")).await.ended(0).json();
        assert_eq!(shown, serde_json::to_value(&last).unwrap());
    }
    let said = site.run("submit ping --pool p1 --id w-late --wait --wait-timeout 1s --json");
    let said = said.await.ended(7);
    assert!(said.err.contains("timed_out"), "{said:?}");
}
