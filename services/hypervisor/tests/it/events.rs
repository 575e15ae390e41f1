//! What libvirt tells by itself, while other things go on.

use crate::guests::{Guests, payload};
use serde_json::json;
use std::{fs, process::Command, time::Duration};
use virtbus_testbed::{until, within};
use virtbus_wire::{JobState, state::Phase, task::hypervisor::DomainState};

/// Sends a guest's process a signal.
fn signal(guests: &Guests, domain: &str, signal: &str) {
    let pid = guests.libvirt.named_guests()[domain].to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn a_domain_is_seen_at_once_while_a_call_about_another_one_takes_long() {
    let guests = Guests::start().await;
    guests.run("slow").await;
    guests.run("web1").await;
    // A snapshot of a guest that stands still lasts as long as that.
    signal(&guests, "slow", "STOP");
    let of = json!({"domain": "slow", "snapshot": "s1"});
    let low = "hypervisor.hv-test.low";
    let job = guests
        .site
        .publish(low, payload("create_snapshot", &of))
        .await;
    until("the call", async || {
        let state = guests.site.record(&job).await?.state;
        match state.hold() {
            Some(hold) if hold.phase == Phase::Commit => Ok(()),
            Some(_) | None => Err(format!("{state:?}")),
        }
    })
    .await;
    // Something is told of it meanwhile.
    let xml = guests.libvirt.pool().join("slow.xml");
    let said = guests.libvirt.virsh(&["dumpxml", "--inactive", "slow"]);
    fs::write(&xml, said.stdout).unwrap();
    let defined = guests.libvirt.virsh(&["define", xml.to_str().unwrap()]);
    assert!(defined.status.success(), "{defined:?}");

    let asked = guests.libvirt.virsh(&["destroy", "web1"]);
    assert!(asked.status.success());
    // A second, on a machine that does other things as well.
    within(Duration::from_secs(3), "the end", async || {
        match guests.site.domain("web1").await {
            Some(record) if record.state == DomainState::Shutoff => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert!(guests.site.users("web1").await.is_empty());
    let state = guests.site.record(&job).await.unwrap().state;
    assert!(matches!(state, JobState::Running(_)), "{state:?}");
    signal(&guests, "slow", "CONT");
    let record = guests.site.ended(&job).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
}
