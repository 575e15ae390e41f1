//! A person's word that a host is off.

use crate::stack::{Stack, code};
use serde_json::{Value, json};
use virtbus_bus::Bucket;
use virtbus_testbed::until;
use virtbus_wire::{BootId, Event, StateName, Timestamp, state::Owner};

const HIGH: &str = "hypervisor.hv-1.high";

async fn put(stack: &Stack, bucket: &'static str, key: &str, record: Value) {
    let bucket: Bucket<Value> = Bucket::new(&stack.bus, bucket);
    bucket.put(key, &record).await.unwrap();
}

async fn get(stack: &Stack, bucket: &'static str, key: &str) -> Value {
    let bucket: Bucket<Value> = Bucket::new(&stack.bus, bucket);
    bucket.get_latest(key).await.unwrap().unwrap().value
}

fn sorted(mut answer: Value) -> Value {
    let domains = answer["domains"].as_array_mut().unwrap();
    domains.sort_by_key(ToString::to_string);
    answer
}

/// A host with three domains, two of which should run, and jobs on its queues.
async fn site(stack: &Stack) {
    let now = Timestamp::now();
    let host = json!({"pool": "default", "worker": "hv-w", "host": "h", "updated_at": now});
    put(stack, "hypervisors", "hv-1", host).await;
    for (id, desired, state) in [
        ("on", "running", "unknown"),
        ("off", "shutoff", "shutoff"),
        ("more", "running", "unknown"),
    ] {
        let domain = json!({"uuid": "0199b1c2-0000-7000-8000-000000000001", "pool": "default",
            "hypervisor": "hv-1", "state": state, "desired": desired, "disks": ["d1"],
            "user": "alice", "tenant": "acme", "updated_at": now});
        put(stack, "domains", id, domain).await;
    }
    let uses = json!([
        {"domain": "on", "hypervisor": "hv-1", "mode": "exclusive"},
        {"domain": "far", "hypervisor": "hv-2", "mode": "shared"}]);
    let disk = json!({"pool": "default", "format": "qcow2", "state": "ready", "in_use_by": uses,
        "updated_at": now});
    put(stack, "disks", "d1", disk.clone()).await;
    let mut iso = disk;
    iso["format"] = json!("iso");
    put(stack, "media", "m1", iso).await;
}

async fn job(stack: &Stack, id: &str, task: &str, domain: &str) {
    let job = json!({"id": id, "task": task, "params": {"domain": domain}});
    stack.publish(HIGH, job.to_string()).await;
    stack.record(id, StateName::Queued).await;
}

