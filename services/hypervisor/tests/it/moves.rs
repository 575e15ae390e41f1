//! Domains that are started on one host after another.

use crate::guests::{Guests, payload, template};
use serde_json::json;
use virtbus_testbed::{Libvirt, until};
use virtbus_wire::{
    StateName,
    catalog::{Desired, HypervisorRecord, HypervisorState},
    task::hypervisor::DomainState,
};

const POOL: &str = "hypervisor.default.default";
const ONE: &str = "hypervisor.hv-test.default";
const TWO: &str = "hypervisor.hv-two.default";

async fn stop(guests: &Guests, domain: &str) {
    let destroy = json!({"domain": domain, "mode": "destroy"});
    let queue = "hypervisor.default.high";
    guests
        .site
        .done(queue, payload("stop_domain", &destroy))
        .await;
}

async fn start(guests: &Guests, queue: &str, domain: &str) -> String {
    let done = guests.site.done(queue, guests.start_of(domain)).await;
    done["hypervisor"].as_str().unwrap().to_owned()
}

fn snapshots(libvirt: &Libvirt, domain: &str) -> String {
    let said = libvirt.virsh(&["snapshot-list", domain, "--name"]);
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}

#[tokio::test]
async fn what_a_host_knows_of_an_earlier_life_of_a_domain_is_in_nobodys_way() {
    let guests = Guests::start().await;
    let (other, _service) = guests.second_host().await;
    guests.disk("web1").await;
    assert_eq!(start(&guests, ONE, "web1").await, "hv-test");
    stop(&guests, "web1").await;
    assert_eq!(start(&guests, TWO, "web1").await, "hv-two");
    stop(&guests, "web1").await;
    let just = json!({"domain": "web1"});
    guests
        .site
        .done(POOL, payload("delete_domain", &just))
        .await;
    assert_eq!(
        (
            guests.libvirt.state("web1").as_str(),
            other.state("web1").as_str()
        ),
        ("shut off", "")
    );

    // Another domain now, although of the same name.
    assert_eq!(start(&guests, ONE, "web1").await, "hv-test");
    stop(&guests, "web1").await;

    // What nobody made over the bus is nobody's to remove.
    let xml = guests.libvirt.pool().join("own.xml");
    let own = "<domain type='qemu'><name>own</name><memory>1024</memory><os><type>hvm</type></os></domain>";
    std::fs::write(&xml, own).unwrap();
    let defined = guests.libvirt.virsh(&["define", xml.to_str().unwrap()]);
    assert!(defined.status.success(), "{defined:?}");
    guests.disk("own").await;
    let error = guests.site.refused(ONE, guests.start_of("own")).await;
    assert_eq!(error.code.as_str(), "conflict");
    assert_eq!(guests.libvirt.state("own"), "shut off");
    assert!(guests.site.domain("own").await.is_none());
}

#[tokio::test]
async fn a_guest_starts_where_its_firmware_and_its_trusted_module_remember_it() {
    let guests = Guests::start().await;
    let (other, _service) = guests.second_host().await;
    for (domain, key, value) in [
        ("efi1", "firmware", json!("efi")),
        ("tpm1", "tpm", json!(true)),
    ] {
        guests.disk(domain).await;
        let mut template = template(&[domain]);
        template[key] = value;
        let params = json!({"domain": domain, "template": template});
        let started = guests
            .site
            .done(TWO, payload("start_domain", &params))
            .await;
        assert_eq!(started["hypervisor"], "hv-two");
        stop(&guests, domain).await;
        // Wherever it's asked for.
        let again = json!({"domain": domain});
        let started = guests.site.done(ONE, payload("start_domain", &again)).await;
        assert_eq!(started["hypervisor"], "hv-two");
        assert_eq!(
            (
                other.state(domain).as_str(),
                guests.libvirt.state(domain).as_str()
            ),
            ("running", "")
        );
    }
}

/// What core writes when somebody gives their word that the second host is off.
async fn fence(guests: &Guests, domain: &str) {
    for disk in [domain] {
        let disks = guests.site.disks();
        let mut entry = disks.get_latest(disk).await.unwrap().unwrap();
        entry.value.in_use_by.clear();
        disks.put(disk, &entry.value).await.unwrap();
    }
    let mut record = guests.site.domain(domain).await.unwrap();
    record.state = DomainState::Shutoff;
    guests.site.domains().put(domain, &record).await.unwrap();
    let host = HypervisorRecord {
        state: HypervisorState::Fenced,
        ..guests.site.host("hv-two").await.unwrap()
    };
    guests.site.hosts().put("hv-two", &host).await.unwrap();
}

#[tokio::test]
async fn a_domain_with_snapshots_on_a_fenced_host_is_stopped_started_and_deleted_by_another() {
    let guests = Guests::start().await;
    let (other, mut service) = guests.second_host().await;
    for domain in ["web1", "web2"] {
        guests.disk(domain).await;
        assert_eq!(start(&guests, TWO, domain).await, "hv-two");
        let of = json!({"domain": domain, "snapshot": "s1"});
        guests.site.done(TWO, payload("create_snapshot", &of)).await;
    }
    service.kill();
    for (_, pid) in other.named_guests() {
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
    }
    for domain in ["web1", "web2"] {
        fence(&guests, domain).await;
    }
    stop(&guests, "web1").await;
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(record.desired, Desired::Shutoff);
    // What only the host itself could do isn't done by another one.
    let of = json!({"domain": "web1", "snapshot": "s1"});
    let job = payload("delete_snapshot", &of);
    let id = guests.site.publish(POOL, job).await;
    assert_eq!(
        guests.site.code_of_wait(&id).await,
        "hypervisor.unreachable"
    );
    assert_eq!(guests.disk_record("web1").await.snapshots.len(), 1);

    let just = json!({"domain": "web1"});
    let started = guests.site.done(POOL, payload("start_domain", &just)).await;
    assert_eq!(started["hypervisor"], "hv-test");
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    let gone = json!({"domain": "web2"});
    guests
        .site
        .done(POOL, payload("delete_domain", &gone))
        .await;
    assert!(guests.site.domain("web2").await.is_none());

    // The host comes back, and what it knew of the domain is an earlier life's.
    stop(&guests, "web1").await;
    assert_eq!(snapshots(&other, "web1"), "s1");
    let mut service = guests.second_service(&other);
    until("readiness", async || service.ready().await).await;
    let host = guests.site.host("hv-two").await.unwrap();
    assert_eq!(host.state, HypervisorState::Up);
    assert_eq!(start(&guests, TWO, "web1").await, "hv-two");
    assert_eq!(snapshots(&other, "web1"), "");
    assert!(
        guests
            .site
            .domain("web1")
            .await
            .unwrap()
            .snapshots
            .is_empty()
    );
    let record = guests.site.record(&id).await.unwrap();
    assert_eq!(record.state.name(), StateName::Waiting);
}
