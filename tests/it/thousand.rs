//! A thousand jobs through a worker that is killed at random twenty times.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use virtbus_testbed::{until, within};
use virtbus_tests::random::Random;
use virtbus_tests::{Bus, Change, Events, Service, Stack, code_of, disk, process, state_of};

const JOBS: usize = 1_000;
const KILLS: usize = 20;
/// One in so many makes a disk; the others are pings.
const DISKS_EVERY: usize = 5;
/// Longest wait for the next end: a killed worker's jobs come again after half a minute, and
/// there may be several kills to one job.
const PATIENCE: Duration = Duration::from_secs(180);
const PRIORITIES: [&str; 3] = ["high", "default", "low"];

#[tokio::test]
async fn a_thousand_jobs_end_exactly_once_each_although_their_worker_is_killed_twenty_times() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    let mut random = Random::seeded();
    let events = bus.events().await;
    stack.kill(Service::Storage).await;
    publish(&bus).await;

    stack.start_again(Service::Storage);
    let mut kills: BTreeSet<usize> = BTreeSet::new();
    // The last ones are left alone, or a kill might find nothing to kill.
    while kills.len() < KILLS {
        kills.insert(usize::try_from(random.below(JOBS as u64 * 9 / 10)).unwrap());
    }
    for ends in &kills {
        some_ended(&events, *ends).await;
        stack.kill(Service::Storage).await;
        stack.start_again(Service::Storage);
    }
    some_ended(&events, JOBS).await;

    let lives = lives(&events);
    assert_eq!(lives.len(), JOBS);
    let interrupted = lives.values().filter(|changes| claims(changes) > 1).count();
    println!("{interrupted} jobs were interrupted");
    assert!(interrupted > 0, "the kills hit something");
    let mut lost = 0;
    for (id, changes) in &lives {
        lost += usize::from(ended_once(&bus, id, changes).await);
    }
    // Three kills to one job are possible, and rare.
    assert!(lost < KILLS, "{lost} lost");
    nothing_is_left(&stack, &bus).await;
}

/// All of them, at all priorities.
async fn publish(bus: &Bus) {
    for number in 0..JOBS {
        let (task, params) = if number % DISKS_EVERY == 0 {
            (
                "create_disk",
                json!({"disk": format!("t{number}"), "size": "1MiB"}),
            )
        } else {
            ("ping", json!({}))
        };
        let subject = format!("storage.default.{}", PRIORITIES[number % PRIORITIES.len()]);
        let job = json!({"id": format!("t{number}"), "task": task, "params": params});
        bus.publish(&subject, &job).await;
    }
}

async fn some_ended(events: &Events, wanted: usize) {
    let enough = async || {
        let ends = events.ends();
        if ends >= wanted { Ok(()) } else { Err(ends) }
    };
    within(PATIENCE, &format!("{wanted} jobs are over"), enough).await;
}

fn lives(events: &Events) -> BTreeMap<String, Vec<Change>> {
    let mut lives: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for change in events.seen() {
        lives.entry(change.id.clone()).or_default().push(change);
    }
    lives
}

/// How often a job was claimed.
fn claims(changes: &[Change]) -> u64 {
    let last = changes.last().unwrap();
    last.record["claim"].as_u64().unwrap()
}

/// One final revision, the last one; and what it says is so. Tells whether it was lost for good.
async fn ended_once(bus: &Bus, id: &str, changes: &[Change]) -> bool {
    let ends = changes.iter().filter(|change| change.is_final()).count();
    let states: Vec<&str> = changes.iter().map(Change::state).collect();
    assert_eq!(ends, 1, "{id}: {states:?}");
    let last = changes.last().unwrap();
    assert!(last.is_final(), "{id}: {states:?}");
    let record = bus.record(id).await.unwrap();
    assert_eq!(record, last.record, "nothing came after");
    let is_lost = code_of(&record) == "worker.lost";
    assert!(is_lost || state_of(&record) == "succeeded", "{record:#}");
    if is_lost {
        assert_eq!(record["attempt"], 3, "{record:#}");
    }
    is_lost
}

/// Every disk is whole and known, nothing waits, no file and no process is over.
async fn nothing_is_left(stack: &Stack, bus: &Bus) {
    let root = &stack.ready.pool_root;
    let mut files = disk::files(root);
    files.retain(|name| name.starts_with("disks/"));
    let mut known = Vec::new();
    for number in (0..JOBS).step_by(DISKS_EVERY) {
        let disk = format!("t{number}");
        match bus.disk(&disk).await {
            Some(record) if record["state"] == "ready" => {
                known.push(format!("disks/{disk}.qcow2"));
            }
            Some(record) => panic!("{disk}: {record:#}"),
            None => {}
        }
    }
    known.sort();
    assert_eq!(
        files, known,
        "each file is a disk of the catalogue, and the other way round"
    );
    let tools = process::tools(root);
    assert!(tools.is_empty(), "{tools:#?}");
    let stream = bus.jetstream.get_stream("STORAGE").await.unwrap();
    until("the queues are empty", async || {
        let messages = stream.get_info().await.map(|info| info.state.messages);
        match messages {
            Ok(0) => Ok(()),
            Ok(left) => Err(json!(left)),
            Err(error) => Err(Value::from(error.to_string())),
        }
    })
    .await;
}
