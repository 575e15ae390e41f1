use super::*;
use serde_json::{Value, json};
use virtbus_wire::Timestamp;

mod room;

fn pool(value: Value) -> PoolRecord {
    serde_json::from_value(value).unwrap()
}

fn worker(class: &str, pools: &[&str], queues: &[&str]) -> WorkerRecord {
    let now = Timestamp::now();
    let id = format!("{class}-1");
    let beat = json!({"worker": id, "boot": "0199b1c2-0000-7000-8000-000000000001",
        "class": class, "host": "h", "pools": pools, "queues": queues, "slots": 1, "busy": 0,
        "started_at": now, "at": now});
    serde_json::from_value(beat).unwrap()
}

/// Queues of all priorities.
fn queues(places: &[&str]) -> Vec<String> {
    let each = |place: &&str| {
        let place = (*place).to_owned();
        Priority::ALL.map(|priority| format!("{place}.{priority}"))
    };
    places.iter().flat_map(each).collect()
}

/// Pools a and b with disks on each, c for big ones, nobody serves `idle`; one host of pool a.
fn site() -> Site {
    let storage = queues(&["storage.a", "storage.b", "storage.c", "storage.drained"]);
    let storage: Vec<&str> = storage.iter().map(String::as_str).collect();
    let hosts = queues(&["hypervisor.a", "hypervisor.hv-1"]);
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    Site {
        pools: vec![
            pool(json!({"pool": "a", "default": true, "size_max": "100GiB"})),
            pool(json!({"pool": "b", "flavours": ["fast"], "capabilities": ["raw"]})),
            pool(json!({"pool": "c", "flavours": ["big", "fast"], "capabilities": ["qcow2"]})),
            pool(json!({"pool": "drained", "state": "draining", "flavours": ["old"]})),
            pool(json!({"pool": "off", "state": "disabled"})),
            pool(json!({"pool": "idle", "flavours": ["slow"]})),
        ],
        hosts: vec!["hv-1".parse().unwrap(), "hv-2".parse().unwrap()],
        workers: vec![
            worker("storage", &["a", "b", "c"], &storage),
            worker("hypervisor", &["a"], &hosts),
            worker("core", &[], &["core"]),
        ],
    }
}

fn spots() -> Spots {
    let in_pool = |object: &str, pool: &str, host: Option<&str>| {
        let spot = Spot {
            pool: pool.parse().unwrap(),
            host: host.map(|host| host.parse().unwrap()),
        };
        (object.parse().unwrap(), spot)
    };
    Spots::from([
        in_pool("disk.d-a", "a", None),
        in_pool("disk.d-b", "b", None),
        in_pool("disk.d-drained", "drained", None),
        in_pool("disk.d-off", "off", None),
        in_pool("disk.d-gone", "gone", None),
        in_pool("disk.d-idle", "idle", None),
        in_pool("domain.v-1", "a", Some("hv-1")),
        in_pool("domain.v-2", "a", Some("hv-2")),
        in_pool("domain.v-new", "a", None),
    ])
}

fn placed(task: &str, params: Value, wish: Value) -> Result<String, JobError> {
    let wish: Placement = serde_json::from_value(wish).unwrap();
    let class = class(task, &params, &wish)?;
    let task = Task::decode(class, task, &params).unwrap();
    let id = "j".parse().unwrap();
    let queue = place(&id, &task, &wish, &spots(), &site())?;
    Ok(queue.subject())
}

#[test]
fn what_exists_decides_where_its_jobs_go() {
    for (task, params, wish, queue) in [
        (
            "resize",
            json!({"disk": "d-a", "size": "1GiB"}),
            json!({}),
            "storage.a.default",
        ),
        (
            "sparsify",
            json!({"disk": "d-b"}),
            json!({}),
            "storage.b.low",
        ),
        (
            "sparsify",
            json!({"disk": "d-b"}),
            json!({"pool": "b"}),
            "storage.b.low",
        ),
        (
            "sparsify",
            json!({"disk": "d-b"}),
            json!({"priority": "high"}),
            "storage.b.high",
        ),
        (
            "sparsify",
            json!({"disk": "later"}),
            json!({"pool": "b"}),
            "storage.b.low",
        ),
        (
            "convert",
            json!({"disk": "d-b", "to": "new", "format": "raw"}),
            json!({}),
            "storage.b.low",
        ),
        (
            "create_disk",
            json!({"disk": "n", "backing": "d-b"}),
            json!({}),
            "storage.b.high",
        ),
        (
            "move_disk",
            json!({"disk": "d-b", "pool": "a"}),
            json!({}),
            "storage.a_b.low",
        ),
        (
            "stop_domain",
            json!({"domain": "v-1"}),
            json!({}),
            "hypervisor.hv-1.default",
        ),
        (
            "start_domain",
            json!({"domain": "v-1"}),
            json!({}),
            "hypervisor.a.default",
        ),
        (
            "stop_domain",
            json!({"domain": "v-new"}),
            json!({}),
            "hypervisor.a.default",
        ),
        (
            "resize",
            json!({"domain": "v-1", "disk": "d-a", "size": "1GiB"}),
            json!({}),
            "hypervisor.hv-1.default",
        ),
        (
            "ping",
            json!({}),
            json!({"hypervisor": "hv-1"}),
            "hypervisor.hv-1.default",
        ),
        ("ping", json!({}), json!({}), "storage.a.default"),
        (
            "feedback",
            json!({"to": {"all": true}, "topic": "t", "payload": {}}),
            json!({}),
            "core",
        ),
    ] {
        let found = placed(task, params.clone(), wish);
        assert_eq!(found.as_deref(), Ok(queue), "{task} {params}");
    }
}

