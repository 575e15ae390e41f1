//! What can't be done, and what is left then: everything as it was.

use crate::guests::{Guests, payload, template};
use serde_json::{Value, json};
use virtbus_wire::{
    Timestamp,
    catalog::{DiskRecord, DiskState, DomainRecord},
    task::hypervisor::DomainState,
};

const QUEUE: &str = "hypervisor.hv-test.default";

#[tokio::test]
async fn a_guest_without_an_agent_is_not_quiesced_and_goes_on_as_it_was() {
    let guests = Guests::start().await;
    // Its place for an agent is there, and no agent in the guest; then not even that.
    for (domain, agent) in [("web1", true), ("web2", false)] {
        guests.disk(domain).await;
        let mut template = template(&[domain]);
        template["agent"] = json!(agent);
        let start = json!({"domain": domain, "template": template});
        guests.done("start_domain", start).await;
        let new = format!("{domain}-a");
        let mut params = json!({"domain": domain, "overlays": {domain: new}, "quiesce": true});
        let job = payload("create_snapshot", &params);
        let error = guests.site.refused(QUEUE, job).await;
        assert_eq!(error.code.as_str(), "domain.unsupported", "{error}");
        let found = guests.site.disks().get_latest(&new).await.unwrap();
        assert!(found.is_none() && !guests.file(&format!("{new}.qcow2")).exists());
        let record = guests.site.domain(domain).await.unwrap();
        assert_eq!(record.state, DomainState::Running);
        assert_eq!(record.disks, [domain.parse().unwrap()]);
        let disk = guests.disk_record(domain).await;
        assert!(disk.state == DiskState::Ready && disk.children.is_empty());
        let used = [format!("{domain} Exclusive")];
        assert_eq!(guests.site.users(domain).await, used);

        params["quiesce"] = json!(false);
        guests.done("create_snapshot", params).await;
    }
}

#[tokio::test]
async fn a_domain_that_does_not_come_up_is_checked_and_not_ok() {
    let guests = Guests::start().await;
    guests.disk("web1").await;
    let mut template = template(&["web1"]);
    template["cpu"] = json!("no-such");
    let check = json!({"domain": "web1", "template": template});
    let checked = guests.done("check_domain", check).await;
    assert_eq!(checked["ok"], false);
    let warnings = checked["warnings"].as_array().unwrap();
    let text = warnings[0].as_str().unwrap();
    assert!(warnings.len() == 1 && text.contains("no-such"), "{text}");
    assert!(!text.contains('/'), "{text}");
    let known = guests.libvirt.virsh(&["list", "--all", "--name"]).stdout;
    assert!(known.trim_ascii().is_empty() && guests.libvirt.guests().is_empty());
    assert!(guests.site.users("web1").await.is_empty());
    assert!(guests.site.domain("web1").await.is_none());
}

#[tokio::test]
async fn a_domain_that_is_off_is_not_reset() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
    for (domain, code) in [("web1", "domain.wrong_state"), ("none", "domain.not_found")] {
        let reset = payload("reset_domain", &json!({"domain": domain}));
        let error = guests.site.refused("hypervisor.hv-test.high", reset).await;
        assert_eq!(error.code.as_str(), code, "{error}");
    }
    assert_eq!(guests.libvirt.state("web1"), "shut off");
}

/// A disk of which there is nothing but its record.
async fn told(guests: &Guests, id: &str, pool: &str, format: &str) {
    let record = json!({"pool": pool, "format": format, "virtual_size": 1 << 20,
        "state": "ready", "updated_at": Timestamp::now()});
    let record: DiskRecord = serde_json::from_value(record).unwrap();
    guests.site.disks().put(id, &record).await.unwrap();
}

/// A domain in XML, with one disk of a pool.
fn xml(domain: &str, more: &str, pool: &str, disk: &str) -> Value {
    let xml = format!(
        "<domain type='qemu'><name>{domain}</name>{more}<memory unit='MiB'>32</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <disk type='volume' device='disk'><source pool='{pool}' volume='{disk}'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain>"
    );
    json!({"domain": domain, "xml": xml})
}

/// What is asked, the code of the refusal, and what its detail says besides.
type Refused = (&'static str, Value, &'static str, Value);

/// All that a refusal could have changed.
async fn all(guests: &Guests) -> (Vec<DiskRecord>, Vec<DomainRecord>, Value) {
    let disks = guests.site.disks().all().await.unwrap();
    let domains = guests.site.domains().all().await.unwrap();
    let known = guests.libvirt.virsh(&["list", "--all"]).stdout;
    (
        disks.into_iter().map(|(_, entry)| entry.value).collect(),
        domains.into_iter().map(|(_, entry)| entry.value).collect(),
        String::from_utf8(known).unwrap().into(),
    )
}

/// Asks for each, is refused it, and finds everything as it was.
async fn are_refused(guests: &Guests, rows: &[Refused]) {
    let before = all(guests).await;
    for (task, params, code, detail) in rows {
        let error = guests.site.refused(QUEUE, payload(task, params)).await;
        assert_eq!(error.code.as_str(), *code, "{task} {params}: {error:?}");
        for (key, value) in detail.as_object().unwrap() {
            assert_eq!(error.detail[key], *value, "{task} {params}: {error:?}");
        }
        assert!(!error.message.contains('/'), "{error}");
        assert_eq!(all(guests).await, before, "{task} {params}");
    }
}

