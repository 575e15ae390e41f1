//! What can't be done, and what is left then: everything as it was.

use crate::guests::{Guests, payload, template};
use serde_json::json;
use virtbus_wire::{catalog::DiskState, task::hypervisor::DomainState};

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