#[test]
fn what_is_new_goes_to_a_pool_that_can_take_it() {
    let disk = |size: &str, format: &str| json!({"disk": "n", "size": size, "format": format});
    for (params, wish, queue) in [
        (disk("1GiB", "qcow2"), json!({}), "storage.a.high"),
        (
            disk("1GiB", "raw"),
            json!({"flavour": "fast"}),
            "storage.b.high",
        ),
        (
            disk("1GiB", "qcow2"),
            json!({"flavour": "fast"}),
            "storage.c.high",
        ),
        (
            disk("200GiB", "qcow2"),
            json!({"flavour": "big"}),
            "storage.c.high",
        ),
        (
            disk("1GiB", "qcow2"),
            json!({"pool": "b"}),
            "storage.b.high",
        ),
    ] {
        let found = placed("create_disk", params.clone(), wish);
        assert_eq!(found.as_deref(), Ok(queue), "{params}");
    }
}

#[test]
fn what_has_no_place_is_refused_with_the_reason() {
    let disk = |size: &str| json!({"disk": "n", "size": size});
    let sparsify = |disk: &str| json!({"disk": disk});
    for (task, params, wish, code) in [
        ("mkfs", json!({}), json!({}), Code::JobUnknownTask),
        (
            "sparsify",
            sparsify("nobody"),
            json!({}),
            Code::DiskNotFound,
        ),
        (
            "sparsify",
            sparsify("d-b"),
            json!({"pool": "a"}),
            Code::DiskWrongPool,
        ),
        (
            "sparsify",
            sparsify("d-gone"),
            json!({}),
            Code::QueueUnknown,
        ),
        ("sparsify", sparsify("d-off"), json!({}), Code::PoolDisabled),
        (
            "sparsify",
            sparsify("d-idle"),
            json!({}),
            Code::QueueNoWorker,
        ),
        (
            "move_disk",
            json!({"disk": "d-a", "pool": "a"}),
            json!({}),
            Code::JobInvalidParams,
        ),
        (
            "move_disk",
            json!({"disk": "d-a", "pool": "nowhere"}),
            json!({}),
            Code::QueueUnknown,
        ),
        (
            "move_disk",
            json!({"disk": "d-a", "pool": "idle"}),
            json!({}),
            Code::QueueNoWorker,
        ),
        (
            "create_disk",
            disk("1GiB"),
            json!({"pool": "nowhere"}),
            Code::QueueUnknown,
        ),
        (
            "create_disk",
            disk("1GiB"),
            json!({"pool": "drained"}),
            Code::PoolDisabled,
        ),
        (
            "create_disk",
            disk("1GiB"),
            json!({"flavour": "old"}),
            Code::PoolUnsupported,
        ),
        (
            "create_disk",
            disk("1GiB"),
            json!({"flavour": "none"}),
            Code::PoolUnsupported,
        ),
        (
            "create_disk",
            disk("1GiB"),
            json!({"flavour": "slow"}),
            Code::QueueNoWorker,
        ),
        (
            "create_disk",
            disk("200GiB"),
            json!({}),
            Code::ImageTooLarge,
        ),
        (
            "stop_domain",
            json!({"domain": "nobody"}),
            json!({}),
            Code::DomainNotFound,
        ),
        (
            "stop_domain",
            json!({"domain": "v-2"}),
            json!({}),
            Code::QueueNoWorker,
        ),
        (
            "ping",
            json!({}),
            json!({"hypervisor": "nowhere"}),
            Code::QueueUnknown,
        ),
    ] {
        let error = placed(task, params.clone(), wish).unwrap_err();
        assert_eq!(error.code, code, "{task} {params}: {error}");
    }
    // A drained pool still works on what it has.
    let mut site = site();
    site.workers
        .push(worker("storage", &["drained"], &["storage.drained.low"]));
    let task = Task::decode(Class::Storage, "sparsify", &sparsify("d-drained")).unwrap();
    let wish = Placement::default();
    let queue = place(&"j".parse().unwrap(), &task, &wish, &spots(), &site);
    assert_eq!(queue.unwrap().subject(), "storage.drained.low");
}

#[test]
fn a_worker_that_drains_serves_nothing() {
    let mut site = site();
    for worker in &mut site.workers {
        worker.draining = true;
    }
    let task = Task::decode(Class::Storage, "ping", &json!({})).unwrap();
    let wish = Placement::default();
    let refused = place(&"j".parse().unwrap(), &task, &wish, &spots(), &site);
    assert_eq!(refused.unwrap_err().code, Code::QueueNoWorker);
}

#[test]
fn new_disks_are_shared_out_by_weight() {
    let pools = [
        pool(json!({"pool": "one", "weight": 100})),
        pool(json!({"pool": "three", "weight": 300})),
        pool(json!({"pool": "none", "weight": 0})),
    ];
    let all: Vec<&PoolRecord> = pools.iter().collect();
    let mut counts = BTreeMap::new();
    for number in 0..4_000 {
        let id: JobId = format!("job{number}").parse().unwrap();
        let chosen = share(&id, &all).unwrap();
        assert_eq!(share(&id, &all), Some(chosen.clone()));
        *counts.entry(chosen.to_string()).or_insert(0_u32) += 1;
    }
    assert!((850..1_150).contains(&counts["one"]), "{counts:?}");
    assert!((2_850..3_150).contains(&counts["three"]), "{counts:?}");
    assert_eq!(counts.len(), 2);
    // Alone it's better than nothing.
    let last = share(&"j".parse().unwrap(), &[&pools[2]]);
    assert_eq!(last.unwrap().as_str(), "none");
}
