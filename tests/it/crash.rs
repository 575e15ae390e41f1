//! The storage service dies in the middle of a convert.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use virtbus_testbed::{until, within};
use virtbus_tests::chaos::proxy::{Mode, Wire};
use virtbus_tests::disk::{self, MIB};
use virtbus_tests::jobs::TAKE_OVER;
use virtbus_tests::process::{self, Signal};
use virtbus_tests::{Bus, Events, Service, Stack, is_final, state_of};

const HIGH: &str = "storage.default.high";
const LOW: &str = "storage.default.low";
const SOURCE_MIB: u64 = 192;
/// The first worker's tool: qemu-img, so slow that a test is surely in the middle of a copy when it
/// says so. Those that come after it are as fast as they can.
const SLOW: &str = "#!/bin/sh\n[ \"$1\" = convert ] && shift && exec REAL convert -r 8M \"$@\"\n\
    exec REAL \"$@\"\n";

/// A stack with a disk that takes long to convert.
pub(crate) async fn with_source(script: &str) -> (Stack, Bus) {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    let params = json!({"disk": "source", "size": SOURCE_MIB * MIB, "format": "raw"});
    bus.succeed(HIGH, "create_disk", params).await;
    disk::fill(
        &disk::path(&stack.ready.pool_root, "source", "raw"),
        SOURCE_MIB,
    );
    stack.with_qemu_img(script).await;
    (stack, bus)
}

/// Publishes a convert of this id and returns in the middle of it.
pub(crate) async fn in_the_middle(stack: &Stack, bus: &Bus, id: &str) {
    let params = json!({"disk": "source", "to": "copy", "format": "qcow2", "compress": "zlib"});
    let job = json!({"id": id, "task": "convert", "params": params});
    bus.publish(LOW, &job).await;
    let root = &stack.ready.pool_root;
    // A long job isn't begun for a minute while the machine is short of disk.
    within(TAKE_OVER, "the tool has written something", async || {
        let parts = disk::leftovers(root);
        let written = parts
            .iter()
            .map(|name| root.join(name).metadata().map_or(0, |m| m.len()));
        if written.sum::<u64>() > MIB {
            Ok(())
        } else {
            Err(parts)
        }
    })
    .await;
    let record = bus.record(id).await.unwrap();
    assert_eq!(
        state_of(&record),
        "running",
        "it's in the middle: {record:#}"
    );
    assert_eq!(record["claim"], 1);
}

/// The job ended once, by a later claim, and left nothing but its destination.
async fn ended_once(stack: &Stack, bus: &Bus, events: &Events) -> Value {
    let record = bus.end_after_take_over("convert").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    let root = &stack.ready.pool_root;
    let (source, copy) = (
        disk::path(root, "source", "raw"),
        disk::path(root, "copy", "qcow2"),
    );
    assert!(disk::same(&source, &copy), "the copy is whole");
    let known = bus.disk("copy").await.unwrap();
    assert_eq!(
        (&known["state"], &known["virtual_size"]),
        (&json!("ready"), &json!(SOURCE_MIB * MIB))
    );
    // What runs behind it shows that nothing of it comes after its end.
    bus.ping(LOW).await;
    let ends = events
        .of("convert")
        .iter()
        .filter(|change| change.is_final())
        .count();
    assert_eq!(ends, 1, "one final state");
    let disks: Vec<String> = disk::files(root)
        .into_iter()
        .filter(|name| name.starts_with("disks/"))
        .collect();
    assert_eq!(
        disks,
        ["disks/copy.qcow2", "disks/source.raw"],
        "one destination, no left-over"
    );
    let tools = process::tools(root);
    assert!(tools.is_empty(), "no orphan: {tools:#?}");
    assert!(is_final(&bus.record("convert").await.unwrap()));
    record
}

