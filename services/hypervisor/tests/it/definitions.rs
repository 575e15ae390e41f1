//! What a domain is defined as: by the last start that succeeded, on the host where that was.

use crate::guests::{Guests, template};
use serde_json::{Value, json};
use virtbus_wire::{JobState, task::hypervisor::DomainState};

const POOL: &str = "hypervisor.default.default";

/// The code and the cause of a start that has one attempt, and fails.
async fn failed_start(guests: &Guests, params: &Value) -> String {
    let job = json!({"task": "start_domain", "params": params, "retry": {"max_attempts": 1}});
    let id = guests.site.publish(POOL, job.to_string()).await;
    let record = guests.site.ended(&id).await;
    let JobState::Failed(_, error) = &record.state else {
        panic!("{:?}", record.state);
    };
    let cause = error.detail.get("cause").and_then(Value::as_str);
    cause.unwrap_or(error.code.as_str()).to_owned()
}

fn defined(guests: &Guests, domain: &str) -> String {
    let said = guests.libvirt.virsh(&["dumpxml", domain]);
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[tokio::test]
async fn a_start_that_fails_leaves_the_domain_defined_as_it_last_ran() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
    let before = guests.site.domain("web1").await.unwrap();
    guests.disk("web2").await;
    let with = |key: &str, value: &str| {
        let mut template = template(&["web2"]);
        template[key] = json!(value);
        json!({"domain": "web1", "template": template})
    };
    // One that libvirt doesn't define, and one that it defines and can't start.
    for (key, value, code) in [
        ("machine", "no-such", "domain.invalid_xml"),
        ("cpu", "no-such", "tool.failed"),
    ] {
        assert_eq!(failed_start(&guests, &with(key, value)).await, code);
        let after = guests.site.domain("web1").await.unwrap();
        assert_eq!((&after.xml, &after.disks), (&before.xml, &before.disks));
        let xml = defined(&guests, "web1");
        assert!(
            xml.contains("/web1.qcow2") && !xml.contains("/web2"),
            "{xml}"
        );
        assert!(guests.site.users("web2").await.is_empty());
    }
    let started = guests.done("start_domain", json!({"domain": "web1"})).await;
    assert_eq!(started["state"], "running");
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(record.state, DomainState::Running);
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
}
