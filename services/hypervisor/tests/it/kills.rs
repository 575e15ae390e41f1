//! The service is killed at some moment after each task's claim; whoever takes over ends it, once.

use crate::guests::{Guests, payload};
use serde_json::{Value, json};
use std::time::Duration;
use virtbus_testbed::until;
use virtbus_wire::{StateName, catalog::DiskState};

/// Publishes, kills the service so many milliseconds after its claim, starts it again, and waits for
/// the end.
async fn killed_during(guests: &mut Guests, after: u64, task: &str, params: &Value) {
    let queue = "hypervisor.hv-test.default";
    let id = guests.site.publish(queue, payload(task, params)).await;
    // What's killed before holds its message for as long as the server waits for a word.
    until("its claim", async || guests.site.record(&id).await).await;
    // Not a wait for a state: the moment is the fault.
    let moment = Duration::from_millis(after);
    tokio::time::sleep(moment).await;
    guests.service.kill();
    guests.restart().await;
    let record = guests.site.mended(&id).await;
    let (name, state) = (record.state.name(), &record.state);
    assert_eq!(
        name,
        StateName::Succeeded,
        "{task}, killed after {after} ms: {state:?}"
    );
}

// Two tests, side by side: nearly all of their time is libvirt's.
#[tokio::test]
async fn whatever_is_killed_at_its_begin_is_ended_by_the_next_one() {
    killed_at(&[0, 50]).await;
}

#[tokio::test]
async fn whatever_is_killed_in_its_midst_is_ended_by_the_next_one() {
    killed_at(&[140, 390]).await;
}

/// Kills each task so many milliseconds after its claim, one moment after the other.
async fn killed_at(moments: &[u64]) {
    let mut guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let just = json!({"domain": "web1"});
    guests
        .site
        .done("hypervisor.default.default", guests.start_of("web1"))
        .await;
    for (number, after) in moments.iter().copied().enumerate() {
        let snapshot = json!({"domain": "web1", "snapshot": format!("s{number}")});
        killed_during(&mut guests, after, "create_snapshot", &snapshot).await;
        let record = guests.site.domain("web1").await.unwrap();
        assert_eq!(record.snapshots.len(), 1);
        killed_during(&mut guests, after, "revert_snapshot", &snapshot).await;
        killed_during(&mut guests, after, "delete_snapshot", &snapshot).await;
        assert!(
            guests
                .site
                .domain("web1")
                .await
                .unwrap()
                .snapshots
                .is_empty()
        );

        let commit = json!({"domain": "web1", "disk": "web1"});
        killed_during(&mut guests, after, "commit", &commit).await;
        let disk = guests.disk_record("web1").await;
        assert_eq!(disk.state, DiskState::Ready);
        assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);

        let stop = json!({"domain": "web1", "mode": "destroy"});
        killed_during(&mut guests, after, "stop_domain", &stop).await;
        assert_eq!(guests.libvirt.state("web1"), "shut off");
        assert!(guests.site.users("web1").await.is_empty());
        killed_during(&mut guests, after, "start_domain", &just).await;
        assert_eq!(guests.libvirt.state("web1"), "running");
        assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    }
}
