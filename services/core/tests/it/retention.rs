//! Final records leave after their time, but not while others wait for them.

use crate::stack::{Stack, until};
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_bus::{Bucket, Entry, Jobs, jobs::KEEP};
use virtbus_wire::{BootId, Event, Record, StateName, state::Owner};

/// How long the record of a job stays, as the server was told; none = for ever.
async fn time_to_live(stack: &Stack, id: &str) -> Option<String> {
    let subject = format!("$KV.jobs.{id}");
    let page = stack.bus.browse("KV_jobs", &subject, 1).await.unwrap();
    page.items[0].header("Nats-TTL").map(str::to_owned)
}

/// Runs a job as a worker would, whose own `Jobs` know nothing of core's configuration.
async fn succeed(stack: &Stack, id: &str, task: &str) -> Entry<Record> {
    let job = json!({"id": id, "task": task, "params": params_of(task)});
    stack.publish("storage.default.low", job.to_string()).await;
    let entry = stack.record(id, StateName::Queued).await;
    let jobs = Jobs::new(&stack.bus, KEEP);
    let owner = Owner {
        worker: "st-1".parse().unwrap(),
        boot: BootId::from_u128(7),
    };
    let claim = Event::Claim {
        owner,
        seq: 1,
        begin: true,
    };
    let entry = jobs.change(&entry, claim).await.unwrap();
    let done = Event::Succeed(serde_json::Map::new());
    jobs.change(&entry, done).await.unwrap()
}

fn params_of(task: &str) -> Value {
    match task {
        "create_disk" => json!({"disk": "d1", "size": "1MiB"}),
        _ => json!({}),
    }
}

/// Has a final record go sooner than any configuration says.
async fn keep_for(stack: &Stack, id: &str, keep: Duration) {
    let entry = succeed(stack, id, "ping").await;
    let records = stack.jobs.bucket();
    let written = records.update_for(id, &entry.value, entry.revision, keep);
    written.await.unwrap();
}

/// Waits until workers can read what is configured.
async fn limits_are_written(stack: &Stack) {
    let pools = Bucket::<Value>::new(&stack.bus, "pools");
    until("the limits", async || {
        let limits = pools.get_latest("_limits").await.unwrap();
        limits.map(|_| ()).ok_or("none yet")
    })
    .await;
}

#[tokio::test]
async fn only_final_records_end_by_themselves_and_the_time_is_configured() {
    let stack = Stack::bare().await;
    let _core = stack.core_with("core-a", &[("VIRTBUS__JOBS__KEEP", "2h")]);
    stack.register("default").await;
    stack
        .publish("storage.default.low", r#"{"id":"a","task":"ping"}"#)
        .await;
    stack.record("a", StateName::Queued).await;
    assert_eq!(time_to_live(&stack, "a").await, None);
    let ask = json!({"id": "a"});
    let _: Value = stack.ask("virtbus.jobs.cancel", &ask).await.unwrap();
    assert_eq!(time_to_live(&stack, "a").await.as_deref(), Some("7200s"));
    let _: Value = stack.ask("virtbus.jobs.retry", &ask).await.unwrap();
    assert_eq!(time_to_live(&stack, "a").await, None);
    // It's the same whoever ends a job.
    limits_are_written(&stack).await;
    succeed(&stack, "made", "create_disk").await;
    assert_eq!(time_to_live(&stack, "made").await.as_deref(), Some("7200s"));
    // A ping that succeeded is nothing to remember.
    succeed(&stack, "ping", "ping").await;
    assert_eq!(time_to_live(&stack, "ping").await.as_deref(), Some("3600s"));
    keep_for(&stack, "short", Duration::from_secs(1)).await;
    until("no record", async || {
        match stack.jobs.get_latest(&"short".parse().unwrap()).await {
            Ok(None) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    // The job that was begun again is still there.
    stack.record("a", StateName::Queued).await;
}

#[tokio::test]
async fn a_final_record_stays_while_an_unfinished_job_comes_after_it() {
    let (stack, _core) = Stack::start().await;
    // Twice the time between two sweeps is less than half of this.
    let short = Duration::from_secs(24);
    keep_for(&stack, "done", short).await;
    keep_for(&stack, "nobody-needs", short).await;
    for job in [
        json!({"id": "open", "task": "ping"}),
        json!({"id": "waits", "task": "ping", "after": ["done", "open"]}),
    ] {
        stack.publish("storage.default.low", job.to_string()).await;
    }
    stack.record("waits", StateName::Waiting).await;
    until("its time is prolonged", async || {
        match time_to_live(&stack, "done").await {
            Some(time) if time == "3600s" => Ok(()),
            time => Err(time),
        }
    })
    .await;
    until("what nobody needs is gone", async || {
        match stack
            .jobs
            .get_latest(&"nobody-needs".parse().unwrap())
            .await
        {
            Ok(None) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    stack.record("done", StateName::Succeeded).await;
    stack.record("waits", StateName::Waiting).await;
}
