//! What a host is found as after its libvirt, its service or all of it was dead.

use crate::guests::Guests;
use serde_json::json;
use virtbus_testbed::until;
use virtbus_wire::{
    catalog::{Desired, DomainRecord},
    task::hypervisor::DomainState,
};

/// Waits until a domain is known to be off. Its disks are free before its record says so.
async fn is_off(guests: &Guests, domain: &str) -> DomainRecord {
    let record = until("its end to be seen", async || {
        match guests.site.domain(domain).await {
            Some(record) if !record.state.is_on() => Ok(record),
            other => Err(other),
        }
    })
    .await;
    assert!(guests.site.users(domain).await.is_empty());
    record
}

#[tokio::test]
async fn a_domain_runs_on_while_its_libvirt_dies_and_one_that_dies_meanwhile_is_seen() {
    let mut guests = Guests::start().await;
    guests.run("web1").await;
    guests.run("web2").await;
    let pid = guests.libvirt.named_guests()["web1"];
    guests.libvirt.kill();
    guests.end("web2");
    let id = guests
        .site
        .publish("hypervisor.hv-test.high", r#"{"task":"ping"}"#)
        .await;
    assert_eq!(
        guests.site.code_of_wait(&id).await,
        "hypervisor.unreachable"
    );
    guests.libvirt.run().await;
    assert_eq!(
        guests.site.mended(&id).await.state.name().as_str(),
        "succeeded"
    );
    // Nobody asked for that: it should run.
    assert_eq!(is_off(&guests, "web2").await.desired, Desired::Running);
    let now = guests.libvirt.named_guests();
    assert_eq!(now["web1"], pid, "the guest never noticed");
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    // Events come over the new connection. What virsh says doesn't count: a daemon that has just
    // found its guests again may tell of the end before the call returns.
    guests.libvirt.virsh(&["destroy", "web1"]);
    let record = is_off(&guests, "web1").await;
    let is = (record.state, record.desired);
    assert_eq!(is, (DomainState::Shutoff, Desired::Shutoff));

    while_the_service_is_dead(&mut guests).await;
    while_the_host_is_off(&mut guests).await;
}

/// What happens then is seen when it's back.
async fn while_the_service_is_dead(guests: &mut Guests) {
    guests.done("start_domain", json!({"domain": "web1"})).await;
    guests.service.kill();
    assert!(guests.libvirt.virsh(&["destroy", "web1"]).status.success());
    guests.restart().await;
    let record = is_off(guests, "web1").await;
    let is = (record.state, record.desired);
    assert_eq!(is, (DomainState::Shutoff, Desired::Shutoff));
}

/// It goes off with all that runs, and comes back: nobody fenced it.
async fn while_the_host_is_off(guests: &mut Guests) {
    guests.done("start_domain", json!({"domain": "web1"})).await;
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    guests.service.kill();
    guests.libvirt.kill();
    guests.end("web1");
    guests.libvirt.forget();
    guests.libvirt.run().await;
    guests.restart().await;
    let record = is_off(guests, "web1").await;
    let is = (record.state, record.desired);
    assert_eq!(is, (DomainState::Shutoff, Desired::Running));
    guests.done("start_domain", json!({"domain": "web1"})).await;
}
