//! A host with a thousand domains that run, of which the catalogue says that they are off.

use crate::{
    error::{Failure, failure},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use futures_util::StreamExt as _;
use serde_json::json;
use std::{fs, time::Duration};
use tokio::time::{Instant, timeout};
use virtbus_wire::Timestamp;

const DOMAINS: u32 = 1_000;
const ROUNDS: u32 = 3;
/// The longest until the next record is true.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn measure(site: &mut Site, report: &mut Report) -> Result<(), Failure> {
    // It would look for the disks' files.
    site.stop("storage").await?;
    let domain = |number| {
        format!(
            "<domain type='test'><name>d{number}</name><memory>8192</memory>\
             <os><type>hvm</type></os></domain>"
        )
    };
    let all: String = (0..DOMAINS).map(domain).collect();
    let file = site.dir().join("node.xml");
    fs::write(&file, format!("<node>{all}</node>"))?;
    let uri = format!("test://{}", file.display());
    let (mut from_start, mut from_first) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        pretend_off(site).await?;
        let mut records = site.client().subscribe("$KV.domains.>").await?;
        site.client().flush().await?;
        let began = Instant::now();
        site.start_again("hypervisor", &[("VIRTBUS__LIBVIRT__URI", uri.clone())])?;
        let (mut true_now, mut first) = (0, None);
        while true_now < DOMAINS {
            let next = timeout(LIMIT, records.next()).await?;
            let next = next.ok_or_else(|| failure("the connection was closed"))?;
            if crate::events::has(&next.payload, br#""state":"running""#) {
                first.get_or_insert_with(Instant::now);
                true_now += 1;
            }
        }
        from_start.push(began.elapsed().as_secs_f64() * 1e3);
        let first = first.map_or(0.0, |first| first.elapsed().as_secs_f64() * 1e3);
        from_first.push(first);
        site.stop("hypervisor").await?;
    }
    let mut table = Table::new(&["1,000 domains, each with a disk, none as recorded", "ms"]);
    for (name, samples) in [
        ("start of the process → every record true", &from_start),
        ("first → last record", &from_first),
    ] {
        table.row(vec![name.to_owned(), samples.spread(0)]);
    }
    report.table(&table);
    report.text(format!(
        "libvirt's trial driver with {DOMAINS} running domains; for each, its disk is held and its \
         record written; {ROUNDS} runs, medians with extremes."
    ));
    Ok(())
}

/// Records of which none is true.
async fn pretend_off(site: &Site) -> Result<(), Failure> {
    let jetstream = site.jetstream();
    let disks = jetstream.get_key_value("disks").await?;
    let domains = jetstream.get_key_value("domains").await?;
    let now = Timestamp::now();
    for number in 0..DOMAINS {
        let disk = json!({"pool": "default", "format": "raw", "virtual_size": 1 << 20,
            "state": "ready", "updated_at": now});
        let id = format!("d{number}");
        disks.put(&id, disk.to_string().into()).await?;
        let domain = json!({"uuid": format!("0199b1c2-0000-7000-8000-{number:012}"),
            "pool": "default", "hypervisor": site.hypervisor(), "state": "shutoff",
            "desired": "shutoff", "disks": [id], "updated_at": now});
        domains.put(&id, domain.to_string().into()).await?;
    }
    Ok(())
}
