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
    let domains = site.jetstream().get_key_value("domains").await?;
    until("the end of a domain", async || {
        let found = domains.get(domain).await.map_err(|e| e.to_string())?;
        let record: Value = match found {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string())?,
            None => Value::Null,
        };
        if record["state"] == "shutoff" {
            Ok(())
        } else {
            Err(record.to_string())
        }
    })
    .await;
    Ok(())
}
