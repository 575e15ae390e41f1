//! Snapshots inside disks: of which disks they are, who else reads those, and who looks at their
//! files before libvirt does.

use crate::guests::{Guests, payload, template};
use serde_json::{Value, json};
use std::{fs, process::Command};
use virtbus_wire::catalog::DiskState;

const LOW: &str = "hypervisor.hv-test.low";
const QUEUE: &str = "hypervisor.hv-test.default";

fn destroy(domain: &str) -> Value {
    json!({"domain": domain, "mode": "destroy"})
}

fn s1() -> Value {
    json!({"domain": "web1", "snapshot": "s1"})
}

/// A domain that is off, with a snapshot of its only disk.
async fn off_with_snapshot() -> Guests {
    let guests = Guests::start().await;
    guests.run("web1").await;
    guests.done("stop_domain", destroy("web1")).await;
    guests.done("create_snapshot", s1()).await;
    guests
}

async fn is_refused(guests: &Guests, code: &str) {
    let before = fs::read(guests.file("web1.qcow2")).unwrap();
    let error = guests
        .site
        .refused(QUEUE, payload("revert_snapshot", &s1()));
    let error = error.await;
    assert_eq!(error.code.as_str(), code, "{error}");
    assert!(fs::read(guests.file("web1.qcow2")).unwrap() == before);
    assert!(guests.site.users("web1").await.is_empty());
}

/// How many snapshots a disk's file has.
fn kept(guests: &Guests, disk: &str) -> usize {
    let file = guests.file(&format!("{disk}.qcow2"));
    let mut command = Command::new("qemu-img");
    command.args(["info", "-U", "--output=json"]).arg(file);
    let said: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    said["snapshots"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_snapshot_of_disks_that_the_domain_has_no_more_is_not_reverted_to() {
    let guests = off_with_snapshot().await;
    let overlays = json!({"domain": "web1", "overlays": {"web1": "web1-a"}});
    guests.done("create_snapshot", overlays).await;
    is_refused(&guests, "domain.wrong_state").await;
}

#[tokio::test]
async fn a_domain_that_was_started_from_another_disk_is_not_reverted_to_the_first() {
    let guests = off_with_snapshot().await;
    guests.disk("web2").await;
    let other = json!({"domain": "web1", "template": template(&["web2"])});
    guests.done("start_domain", other).await;
    guests.done("stop_domain", destroy("web1")).await;
    is_refused(&guests, "domain.wrong_state").await;
}

#[tokio::test]
async fn a_disk_that_others_read_or_change_is_not_reverted() {
    let guests = off_with_snapshot().await;
    guests.overlay("web2", "web1").await;
    is_refused(&guests, "disk.has_children").await;
    let mut disk = guests.disk_record("web1").await;
    disk.children.clear();
    disk.state = DiskState::Changing;
    guests.site.disks().put("web1", &disk).await.unwrap();
    for task in ["revert_snapshot", "delete_snapshot"] {
        let id = guests.site.publish(QUEUE, payload(task, &s1())).await;
        assert_eq!(guests.site.code_of_wait(&id).await, "disk.busy", "{task}");
    }
    let other = json!({"domain": "web1", "snapshot": "s2"});
    let id = guests.site.publish(LOW, payload("create_snapshot", &other));
    assert_eq!(guests.site.code_of_wait(&id.await).await, "disk.busy");
    assert_eq!(kept(&guests, "web1"), 1);
}

#[tokio::test]
async fn a_disk_that_two_domains_read_is_in_no_snapshot_of_either() {
    let guests = Guests::start().await;
    guests.disk("tools").await;
    for domain in ["web1", "web2"] {
        guests.disk(domain).await;
        let disks = json!([domain, {"disk": "tools", "readonly": true}]);
        let template = json!({"memory": "32MiB", "vcpus": 1, "disks": disks});
        let start = json!({"domain": domain, "template": template});
        guests.done("start_domain", start).await;
    }
    // With memory while it runs, then without.
    for (snapshot, is_on) in [("s1", true), ("s2", false)] {
        let of = json!({"domain": "web1", "snapshot": snapshot});
        if !is_on {
            guests.done("stop_domain", destroy("web1")).await;
        }
        guests.done("create_snapshot", of.clone()).await;
        for disk in ["web1", "tools"] {
            let record = guests.disk_record(disk).await;
            assert_eq!(
                record.snapshots.len(),
                kept(&guests, disk),
                "{disk} {snapshot}"
            );
        }
        assert!(guests.disk_record("tools").await.snapshots.is_empty());
        guests.done("revert_snapshot", of.clone()).await;
        let users = guests.site.users("tools").await;
        assert_eq!(
            users.contains(&"web1 Shared".to_owned()),
            is_on,
            "{users:?}"
        );
        guests.done("delete_snapshot", of).await;
        assert_eq!(kept(&guests, "web1"), 0);
        assert!(guests.disk_record("web1").await.snapshots.is_empty());
    }
    assert_eq!(guests.site.users("tools").await, ["web2 Shared"]);
}
