//! A start through the bus beside what it asks of libvirt, asked directly.

use super::{STARTS, off, template, unused, virsh::Virsh};
use crate::{
    error::{Failure, failure},
    events::{BUS, Probe},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use serde_json::json;
use std::fs;
use tokio::time::Instant;
use virtbus_testbed::Libvirt;

const ROUNDS: u32 = 15;

pub(super) async fn measure(
    site: &Site,
    libvirt: &Libvirt,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut storage = Probe::new(site.jetstream(), BUS).await?;
    let disk = json!({"disk": "bus", "size": "8MiB"});
    storage.job("bus-disk", "create_disk", disk).await?;
    drop(storage);
    let mut virsh = Virsh::connect(&libvirt.uri()).await?;
    let mut probe = Probe::new(site.jetstream(), STARTS).await?;
    let params = json!({"domain": "bus", "template": template(&["bus"])});
    probe
        .job("bus-first", "start_domain", params.clone())
        .await?;
    // The same domain, with the same disk, under another name: they run in turns.
    let xml = virsh.tell("dumpxml --inactive bus").await?;
    let lines = xml.into_iter().filter(|line| !line.contains("<uuid>"));
    let xml = lines.collect::<Vec<_>>().join("\n");
    let file = site.dir().join("bare.xml");
    fs::write(&file, xml.replace("<name>bus</name>", "<name>bare</name>"))?;
    virsh.tell("destroy bus").await?;
    off(site, "bus").await?;
    let (mut bus, mut bare) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let id = format!("bus-{round}");
        probe.job(&id, "start_domain", params.clone()).await?;
        bus.push(began.elapsed().as_secs_f64() * 1e3);
        virsh.tell("destroy bus").await?;
        off(site, "bus").await?;

        let began = Instant::now();
        virsh
            .tell(&format!("define --validate {}", file.display()))
            .await?;
        virsh.tell("start bare").await?;
        bare.push(began.elapsed().as_secs_f64() * 1e3);
        let state = virsh.tell("domstate bare").await?;
        if !state.iter().any(|line| line.contains("running")) {
            return Err(failure(format!("the bare domain doesn't run: {state:?}")));
        }
        virsh.tell("destroy bare").await?;
        // It was nobody's of the bus, but the service saw that it used the disk.
        unused(site, "bus").await?;
    }
    let mut table = Table::new(&["a domain is started", "ms"]);
    let more = bus.median() - bare.median();
    for (name, text) in [
        (
            "define and start, `virsh` on one connection",
            bare.spread(0),
        ),
        ("`start_domain`, publish → succeeded", bus.spread(0)),
        ("bus / bare", bus.over(&bare).spread(2)),
        ("bus − bare, of the medians", format!("{more:+.0}")),
    ] {
        table.row(vec![name.to_owned(), text]);
    }
    report.table(&table);
    report.text(format!(
        "32 MiB, a disk of 8 MiB, emulated; {ROUNDS} starts each way in turns, medians with extremes."
    ));
    Ok(())
}
