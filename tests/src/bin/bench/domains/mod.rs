//! What the bus costs where domains are: a start beside libvirt's own, a host with a thousand
//! domains, and how soon people see what happened behind the bus's back.
//!
//! Starts and ends are those of QEMU's emulation, on a libvirt daemon of this part's own.

mod event;
mod reconcile;
mod start;
mod virsh;

use crate::{error::Failure, events::Lane, report::Report, site::Site};
use serde_json::{Value, json};
use virtbus_testbed::{Libvirt, until};

/// The queue of starts.
const STARTS: Lane = Lane {
    subject: "hypervisor.default.default",
    events: "events.jobs",
};

pub(crate) async fn run(site: &mut Site) -> Result<Report, Failure> {
    let libvirt = Libvirt::start().await;
    site.stop("hypervisor").await?;
    let settings = [
        ("VIRTBUS__LIBVIRT__URI", libvirt.uri()),
        ("VIRTBUS__DOMAINS__ACCELERATOR", "qemu".to_owned()),
    ];
    site.start_again("hypervisor", &settings)?;
    let mut report = Report::default();
    start::measure(site, &libvirt, &mut report).await?;
    event::measure(site, &libvirt, &mut report).await?;
    site.stop("hypervisor").await?;
    drop(libvirt);
    reconcile::measure(site, &mut report).await?;
    Ok(report)
}

/// A domain as small as can be.
fn template(disks: &[&str]) -> Value {
    json!({"memory": "32MiB", "vcpus": 1, "disks": disks, "graphics": "none", "agent": false})
}

/// Until the catalogue says that a domain is off.
async fn off(site: &Site, domain: &str) -> Result<(), Failure> {
    let what = "the end of a domain";
    until_record(site, "domains", (domain, what), |record| {
        record["state"] == "shutoff"
    })
    .await
}

/// Until the catalogue says that no domain uses a disk.
async fn unused(site: &Site, disk: &str) -> Result<(), Failure> {
    let is_unused = |record: &Value| record["in_use_by"].as_array().is_none_or(Vec::is_empty);
    until_record(site, "disks", (disk, "a disk to be free"), is_unused).await
}

async fn until_record(
    site: &Site,
    bucket: &str,
    (key, what): (&str, &str),
    fits: impl Fn(&Value) -> bool,
) -> Result<(), Failure> {
    let bucket = site.jetstream().get_key_value(bucket).await?;
    until(what, async || {
        let found = bucket.get(key).await.map_err(|e| e.to_string())?;
        let record: Value = match found {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string())?,
            None => Value::Null,
        };
        if fits(&record) {
            Ok(())
        } else {
            Err(record.to_string())
        }
    })
    .await;
    Ok(())
}
