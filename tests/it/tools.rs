//! Tools that misbehave: what other systems got wrong, as claims that hold here.

use serde_json::{Value, json};
use virtbus_testbed::until;
use virtbus_tests::disk::{self, MIB};
use virtbus_tests::{Bus, Stack, process, state_of};

const HIGH: &str = "storage.default.high";
const LOW: &str = "storage.default.low";

/// Stands for qemu-img, and becomes it but for three files, told by their ids: `chatty` is copied
/// well, with nonsense for progress and a process that lives on when all is said; `half` ends
/// badly with half a file; `partial` does so the first time.
const SCRIPT: &str = r#"#!/bin/sh
for word; do case "$word" in *.part) target=$word ;; esac; done
case "$1 $target" in
    convert*chatty*)
        printf 'no bracket\r(\r()\r(x/100%%)\r(-5/100%%)\r'
        REAL "$@" || exit
        printf '\r(100.00/100%%'
        exec >&-
        exec /bin/sleep 1 ;;
    convert*half*) printf half > "$target"; exit 23 ;;
    create*.1.partial.part) printf 'QFI' > "$target"; exit 1 ;;
esac
exec REAL "$@"
"#;

/// A stack whose storage service uses the script.
async fn with_script() -> (Stack, Bus) {
    let stack = Stack::start().await;
    stack.with_qemu_img(SCRIPT).await;
    let bus = stack.bus().await;
    (stack, bus)
}

/// A raw disk of noise.
async fn source(stack: &Stack, bus: &Bus, mib: u64) {
    let params = json!({"disk": "source", "size": mib * MIB, "format": "raw"});
    bus.succeed(HIGH, "create_disk", params).await;
    let file = disk::path(&stack.ready.pool_root, "source", "raw");
    disk::fill(&file, mib);
}

fn copy(to: &str) -> Value {
    json!({"disk": "source", "to": to, "format": "qcow2", "compress": "zlib"})
}

#[tokio::test]
async fn a_job_that_runs_out_of_time_leaves_no_tool_and_no_file() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    source(&stack, &bus, 384).await;
    let job = json!({"id": "late", "task": "convert", "params": copy("late"), "timeout_s": 1,
        "retry": {"max_attempts": 1}});
    bus.publish(LOW, &job).await;
    let record = bus.end_of("late").await;
    assert_eq!(state_of(&record), "failed", "{record:#}");
    assert_eq!(
        record["error"]["detail"]["cause"], "job.timeout",
        "{record:#}"
    );
    let root = &stack.ready.pool_root;
    let left = process::tools(root);
    assert!(left.is_empty(), "a tool outlived its job: {left:#?}");
    assert_eq!(disk::leftovers(root), Vec::<String>::new());
    assert!(!disk::path(root, "late", "qcow2").exists());
    assert_eq!(bus.disk("late").await, None);
    assert_eq!(bus.disk("source").await.unwrap()["state"], "ready");
}

#[tokio::test]
async fn a_tool_that_says_nonsense_and_lingers_does_its_work() {
    let (stack, bus) = with_script().await;
    source(&stack, &bus, 16).await;
    bus.succeed(LOW, "convert", copy("chatty")).await;
    let root = &stack.ready.pool_root;
    let (from, to) = (
        disk::path(root, "source", "raw"),
        disk::path(root, "chatty", "qcow2"),
    );
    assert!(disk::same(&from, &to));
    assert_eq!(bus.disk("chatty").await.unwrap()["state"], "ready");
}

#[tokio::test]
async fn a_tool_that_fails_is_no_success_and_the_source_stays() {
    let (stack, bus) = with_script().await;
    source(&stack, &bus, 16).await;
    let job = json!({"id": "half", "task": "convert", "params": copy("half"),
        "retry": {"max_attempts": 1}});
    bus.publish(LOW, &job).await;
    let record = bus.end_of("half").await;
    assert_eq!(state_of(&record), "failed", "{record:#}");
    assert_eq!(
        record["error"]["detail"]["cause"], "tool.failed",
        "{record:#}"
    );
    let root = &stack.ready.pool_root;
    assert!(!disk::path(root, "half", "qcow2").exists());
    assert_eq!(disk::leftovers(root), Vec::<String>::new());
    assert_eq!(bus.disk("half").await, None);
    assert_eq!(bus.disk("source").await.unwrap()["state"], "ready");
}

#[tokio::test]
async fn a_disk_that_was_half_made_is_made_anew_by_the_next_attempt() {
    let (stack, bus) = with_script().await;
    let params = json!({"disk": "partial", "size": "8MiB"});
    let job = json!({"id": "partial", "task": "create_disk", "params": params});
    bus.publish(HIGH, &job).await;
    let record = bus.end_of("partial").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    assert_eq!(record["attempt"], 2, "{record:#}");
    let file = disk::path(&stack.ready.pool_root, "partial", "qcow2");
    assert_eq!(disk::info(&file)["virtual-size"], 8 * MIB);
    assert_eq!(
        disk::leftovers(&stack.ready.pool_root),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn no_job_is_said_to_be_over_before_it_is() {
    let stack = Stack::start().await;
    let bus = stack.bus().await;
    source(&stack, &bus, 64).await;
    let events = bus.events().await;
    let job = json!({"id": "over", "task": "convert", "params": copy("over")});
    bus.publish(LOW, &job).await;
    let file = disk::path(&stack.ready.pool_root, "over", "qcow2");
    until("its end", async || {
        let is_over = events.of("over").iter().any(|change| change.is_final());
        // At the first event that says so, everything is there.
        if is_over { Ok(()) } else { Err(()) }
    })
    .await;
    assert!(file.exists());
    assert_eq!(bus.disk("over").await.unwrap()["state"], "ready");
    // A job behind it, so that whatever comes late has come.
    bus.ping(LOW).await;
    let ends = events.of("over");
    let finals = ends.iter().filter(|change| change.is_final()).count();
    assert_eq!(finals, 1);
    assert!(ends.last().is_some_and(virtbus_tests::Change::is_final));
}
