//! Domains on a real libvirt daemon with QEMU.

use crate::guests::{Guests, payload, template};
use serde_json::json;
use virtbus_testbed::until;
use virtbus_wire::{catalog::Desired, task::hypervisor::DomainState};

#[tokio::test]
async fn a_domain_is_started_from_a_template_and_stopped_though_its_guest_hears_nothing() {
    let guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let started = guests
        .site
        .done("hypervisor.default.default", guests.start_of("web1"))
        .await;
    assert_eq!(started["state"], "running");
    assert_eq!(started["hypervisor"], "hv-test");
    assert_eq!(started["graphics"]["type"], "vnc");
    assert_eq!(guests.libvirt.state("web1"), "running");
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    assert_eq!(guests.site.users("base").await, ["web1 Shared"]);
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(
        (record.state, record.desired),
        (DomainState::Running, Desired::Running)
    );
    let xml = record.xml.unwrap();
    assert!(
        xml.contains("type='volume'") && !xml.contains("qcow2"),
        "{xml}"
    );

    // Again: it's so already.
    let again = guests
        .site
        .done("hypervisor.default.default", guests.start_of("web1"))
        .await;
    assert_eq!(again["state"], "running");

    let stop = json!({"domain": "web1", "deadline_s": 1});
    let error = guests
        .site
        .refused("hypervisor.default.default", payload("stop_domain", &stop))
        .await;
    assert_eq!(error.code.as_str(), "domain.wrong_state");
    assert_eq!(guests.libvirt.state("web1"), "running");

    let stop = json!({"domain": "web1", "mode": "shutdown_then_destroy", "deadline_s": 1});
    assert_eq!(guests.done("stop_domain", stop).await["state"], "shutoff");
    assert_eq!(guests.libvirt.state("web1"), "shut off");
    assert!(guests.site.users("web1").await.is_empty());
    assert!(guests.site.users("base").await.is_empty());
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(
        (record.state, record.desired),
        (DomainState::Shutoff, Desired::Shutoff)
    );

    let again = guests.done("stop_domain", json!({"domain": "web1"})).await;
    assert_eq!(again["state"], "shutoff", "stopping what is off succeeds");
}

