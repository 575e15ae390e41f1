//! What libvirt tells by itself, while other things go on.

use crate::guests::{Guests, payload};
use serde_json::json;
use std::{fs, process::Command, time::Duration};
use virtbus_testbed::{until, within};
use virtbus_wire::{
    JobId, JobState, catalog::HypervisorState, state::Phase, task::hypervisor::DomainState,
};

/// Sends a guest's process a signal.
fn signal(guests: &Guests, domain: &str, signal: &str) {
    let pid = guests.libvirt.named_guests()[domain].to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(sent.unwrap().success());
}

/// Begins a snapshot of a guest that stands still: it lasts as long as that.
async fn slow_snapshot(guests: &Guests) -> JobId {
    signal(guests, "slow", "STOP");
    let of = json!({"domain": "slow", "snapshot": "s1"});
    let low = "hypervisor.hv-test.low";
    let job = payload("create_snapshot", &of);
    guests.site.publish(low, job).await
}

#[tokio::test]
async fn a_domain_is_seen_at_once_while_a_call_about_another_one_takes_long() {
    let guests = Guests::start().await;
    guests.run("slow").await;
    guests.run("web1").await;
    let job = slow_snapshot(&guests).await;
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

#[tokio::test]
async fn a_call_that_goes_on_without_its_service_is_waited_for_by_the_next_one() {
    let mut guests = Guests::start().await;
    guests.run("slow").await;
    let job = slow_snapshot(&guests).await;
    until("the call", async || {
        let said = guests.libvirt.virsh(&["domcontrol", "slow"]).stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains("background job") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    guests.service.kill();
    guests.restart().await;
    until("the next claim", async || {
        match guests.site.nudged(&job).await {
            Err(_) if guests.site.record(&job).await?.claim > 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    signal(&guests, "slow", "CONT");
    let record = guests.site.ended(&job).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
    assert_eq!(record.attempt, 1, "it was made once");
    assert_eq!(guests.disk_record("slow").await.snapshots.len(), 1);
}

#[tokio::test]
async fn a_stop_gets_in_beside_as_many_calls_that_hang_as_there_are_slots() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let slow = ["slow1", "slow2", "slow3", "slow4"];
    let mut jobs = Vec::new();
    for domain in slow {
        guests.run(domain).await;
        signal(&guests, domain, "STOP");
        let of = json!({"domain": domain, "snapshot": "s1"});
        // One of them where a slot is kept for what is urgent.
        let priority = if domain == "slow4" { "high" } else { "default" };
        let queue = format!("hypervisor.hv-test.{priority}");
        let job = payload("create_snapshot", &of);
        jobs.push(guests.site.publish(&queue, job).await);
    }
    until("calls that hang", async || {
        let said = slow.map(|domain| guests.libvirt.virsh(&["domcontrol", domain]).stdout);
        let is_busy = |said: &Vec<u8>| String::from_utf8_lossy(said).contains("background job");
        if said.iter().all(is_busy) {
            Ok(())
        } else {
            Err(said.len())
        }
    })
    .await;
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    assert_eq!(
        guests.done("stop_domain", destroy).await["state"],
        "shutoff"
    );
    for job in &jobs {
        let state = guests.site.record(job).await.unwrap().state;
        assert!(matches!(state, JobState::Running(_)), "{state:?}");
    }
    for domain in slow {
        signal(&guests, domain, "CONT");
    }
    for job in &jobs {
        let record = guests.site.ended(job).await;
        assert_eq!(record.state.name().as_str(), "succeeded");
    }
}

#[tokio::test]
async fn a_domain_that_nobody_made_over_the_bus_is_stopped_over_it() {
    let guests = Guests::start().await;
    guests.disk("d7").await;
    let disk = guests.file("d7.qcow2");
    let own = format!(
        "<domain type='qemu'><name>own</name><memory>8192</memory><os><type>hvm</type></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{}'/><target dev='vda'/></disk></devices></domain>",
        disk.display()
    );
    let xml = guests.libvirt.pool().join("own.xml");
    fs::write(&xml, own).unwrap();
    let path = xml.to_str().unwrap();
    assert!(guests.libvirt.virsh(&["define", path]).status.success());
    assert!(guests.libvirt.virsh(&["start", "own"]).status.success());
    let used_by = async |wanted: &[&str]| {
        until("who uses its disk", async || {
            let users = guests.site.users("d7").await;
            if users == wanted { Ok(()) } else { Err(users) }
        })
        .await;
    };
    used_by(&["own Exclusive"]).await;
    let destroy = json!({"domain": "own", "mode": "destroy"});
    for _ in 0..2 {
        let done = guests.done("stop_domain", destroy.clone()).await;
        assert_eq!(done["state"], "shutoff");
        assert_eq!(guests.libvirt.state("own"), "shut off");
    }
    used_by(&[]).await;
    let none = json!({"domain": "none", "mode": "destroy"});
    let queue = "hypervisor.hv-test.default";
    let error = guests.site.refused(queue, payload("stop_domain", &none));
    assert_eq!(error.await.code.as_str(), "domain.not_found");
}

#[tokio::test]
async fn a_fenced_host_whose_service_lives_is_up_and_what_it_runs_is_seen() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    // What core writes on a person's wrong word, while this service was cut off.
    let mut disk = guests
        .site
        .disks()
        .get_latest("web1")
        .await
        .unwrap()
        .unwrap();
    disk.value.in_use_by.clear();
    guests.site.disks().put("web1", &disk.value).await.unwrap();
    let mut host = guests.site.host("hv-test").await.unwrap();
    host.state = HypervisorState::Fenced;
    guests.site.hosts().put("hv-test", &host).await.unwrap();
    let mut record = guests.site.domain("web1").await.unwrap();
    record.state = DomainState::Shutoff;
    guests.site.domains().put("web1", &record).await.unwrap();

    until("the truth", async || {
        let host = guests.site.host("hv-test").await?;
        let domain = guests.site.domain("web1").await.ok_or("none")?;
        match (host.state, domain.state) {
            (HypervisorState::Up, DomainState::Running) => Ok(()),
            states => Err(format!("{states:?}")),
        }
    })
    .await;
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
}