#[tokio::test]
async fn a_convert_whose_worker_is_killed_is_finished_when_it_comes_back() {
    let (stack, bus) = with_source(SLOW).await;
    let events = bus.events().await;
    in_the_middle(&stack, &bus, "convert").await;
    stack.kill(Service::Storage).await;
    stack.start_again(Service::Storage);
    let record = ended_once(&stack, &bus, &events).await;
    assert!(record["claim"].as_u64() > Some(1), "{record:#}");
    assert_eq!(
        (&record["attempt"], &record["tries_left"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn a_convert_whose_worker_is_killed_is_finished_by_another_worker() {
    let (stack, bus) = with_source(SLOW).await;
    let events = bus.events().await;
    in_the_middle(&stack, &bus, "convert").await;
    stack.kill(Service::Storage).await;
    let second = [
        ("VIRTBUS__WORKER__ID", "storage-second"),
        ("VIRTBUS__HTTP__LISTEN", "127.0.0.1:0"),
    ];
    stack.start_besides(Service::Storage, &second);
    let record = ended_once(&stack, &bus, &events).await;
    assert_eq!(record["worker"], "storage-second", "{record:#}");
}

#[tokio::test]
async fn a_convert_whose_worker_freezes_has_one_effect() {
    let (stack, bus) = with_source(SLOW).await;
    let events = bus.events().await;
    in_the_middle(&stack, &bus, "convert").await;
    stack.freeze(Service::Storage);
    let second = [
        ("VIRTBUS__WORKER__ID", "storage-second"),
        ("VIRTBUS__HTTP__LISTEN", "127.0.0.1:0"),
    ];
    stack.start_besides(Service::Storage, &second);
    let record = bus.end_after_take_over("convert").await;
    assert_eq!(record["worker"], "storage-second", "{record:#}");
    stack.thaw(Service::Storage);
    // Awake again it finds that it lost the job, and stays of use.
    let root = &stack.ready.pool_root;
    let no_tools = async || {
        let tools = process::tools(root);
        if tools.is_empty() { Ok(()) } else { Err(tools) }
    };
    until("its tool is gone", no_tools).await;
    let record = ended_once(&stack, &bus, &events).await;
    assert_eq!(record["worker"], "storage-second", "{record:#}");
}

/// The lease's own record tells which came first, by the server's clock: it's there until the lease
/// is out.
#[tokio::test]
async fn a_tool_is_gone_before_the_lease_of_its_worker_is_out_that_is_cut_off() {
    let (stack, bus) = with_source(SLOW).await;
    let server = stack.ready.nats.strip_prefix("nats://").unwrap();
    let wire = Wire::new("storage", server.parse().unwrap()).await;
    let url = format!("nats://127.0.0.1:{}", wire.port());
    let tools = stack.folder().join("tools");
    let settings = [
        ("VIRTBUS__NATS__URL", url.as_str()),
        ("VIRTBUS__TOOLS_DIR", tools.to_str().unwrap()),
    ];
    stack.stop(Service::Storage).await;
    stack.start_again_with(Service::Storage, &settings);
    in_the_middle(&stack, &bus, "convert").await;
    let root = &stack.ready.pool_root;
    let record = bus.record("convert").await.unwrap();
    let worker = record["worker"].as_str().unwrap();
    let found = process::tools(root);
    let groups: BTreeSet<u32> = found
        .iter()
        .filter_map(|tool| process::group(tool.pid))
        .collect();
    assert!(!groups.is_empty(), "{found:#?}");
    wire.set(Mode::Stalled);
    let leases = bus.jetstream.get_key_value("workers").await.unwrap();
    until("its tool is gone", async || {
        let lease = leases.get(worker).await.unwrap();
        let lives: Vec<_> = groups
            .iter()
            .flat_map(|group| process::members(*group))
            .collect();
        assert!(lease.is_some(), "the lease is out: {lives:#?}");
        if lives.is_empty() { Ok(()) } else { Err(lives) }
    })
    .await;
    // It's still cut off: what it does without the server is to leave nothing of its own.
    let nothing_left = async || match disk::leftovers(root) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    };
    until("nothing is left", nothing_left).await;
    assert_eq!(bus.record("convert").await.unwrap()["state"], "running");
    assert_eq!(bus.disk("copy").await, None, "no intent");
    let asked = json!({"id": "convert", "by": "alice"});
    let answer = bus.ask("virtbus.jobs.cancel", &asked).await.unwrap();
    assert_eq!(answer["outcome"], "cancelling");
    wire.set(Mode::Open);
    let record = bus.end_after_take_over("convert").await;
    assert_eq!(state_of(&record), "cancelled", "{record:#}");
    assert_eq!(disk::leftovers(root), Vec::<String>::new());
    assert_eq!(bus.disk("copy").await, None);
    assert!(!disk::path(root, "copy", "qcow2").exists());
}

#[tokio::test]
async fn a_convert_whose_worker_is_stopped_is_handed_back() {
    let (stack, bus) = with_source(SLOW).await;
    let events = bus.events().await;
    // It shall not wait for the convert's end.
    stack.stop(Service::Storage).await;
    let tools = stack.folder().join("tools");
    let settings = [
        ("VIRTBUS__TOOLS_DIR", tools.to_str().unwrap()),
        ("VIRTBUS__WORK__DRAIN_S", "0"),
    ];
    stack.start_again_with(Service::Storage, &settings);
    in_the_middle(&stack, &bus, "convert").await;
    let pid = stack.pid(Service::Storage);
    process::signal(pid, Signal::TERM);
    assert_eq!(stack.exit_code(pid).await, Some(0), "stopped on request");
    let root = &stack.ready.pool_root;
    assert_eq!(disk::leftovers(root), Vec::<String>::new(), "cleaned up");
    let tools = process::tools(root);
    assert!(tools.is_empty(), "{tools:#?}");
    let record = bus.record("convert").await.unwrap();
    assert!(
        ["waiting", "queued"].contains(&state_of(&record)),
        "{record:#}"
    );
    assert_eq!(
        record["tries_left"], 3,
        "its try was given back: {record:#}"
    );
    assert_eq!(bus.disk("copy").await, None, "no intent stays");

    stack.start_again(Service::Storage);
    let record = ended_once(&stack, &bus, &events).await;
    assert_eq!(record["tries_left"], 2, "{record:#}");
    assert!(events.states("convert").contains(&"waiting".to_owned()));
}
