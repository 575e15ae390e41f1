//! Chains of disks under a domain: new disks on top while it runs.

use crate::guests::{Guests, payload};
use serde_json::json;
use virtbus_wire::catalog::DiskState;

#[tokio::test]
async fn a_domain_goes_on_with_new_disks_and_its_old_ones_are_frozen() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    let low = "hypervisor.hv-test.low";
    let overlays = json!({"domain": "web1", "overlays": {"web1": "web1-a"}});
    for _ in 0..2 {
        let done = guests
            .site
            .done(low, payload("create_snapshot", &overlays))
            .await;
        assert_eq!(done, json!({"overlays": {"web1": "web1-a"}}));
    }
    let xml = guests.libvirt.virsh(&["dumpxml", "web1"]).stdout;
    let xml = String::from_utf8(xml).unwrap();
    assert!(xml.contains("/disks/web1-a.qcow2"), "{xml}");
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(record.disks[0].as_str(), "web1-a");
    assert!(record.xml.unwrap().contains("volume='web1-a'"));
    let (old, new) = (
        guests.disk_record("web1").await,
        guests.disk_record("web1-a").await,
    );
    assert_eq!(old.children[0].as_str(), "web1-a");
    assert_eq!(
        (new.state, new.backing.unwrap().as_str()),
        (DiskState::Ready, "web1")
    );
    assert_eq!(guests.site.users("web1").await, ["web1 Shared"]);
    assert_eq!(guests.site.users("web1-a").await, ["web1 Exclusive"]);

    // It names what is below by its bare name, so the pool's folder can be copied.
    let file = guests.file("web1-a.qcow2");
    let info = std::process::Command::new("qemu-img")
        .args(["info", "-U"])
        .arg(file)
        .output();
    let info = String::from_utf8(info.unwrap().stdout).unwrap();
    assert!(info.contains("backing file: web1.qcow2"), "{info}");

    // Off, and on again, and once more while it's off.
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy.clone()).await;
    assert!(guests.site.users("web1").await.is_empty());
    let more = json!({"domain": "web1", "overlays": {"web1-a": "web1-b"}});
    guests
        .site
        .done(low, payload("create_snapshot", &more))
        .await;
    assert!(guests.site.users("web1-b").await.is_empty());
    guests.done("start_domain", json!({"domain": "web1"})).await;
    assert_eq!(guests.site.users("web1-b").await, ["web1 Exclusive"]);
    assert_eq!(guests.site.users("web1").await, ["web1 Shared"]);

    // An id that is taken, a disk that the domain doesn't have.
    for (overlays, code) in [
        (json!({"web1-b": "web1"}), "disk.exists"),
        (json!({"web1": "web1-c"}), "domain.wrong_state"),
    ] {
        let params = json!({"domain": "web1", "overlays": overlays});
        let error = guests
            .site
            .refused(low, payload("create_snapshot", &params))
            .await;
        assert_eq!(error.code.as_str(), code);
    }
    assert!(
        guests
            .site
            .disks()
            .get_latest("web1-c")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_running_domains_disk_goes_into_the_one_below_and_stays_empty() {
    let guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    // Something that only the overlay has: the boot sector's neighbour.
    let file = guests.file("web1.qcow2");
    let wrote = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 0x5a 512k 64k"])
        .arg(&file)
        .output();
    assert!(wrote.unwrap().status.success());
    let queue = "hypervisor.default.default";
    guests.site.done(queue, guests.start_of("web1")).await;
    let commit = json!({"domain": "web1", "disk": "web1"});
    for _ in 0..2 {
        let done = guests.done("commit", commit.clone()).await;
        assert_eq!(done, json!({"backing": "base"}));
    }
    let xml = String::from_utf8(guests.libvirt.virsh(&["dumpxml", "web1"]).stdout).unwrap();
    assert!(
        xml.contains("<source file='") && xml.contains("/disks/web1.qcow2"),
        "{xml}"
    );
    let disk = guests.disk_record("web1").await;
    assert_eq!(disk.state, DiskState::Ready);
    assert_eq!(guests.site.users("web1").await, ["web1 Exclusive"]);
    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    // The content is below now, and nothing is left above.
    let read = |name: &str| {
        let file = guests.file(name);
        let said = std::process::Command::new("qemu-io")
            .args(["-r", "-f", "qcow2", "-c", "read -P 0x5a 512k 64k"])
            .arg(file)
            .output();
        String::from_utf8(said.unwrap().stdout).unwrap()
    };
    for name in ["base.qcow2", "web1.qcow2"] {
        let said = read(name);
        assert!(
            said.contains("read 65536/65536") && !said.contains("failed"),
            "{name}: {said}"
        );
    }
    guests.overlay("web2", "base").await;
    guests.done("start_domain", json!({"domain": "web1"})).await;
    let error = guests
        .site
        .refused("hypervisor.hv-test.default", payload("commit", &commit))
        .await;
    assert_eq!(error.code.as_str(), "disk.has_children");
    let error = guests.site.refused(
        "hypervisor.hv-test.default",
        payload("commit", &json!({"domain": "web1", "disk": "base"})),
    );
    assert_eq!(error.await.code.as_str(), "domain.wrong_state");
}

#[tokio::test]
async fn a_chain_becomes_no_longer_than_a_domain_can_start_with() {
    let guests = Guests::start().await;
    guests.disk("c1").await;
    let names: Vec<String> = (1..32).map(|number| format!("c{number}")).collect();
    for pair in names.windows(2) {
        guests.overlay(&pair[1], &pair[0]).await;
    }
    guests.overlay("web1", "c31").await;
    let queue = "hypervisor.default.default";
    guests.site.done(queue, guests.start_of("web1")).await;
    let overlays = json!({"domain": "web1", "overlays": {"web1": "web1-a"}});
    let job = payload("create_snapshot", &overlays);
    let error = guests.site.refused("hypervisor.hv-test.low", job).await;
    assert_eq!(error.code.as_str(), "pool.unsupported");
    assert_eq!(error.detail["chain_max"], 32);
    let disks = guests.site.disks();
    assert!(disks.get_latest("web1-a").await.unwrap().is_none());
}