#[tokio::test]
async fn what_runs_on_a_silent_host_is_unknown_and_holds_what_it_uses() {
    let (stack, _core) = Stack::start().await;
    let now = Timestamp::now();
    for host in ["hv-1", "hv-2"] {
        let record = json!({"pool": "default", "worker": format!("{host}-w"), "host": "h",
            "updated_at": now});
        put(&stack, "hypervisors", host, record).await;
    }
    let lease = json!({"worker": "hv-2-w", "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "hypervisor", "host": "h", "slots": 1, "busy": 0, "started_at": now, "at": now});
    put(&stack, "workers", "hv-2-w", lease.clone()).await;
    let states = [
        "running",
        "paused",
        "shutdown",
        "pmsuspended",
        "shutoff",
        "crashed",
    ];
    for host in ["hv-1", "hv-2"] {
        for state in states {
            let domain = json!({"uuid": "0199b1c2-0000-7000-8000-000000000001",
                "pool": "default", "hypervisor": host, "state": state, "desired": "running",
                "updated_at": now});
            put(&stack, "domains", &format!("{host}-{state}"), domain).await;
        }
    }
    let uses = json!([{"domain": "hv-1-running", "hypervisor": "hv-1", "mode": "exclusive"}]);
    let disk = json!({"pool": "default", "format": "qcow2", "state": "ready", "in_use_by": uses,
        "updated_at": now});
    put(&stack, "disks", "d1", disk).await;
    let state = async |key: &str| get(&stack, "domains", key).await["state"].clone();
    until("what nobody sees", async || {
        // The last one that's written.
        let said = state("hv-1-pmsuspended").await;
        // The other host's service lives on, however long it takes.
        put(&stack, "workers", "hv-2-w", lease.clone()).await;
        if said == "unknown" { Ok(()) } else { Err(said) }
    })
    .await;
    for before in states {
        let is_off = before == "shutoff" || before == "crashed";
        let wanted = if is_off { before } else { "unknown" };
        assert_eq!(state(&format!("hv-1-{before}")).await, wanted);
        assert_eq!(state(&format!("hv-2-{before}")).await, before);
    }
    let users = get(&stack, "disks", "d1").await["in_use_by"].clone();
    assert_eq!(users, uses, "nobody gave their word");
}

#[tokio::test]
async fn a_fenced_hosts_domains_are_off_their_disks_free_and_its_jobs_over_or_elsewhere() {
    let (stack, _core) = Stack::start().await;
    site(&stack).await;
    job(&stack, "stops", "stop_domain", "on").await;
    job(&stack, "resumes", "resume_domain", "on").await;
    job(&stack, "starts", "start_domain", "off").await;
    job(&stack, "ran", "stop_domain", "off").await;
    let commit = json!({"id": "grows", "task": "commit",
        "params": {"domain": "more", "disk": "old"}});
    stack.publish(HIGH, commit.to_string()).await;
    stack.record("grows", StateName::Queued).await;
    for id in ["ran", "grows"] {
        let entry = stack.record(id, StateName::Queued).await;
        let claim = Event::Claim {
            owner: Owner {
                worker: "hv-w".parse().unwrap(),
                boot: BootId::from_u128(7),
            },
            seq: 1,
            begin: true,
        };
        stack.jobs.change(&entry, claim).await.unwrap();
    }
    // What a job had begun when its host went off.
    for (id, state, backing) in [
        ("below", "ready", None),
        ("new", "creating", Some("below")),
        ("old", "changing", Some("below")),
    ] {
        let disk = json!({"pool": "default", "format": "qcow2", "state": state,
            "backing": backing, "owner_job": "grows", "updated_at": Timestamp::now()});
        put(&stack, "disks", id, disk).await;
    }

    // While its service lives nobody is believed.
    let now = Timestamp::now();
    let lease = json!({"worker": "hv-w", "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "hypervisor", "host": "h", "slots": 1, "busy": 0, "started_at": now, "at": now});
    put(&stack, "workers", "hv-w", lease).await;
    let ask = json!({"hypervisor": "hv-1", "reason": "power cut", "restart": true,
        "by": "ipmi-hv-1"});
    let refused = stack.ask::<Value>("virtbus.hypervisors.fence", &ask).await;
    assert!(refused.unwrap_err().contains("still lives"));
    let workers: Bucket<Value> = Bucket::new(&stack.bus, "workers");
    let lease = workers.get_latest("hv-w").await.unwrap().unwrap();
    workers.remove("hv-w", lease.revision).await.unwrap();

    let answer: Value = stack.ask("virtbus.hypervisors.fence", &ask).await.unwrap();
    let said = json!({"domains": ["more", "on"], "restarted": ["more"]});
    assert_eq!(sorted(answer), said);
    let host = get(&stack, "hypervisors", "hv-1").await;
    assert_eq!(host["state"], "fenced");
    assert_eq!(
        (&host["by"], &host["reason"]),
        (&json!("ipmi-hv-1"), &json!("power cut"))
    );
    for (id, desired) in [("on", "shutoff"), ("more", "running")] {
        let domain = get(&stack, "domains", id).await;
        assert_eq!(domain["state"], "shutoff");
        assert_eq!(domain["desired"], desired, "{id}");
    }
    // Nobody knows how far it came: no guest starts from what may be old.
    for (id, state) in [("below", "ready"), ("new", "broken"), ("old", "broken")] {
        assert_eq!(get(&stack, "disks", id).await["state"], state, "{id}");
    }
    assert_eq!(
        get(&stack, "disks", "below").await["children"],
        json!(["new"])
    );
    for (bucket, key) in [("disks", "d1"), ("media", "m1")] {
        let users = &get(&stack, bucket, key).await["in_use_by"];
        assert_eq!(users.as_array().map(Vec::len), Some(1), "{bucket}");
        assert_eq!(users[0]["hypervisor"], "hv-2");
    }
    for id in ["stops", "ran"] {
        let done = stack.record(id, StateName::Succeeded).await.value;
        assert_eq!(json!(done)["result"]["state"], "shutoff");
    }
    for id in ["resumes", "grows"] {
        let failed = stack.record(id, StateName::Failed).await.value;
        assert_eq!(code(&failed), "hypervisor.unreachable");
    }
    let moved = stack.record("starts", StateName::Queued).await.value;
    assert_eq!(
        (moved.queue.to_string().as_str(), moved.generation),
        ("hypervisor.default.high", 2)
    );
    // What should run is started on any other host, for whom it belongs to.
    let list = json!({"object": "domain.on", "state": ["queued"]});
    let list: Value = stack.ask("virtbus.jobs.list", &list).await.unwrap();
    assert_eq!(list["jobs"], json!([]), "its stop succeeded");
    let list = json!({"object": "domain.more", "state": ["queued"]});
    let list: Value = stack.ask("virtbus.jobs.list", &list).await.unwrap();
    let started = &list["jobs"][0];
    assert_eq!(
        (&started["task"], &started["queue"], &started["user"]),
        (
            &json!("start_domain"),
            &json!("hypervisor.default.default"),
            &json!("alice")
        )
    );
    // Asked once more it has nothing left to do there.
    let again = json!({"hypervisor": "hv-1", "reason": "power cut"});
    let answer: Value = stack
        .ask("virtbus.hypervisors.fence", &again)
        .await
        .unwrap();
    assert_eq!(answer, json!({"domains": [], "restarted": []}));
}

#[tokio::test]
async fn what_comes_for_a_fenced_host_later_does_not_lie_there() {
    let (stack, _core) = Stack::start().await;
    site(&stack).await;
    let ask = json!({"hypervisor": "hv-1", "reason": "power cut"});
    let _: Value = stack.ask("virtbus.hypervisors.fence", &ask).await.unwrap();
    // Straight to the host's queue, past all who know better.
    for (id, task, domain) in [
        ("stops", "stop_domain", "more"),
        ("resumes", "resume_domain", "on"),
        ("starts", "start_domain", "off"),
    ] {
        let job = json!({"id": id, "task": task, "params": {"domain": domain}});
        stack.publish(HIGH, job.to_string()).await;
    }
    stack.record("stops", StateName::Succeeded).await;
    for id in ["resumes", "starts"] {
        let failed = stack.record(id, StateName::Failed).await.value;
        assert_eq!(code(&failed), "hypervisor.unreachable");
    }
    until("what it should be", async || {
        match get(&stack, "domains", "more").await["desired"].clone() {
            desired if desired == "shutoff" => Ok(()),
            desired => Err(desired),
        }
    })
    .await;
    // Submitted, it goes to whoever of the pool lives.
    let now = Timestamp::now();
    let lease = json!({"worker": "hv-2-w", "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": "hypervisor", "host": "h", "slots": 1, "busy": 0, "started_at": now, "at": now,
        "queues": ["hypervisor.default.high"]});
    put(&stack, "workers", "hv-2-w", lease).await;
    let job = json!({"task": "stop_domain", "params": {"domain": "on"}, "priority": "high"});
    let accepted: Value = stack.ask("virtbus.jobs.submit", &job).await.unwrap();
    assert_eq!(accepted["queue"], "hypervisor.default.high");
}