/// Starts that can't be, while `web1` runs from its disk and the one below.
fn starts() -> Vec<Refused> {
    let start = |disk: &str| json!({"domain": "web2", "template": template(&[disk])});
    let mut with_medium = start("plain");
    with_medium["template"]["media"] = json!(["none"]);
    let by_web1 = json!({"disk": "web1", "domain": "web1", "hypervisor": "hv-test"});
    let other_uuid = "<uuid>0199b1c2-0000-7000-8000-000000000001</uuid>";
    vec![
        (
            "start_domain",
            start("web1"),
            "disk.in_use",
            by_web1.clone(),
        ),
        ("check_domain", start("web1"), "disk.in_use", by_web1),
        (
            "start_domain",
            start("far"),
            "disk.wrong_pool",
            json!({"disk": "far", "pool": "other"}),
        ),
        (
            "start_domain",
            xml("web2", "", "other", "far"),
            "pool.not_found",
            json!({"pool": "other"}),
        ),
        (
            "start_domain",
            start("vm"),
            "domain.unsupported",
            json!({"disk": "vm"}),
        ),
        (
            "start_domain",
            with_medium,
            "media.not_found",
            json!({"media": "none"}),
        ),
        (
            "start_domain",
            xml("told", other_uuid, "default", "plain"),
            "domain.invalid_xml",
            json!({}),
        ),
        (
            "check_domain",
            json!({"domain": "web1"}),
            "domain.wrong_state",
            json!({"domain": "web1", "state": "running"}),
        ),
    ]
}

/// The same of what is done to domains and their disks.
fn changes() -> Vec<Refused> {
    vec![
        (
            "create_snapshot",
            json!({"domain": "told", "snapshot": "s1"}),
            "domain.wrong_state",
            json!({"domain": "told"}),
        ),
        (
            "resize",
            json!({"domain": "web1", "disk": "plain", "size": "8MiB"}),
            "domain.wrong_state",
            json!({"disk": "plain"}),
        ),
        (
            "resize",
            json!({"domain": "web1", "disk": "none", "size": "8MiB"}),
            "disk.not_found",
            json!({"disk": "none"}),
        ),
        (
            "commit",
            json!({"domain": "web1", "disk": "single"}),
            "disk.wrong_state",
            json!({"disk": "single"}),
        ),
        (
            "commit",
            json!({"domain": "web1", "disk": "web1"}),
            "disk.in_use",
            json!({"disk": "base"}),
        ),
    ]
}

/// What can't be, of `web1` that is off.
fn while_it_is_off() -> Vec<Refused> {
    let state = || json!({"domain": "web1", "state": "shutoff"});
    let resize = json!({"domain": "web1", "disk": "web1", "size": "8MiB"});
    let commit = json!({"domain": "web1", "disk": "web1"});
    vec![
        ("resize", resize, "domain.wrong_state", state()),
        ("commit", commit, "domain.wrong_state", state()),
    ]
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_code_and_changes_nothing() {
    let guests = Guests::start().await;
    for disk in ["base", "single"] {
        guests.disk(disk).await;
    }
    guests.overlay("web1", "base").await;
    for (disk, pool, format) in [
        ("plain", "default", "qcow2"),
        ("far", "other", "qcow2"),
        ("vm", "default", "vmdk"),
    ] {
        told(&guests, disk, pool, format).await;
    }
    let mut start = json!({"domain": "web1", "template": template(&["web1", "single"])});
    start["paused"] = json!(true);
    guests.done("start_domain", start).await;
    let asks = json!({"domain": "web1", "mode": "shutdown"});
    let paused = json!({"domain": "web1", "state": "paused"});
    are_refused(
        &guests,
        &[("stop_domain", asks, "domain.wrong_state", paused)],
    )
    .await;
    guests
        .done("resume_domain", json!({"domain": "web1"}))
        .await;

    // A domain that was never on this host; and somebody who reads the disk below.
    let mut told = guests.site.domain("web1").await.unwrap();
    told.uuid = "0199b1c2-0000-7000-8000-000000000002".parse().unwrap();
    (told.hypervisor, told.state) = (None, DomainState::Shutoff);
    guests.site.domains().put("told", &told).await.unwrap();
    let mut below = guests.disk_record("base").await;
    let reader = json!({"domain": "web3", "hypervisor": "hv-two", "mode": "shared"});
    let reader = serde_json::from_value(reader).unwrap();
    below.in_use_by.push(reader);
    guests.site.disks().put("base", &below).await.unwrap();
    for rows in [starts(), changes()] {
        are_refused(&guests, &rows).await;
    }

    // Who can wait has what it's refused now once it's free.
    let mut waits = json!({"task": "start_domain", "if_in_use": "wait"});
    waits["params"] = json!({"domain": "web2", "template": template(&["web1"])});
    let before = all(&guests).await;
    let waiting = guests.site.publish(QUEUE, waits.to_string()).await;
    let on = guests.site.lock_waited_for(&waiting).await;
    assert_eq!(on, ("disk.web1".to_owned(), "domain.web1".to_owned()));
    assert_eq!(all(&guests).await, before);
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
    let record = guests.site.mended(&waiting).await;
    assert_eq!(record.state.name().as_str(), "succeeded", "{record:?}");
    assert_eq!(guests.site.users("web1").await, ["web2 Exclusive"]);
    are_refused(&guests, &while_it_is_off()).await;
}