#[tokio::test]
async fn a_domain_starts_paused_runs_on_is_reset_and_starts_again_as_it_was_defined() {
    let guests = Guests::start().await;
    guests.disk("web1").await;
    let start = json!({"domain": "web1", "template": template(&["web1"]), "paused": true});
    let queue = "hypervisor.default.default";
    let started = guests
        .site
        .done(queue, payload("start_domain", &start))
        .await;
    assert_eq!(started["state"], "paused");
    let just = json!({"domain": "web1"});
    for _ in 0..2 {
        let resumed = guests
            .site
            .done(queue, payload("resume_domain", &just))
            .await;
        assert_eq!(resumed["state"], "running");
    }
    assert_eq!(
        guests.done("reset_domain", just.clone()).await["state"],
        "running"
    );
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    assert_eq!(
        guests.done("stop_domain", destroy.clone()).await["state"],
        "shutoff"
    );
    let error = guests
        .site
        .refused(queue, payload("resume_domain", &just))
        .await;
    assert_eq!(error.code.as_str(), "domain.wrong_state");
    let started = guests
        .site
        .done(queue, payload("start_domain", &just))
        .await;
    assert_eq!(started["state"], "running");
    let error = guests
        .site
        .refused("hypervisor.default.low", payload("delete_domain", &just))
        .await;
    assert_eq!(error.code.as_str(), "domain.wrong_state");
    guests.done("stop_domain", destroy).await;
    for _ in 0..2 {
        guests
            .site
            .done("hypervisor.default.low", payload("delete_domain", &just))
            .await;
    }
    assert_eq!(guests.libvirt.state("web1"), "");
    assert!(guests.site.domain("web1").await.is_none());
    let error = guests
        .site
        .refused(queue, payload("start_domain", &just))
        .await;
    assert_eq!(error.code.as_str(), "domain.not_found");
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing_behind() {
    let guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let queue = "hypervisor.default.default";
    let with = |template| json!({"domain": "web1", "template": template});
    // A word by our own rules; libvirt's schema is the stricter one there.
    let serial = "<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <disk type='volume' device='disk'><source pool='default' volume='web1'/>\
         <target dev='vda' bus='virtio'/><serial>a:b</serial></disk></devices></domain>";
    for (params, code) in [
        (with(template(&["base"])), "disk.has_children"),
        (with(template(&["gone"])), "disk.not_found"),
        (
            with(json!({"memory": "32MiB", "vcpus": 1, "disks": ["web1"], "machine": "no-such"})),
            "domain.invalid_xml",
        ),
        (
            json!({"domain": "web1", "xml": serial}),
            "domain.invalid_xml",
        ),
        (
            with(json!({"memory": "32MiB", "vcpus": 1, "networks": [{"bridge": "br0"}]})),
            "domain.forbidden_device",
        ),
    ] {
        for task in ["start_domain", "check_domain"] {
            let error = guests.site.refused(queue, payload(task, &params)).await;
            assert_eq!(error.code.as_str(), code, "{task}: {error:?}");
            assert!(!error.message.contains('/'), "{task}: {error}");
        }
    }
    for disk in ["base", "web1"] {
        assert!(guests.site.users(disk).await.is_empty(), "{disk}");
    }
    assert!(guests.site.domain("web1").await.is_none());
    assert_eq!(guests.libvirt.state("web1"), "");
}

#[tokio::test]
async fn what_happens_behind_our_back_is_seen() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let state_is = async |wanted: DomainState| {
        until("the state", async || {
            match guests.site.domain("web1").await {
                Some(record) if record.state == wanted => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    assert!(guests.libvirt.virsh(&["destroy", "web1"]).status.success());
    state_is(DomainState::Shutoff).await;
    assert!(guests.site.users("web1").await.is_empty());
    assert!(
        guests
            .libvirt
            .virsh(&["start", "--paused", "web1"])
            .status
            .success()
    );
    state_is(DomainState::Paused).await;
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    // Others had no sign of this host for a while: they say so in the record.
    let mut record = guests.site.domain("web1").await.unwrap();
    record.state = DomainState::Unknown;
    guests.site.domains().put("web1", &record).await.unwrap();
    state_is(DomainState::Paused).await;

    guests.end("web1");
    state_is(DomainState::Crashed).await;
    let desired = async || guests.site.domain("web1").await.unwrap().desired;
    assert_eq!(desired().await, Desired::Running, "nobody asked for that");
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
    assert_eq!(desired().await, Desired::Shutoff);
}

#[tokio::test]
async fn a_snapshot_is_made_with_memory_reverted_to_and_given_up() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let low = "hypervisor.hv-test.low";
    let of = json!({"domain": "web1", "snapshot": "s1"});
    let id = guests
        .site
        .publish(low, payload("create_snapshot", &of))
        .await;
    let record = guests.site.ended(&id).await;
    assert_eq!(
        record.state.name().as_str(),
        "succeeded",
        "{:?}",
        record.state
    );
    let error = guests
        .site
        .refused(low, payload("create_snapshot", &of))
        .await;
    assert_eq!(error.code.as_str(), "snapshot.exists");
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(record.snapshots.len(), 1);
    let disk = guests.disk_record("web1").await;
    assert_eq!(disk.snapshots[0].as_str(), "s1");

    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    guests.done("revert_snapshot", of.clone()).await;
    assert_eq!(
        guests.libvirt.state("web1"),
        "running",
        "it ran when it was made"
    );
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);

    for _ in 0..2 {
        guests.done("delete_snapshot", of.clone()).await;
    }
    let error = guests.site.refused(
        "hypervisor.hv-test.default",
        payload("revert_snapshot", &of),
    );
    assert_eq!(error.await.code.as_str(), "snapshot.not_found");
    assert!(
        guests
            .site
            .domain("web1")
            .await
            .unwrap()
            .snapshots
            .is_empty()
    );
    let disk = guests.disk_record("web1").await;
    assert!(disk.snapshots.is_empty());
}

#[tokio::test]
async fn a_running_domains_disk_grows_never_shrinks_and_has_its_size_again_after_a_revert() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy.clone()).await;
    let of = json!({"domain": "web1", "snapshot": "s1"});
    guests.done("create_snapshot", of.clone()).await;
    guests.done("start_domain", json!({"domain": "web1"})).await;
    let to = |size: &str| json!({"domain": "web1", "disk": "web1", "size": size});
    for _ in 0..2 {
        let done = guests.done("resize", to("8MiB")).await;
        assert_eq!(done["virtual_size"], 8 << 20);
    }
    let disk = guests.disk_record("web1").await;
    assert_eq!(disk.virtual_size, Some(8 << 20));
    let queue = "hypervisor.hv-test.default";
    let error = guests
        .site
        .refused(queue, payload("resize", &to("1MiB")))
        .await;
    assert_eq!(error.code.as_str(), "job.invalid_params");

    guests.done("stop_domain", destroy).await;
    guests.done("revert_snapshot", of).await;
    let disk = guests.disk_record("web1").await;
    assert_eq!(disk.virtual_size, Some(1 << 20));
    guests.done("start_domain", json!({"domain": "web1"})).await;
}
