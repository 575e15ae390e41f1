//! Workers that are to take no more jobs, and limits that workers read.

use crate::stack::{Stack, until};
use serde_json::{Value, json};
use virtbus_wire::Timestamp;

fn beat(worker: &str) -> Value {
    let now = Timestamp::now();
    json!({"worker": worker, "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "storage", "host": "h", "pools": ["default"],
        "queues": ["storage.default.low"], "slots": 1, "busy": 0, "started_at": now, "at": now})
}

async fn workers(stack: &Stack) -> Value {
    stack.ask("virtbus.workers.list", &json!({})).await.unwrap()
}

#[tokio::test]
async fn a_drain_says_who_and_why_and_stays_while_the_worker_is_away() {
    let (stack, _core) = Stack::start().await;
    let unknown = json!({"worker": "st-typo", "reason": "x"});
    let refused = stack.ask::<Value>("virtbus.workers.drain", &unknown).await;
    assert!(refused.unwrap_err().contains("job.invalid_params"));
    let lease = beat("st-1").to_string();
    let key = "$KV.workers.st-1";
    stack.client().publish(key, lease.into()).await.unwrap();
    let submit = json!({"task": "ping", "pool": "default", "priority": "low"});
    until("a worker to submit to", async || {
        stack.ask::<Value>("virtbus.jobs.submit", &submit).await
    })
    .await;

    let ask = json!({"worker": "st-1", "reason": "new disks", "by": "alice"});
    let answer: Value = stack.ask("virtbus.workers.drain", &ask).await.unwrap();
    assert_eq!(answer, json!({"worker": "st-1", "drained": true}));
    let list = workers(&stack).await;
    let drain = &list["workers"][0]["drain"];
    assert_eq!(
        (&drain["by"], &drain["reason"], &drain["paused"]),
        (&json!("alice"), &json!("new disks"), &json!(true))
    );
    // It may not have heard of it yet: nothing is given to it all the same.
    let refused = stack.ask::<Value>("virtbus.jobs.submit", &submit).await;
    assert!(refused.unwrap_err().contains("queue.no_worker"));
    let queues: Value = stack.ask("virtbus.queues.list", &json!({})).await.unwrap();
    let rows = queues["queues"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["workers"] == 0), "{queues}");
    assert!(!queues.to_string().contains("_worker"), "{queues}");

    // Its lease isn't renewed: it's away.
    stack.last_beat("st-1", &beat("st-1")).await;
    until("the lost worker", async || {
        let list = workers(&stack).await;
        match list["workers"][0]["lost"] == true {
            true => Ok(()),
            false => Err(list),
        }
    })
    .await;
    let list = workers(&stack).await;
    assert_eq!(list["workers"][0]["drain"]["by"], "alice");
    assert_eq!(list["drained"]["st-1"]["reason"], "new disks");

    let ask = json!({"worker": "st-1", "by": "bob"});
    let answer: Value = stack.ask("virtbus.workers.undrain", &ask).await.unwrap();
    assert_eq!(answer, json!({"worker": "st-1", "drained": false}));
    let list = workers(&stack).await;
    assert_eq!(
        (&list["workers"][0]["drain"], &list["drained"]),
        (&Value::Null, &Value::Null)
    );
}

async fn limits(stack: &Stack, expected: Value) {
    let pools = virtbus_bus::Bucket::<Value>::new(&stack.bus, "pools");
    until("the limits", async || {
        let found = pools.get_latest("_limits").await.unwrap();
        match found.map(|entry| entry.value) {
            Some(found) if found == expected => Ok(()),
            found => Err(found),
        }
    })
    .await;
}

#[tokio::test]
async fn the_limits_of_the_configuration_are_where_workers_read_them() {
    let stack = Stack::bare().await;
    let mut core = stack.core("core-a");
    stack.register("default").await;
    limits(
        &stack,
        json!({"tenant_max_running": {"storage": 0, "hypervisor": 0}, "jobs_keep": "30d"}),
    )
    .await;
    core.kill();
    let limited = [
        ("VIRTBUS__LIMITS__TENANT_MAX_RUNNING__STORAGE", "3"),
        ("VIRTBUS__JOBS__KEEP", "2h"),
    ];
    let _core = stack.core_with("core-b", &limited);
    let expected =
        json!({"tenant_max_running": {"storage": 3, "hypervisor": 0}, "jobs_keep": "2h"});
    limits(&stack, expected.clone()).await;
    // Somebody else's word doesn't count.
    let pools = virtbus_bus::Bucket::<Value>::new(&stack.bus, "pools");
    pools.put("_limits", &json!("nonsense")).await.unwrap();
    limits(&stack, expected).await;
    // And it's no pool.
    let list: Value = stack.ask("virtbus.pools.list", &json!({})).await.unwrap();
    assert_eq!(list["pools"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test]
async fn a_host_is_drained_and_undrained_by_its_record() {
    let (stack, _core) = Stack::start().await;
    let ask = json!({"hypervisor": "hv-1", "reason": "new memory", "by": "alice"});
    let refused = stack.ask::<Value>("virtbus.hypervisors.drain", &ask).await;
    assert!(refused.unwrap_err().contains("queue.unknown"));
    let host = json!({"pool": "default", "worker": "hv-w", "host": "h", "cpus": 4,
        "updated_at": Timestamp::now()});
    let hosts = virtbus_bus::Bucket::<Value>::new(&stack.bus, "hypervisors");
    hosts.put("hv-1", &host).await.unwrap();
    let answer: Value = stack.ask("virtbus.hypervisors.drain", &ask).await.unwrap();
    assert_eq!(
        (&answer["hypervisor"], &answer["state"], &answer["reason"]),
        (&json!("hv-1"), &json!("draining"), &json!("new memory"))
    );
    assert_eq!(answer["by"], "alice");
    let list: Value = stack
        .ask("virtbus.hypervisors.list", &json!({}))
        .await
        .unwrap();
    let row = &list["hypervisors"][0];
    assert_eq!(
        (&row["state"], &row["cpus"]),
        (&json!("draining"), &json!(4))
    );
    assert_eq!(
        (&row["by"], &row["reason"]),
        (&json!("alice"), &json!("new memory"))
    );
    let ask = json!({"hypervisor": "hv-1", "by": "bob"});
    let answer: Value = stack
        .ask("virtbus.hypervisors.undrain", &ask)
        .await
        .unwrap();
    assert_eq!(
        (&answer["state"], &answer["by"], &answer["reason"]),
        (&json!("up"), &json!("bob"), &Value::Null)
    );
}
