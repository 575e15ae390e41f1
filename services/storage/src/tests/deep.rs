//! Chains as long as they may become, and longer ones that are there.

use super::site::{MIB, Site, code, program};
use serde_json::{Value, json};
use virtbus_wire::{Code, catalog::DiskState};

/// `c1`, and each further one up to this number on top of the one before.
async fn chain(site: &Site, disks: usize) {
    site.filled_disk("c1").await;
    for number in 2..=disks {
        let (disk, backing) = (format!("c{number}"), format!("c{}", number - 1));
        let params = json!({ "disk": disk, "backing": backing });
        site.done(&format!("make-{disk}"), "create_disk", params)
            .await;
    }
}

/// One more on top of `c<below>`, as none of the tasks makes it.
async fn deepen(site: &Site, below: usize) {
    let (disk, backing) = (format!("c{}", below + 1), format!("c{below}"));
    let name = |id: &str| {
        let path = site.path("disks").join(format!("{id}.qcow2"));
        path.to_str().unwrap().to_owned()
    };
    let relative = format!("{backing}.qcow2");
    let args = [
        "create",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        &relative,
        &name(&disk),
    ];
    program("qemu-img", &args);
    let mut record = site.record(&backing).await;
    record.backing = Some(backing.parse().unwrap());
    let disks = &site.store.disks;
    disks.create(&disk.parse().unwrap(), record).await.unwrap();
    site.change(&backing, |record| {
        record.children.push(disk.parse().unwrap());
    })
    .await;
}

#[tokio::test]
async fn nothing_makes_a_chain_longer_than_a_domain_can_start_with() {
    let site = Site::start().await;
    chain(&site, 32).await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d2", "backing": "d1" });
    site.done("make-d2", "create_disk", params).await;
    site.foreign_overlay("x", "c32");
    let before = site.files("disks");
    let refused = async |task: &str, params: Value| {
        let error = site.refused("j", task, params.clone()).await;
        assert_eq!(code(&error), Code::PoolUnsupported, "{task} {params}");
        assert_eq!(error.detail["chain_max"], 32);
        assert_eq!(site.files("disks"), before, "{task} {params}");
    };
    let on_top = json!({ "disk": "n", "backing": "c32" });
    refused("create_disk", on_top).await;
    let overlay = json!({ "disk": "c32", "overlay": "n" });
    refused("create_snapshot", overlay).await;
    let base = json!({ "disk": "c32", "base": "n" });
    refused("create_snapshot", base).await;
    let adopt = json!({ "disk": "n", "format": "qcow2", "file": "x", "backing": "c32" });
    refused("adopt_disk", adopt).await;
    // What is on top of it counts too.
    let rebase = |backing: &str| json!({ "disk": "d1", "backing": backing });
    refused("rebase", rebase("c31")).await;
    site.done("j1", "rebase", rebase("c30")).await;
    assert_eq!(site.state("n").await, None);
    assert_eq!(site.record("c32").await.state, DiskState::Ready);
}

#[tokio::test]
async fn a_disk_that_is_too_deep_can_be_used_made_flat_and_deleted() {
    let site = Site::start().await;
    chain(&site, 32).await;
    for below in 32..36 {
        deepen(&site, below).await;
    }
    let shown = site.content("c1.qcow2", "qcow2");
    let resize = json!({ "disk": "c36", "size": "9MiB" });
    let done = site.done("j1", "resize", resize).await;
    assert_eq!(done["virtual_size"], 9 * MIB);
    let commit = json!({ "disk": "c36", "delete": true });
    site.done("j2", "commit", commit).await;
    site.done("j3", "delete_disk", json!({ "disk": "c35" }))
        .await;
    let flat = json!({ "disk": "c34", "backing": null });
    site.done("j4", "rebase", flat).await;
    assert_eq!(site.content("c34.qcow2", "qcow2"), shown);
}
