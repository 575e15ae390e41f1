//! A convert is cancelled through the control API while its tool, the real one, is at work.

use crate::crash::{in_the_middle, with_source};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;
use virtbus_testbed::watch::soon;
use virtbus_tests::{Bus, Stack, disk, process, state_of};

/// The storage service's, for a tool that was asked to end.
const GRACE: Duration = Duration::from_secs(10);
/// qemu-img, so slow that a test is surely in the middle of a copy; and for a job whose id says so,
/// of which the names of its temporary files tell, one that can't be asked to end.
const TOOL: &str = "#!/bin/sh\ncase \"$*\" in *stubborn*) trap '' TERM ;; esac\n\
    [ \"$1\" = convert ] && shift && exec REAL convert -r 4M \"$@\"\nexec REAL \"$@\"\n";

/// Cancels a convert in its middle, and looks at the very moment at which it's said to be
/// cancelled: nothing of it is left. Returns how long that took.
async fn cancel(stack: &Stack, bus: &Bus, id: &str, force: bool) -> Duration {
    in_the_middle(stack, bus, id).await;
    let root = &stack.ready.pool_root;
    let tools = process::tools(root);
    let groups: BTreeSet<u32> = tools
        .iter()
        .filter_map(|tool| process::group(tool.pid))
        .collect();
    assert!(!groups.is_empty(), "{tools:#?}");
    let subject = format!("events.jobs.{id}");
    let mut changes = bus.client.subscribe(subject).await.unwrap();
    bus.client.flush().await.unwrap();
    let begin = Instant::now();
    let asked = json!({"id": id, "force": force, "by": "alice"});
    let answer = bus.ask("virtbus.jobs.cancel", &asked).await.unwrap();
    assert_eq!(answer["outcome"], "cancelling");
    let record = soon("the job is cancelled", async {
        loop {
            let change = changes.next().await.unwrap();
            let record: Value = serde_json::from_slice(&change.payload).unwrap();
            if state_of(&record) != "cancelling" && state_of(&record) != "running" {
                return record;
            }
        }
    })
    .await;
    let took = begin.elapsed();
    for group in groups {
        let members = process::members(group);
        assert!(members.is_empty(), "{id}: {members:#?}");
    }
    assert_eq!(disk::leftovers(root), Vec::<String>::new(), "{id}");
    assert_eq!(state_of(&record), "cancelled", "{record:#}");
    assert_eq!(
        (&record["cancel"]["by"], &record["cancel"]["force"]),
        (&json!("alice"), &json!(force))
    );
    assert_eq!(bus.disk("copy").await, None, "{id}: no intent stays");
    let source = bus.disk("source").await.unwrap();
    assert_eq!(source["state"], "ready", "{id}");
    took
}

#[tokio::test]
async fn a_cancelled_converts_tool_and_files_are_gone_before_it_is_cancelled() {
    let (stack, bus) = with_source(TOOL).await;
    let polite = cancel(&stack, &bus, "polite", false).await;
    assert!(polite < GRACE, "{polite:?}");
    // One that ignores the request has its grace, unless there is force.
    let stubborn = cancel(&stack, &bus, "stubborn-1", false).await;
    assert!(stubborn >= GRACE, "{stubborn:?}");
    let forced = cancel(&stack, &bus, "stubborn-2", true).await;
    assert!(forced < GRACE, "{forced:?}");
}
