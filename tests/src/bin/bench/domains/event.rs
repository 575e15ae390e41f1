//! From what was done to a domain behind the bus's back to what people see.
//!
//! A browser is shown jobs: one that waits for the domain's disk goes on.

use super::{
    STARTS, off, template,
    virsh::{Ends, Virsh},
};
use crate::{
    error::{Failure, failure},
    events::{BUS, Probe},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use virtbus_testbed::Libvirt;
use virtbus_tests::socket::Socket;

const SAMPLES: u32 = 50;
/// The longest until the catalogue knows.
const LIMIT: Duration = Duration::from_secs(60);
/// The subscription on the socket.
const SUB: u64 = 1;

pub(super) async fn measure(
    site: &Site,
    libvirt: &Libvirt,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut storage = Probe::new(site.jetstream(), BUS).await?;
    let params = json!({"disk": "seen", "size": "8MiB"});
    storage.job("seen-disk", "create_disk", params).await?;
    drop(storage);
    let mut virsh = Virsh::connect(&libvirt.uri()).await?;
    let mut ends = Ends::listen(&libvirt.uri())?;
    let (mut socket, _) = Socket::open(site.http(), site.token()).await;
    let sub = json!({"t": "sub", "id": SUB, "filter": {"task": ["check_disk"]}});
    socket.send(&sub).await;
    let mut records = site.client().subscribe("$KV.domains.seen").await?;
    let (mut in_catalogue, mut on_socket) = (Samples::default(), Samples::default());
    let mut started = Samples::default();
    for number in 0..SAMPLES {
        start(site, number).await?;
        let id = format!("waits-{number}");
        let job = json!({"id": id, "task": "check_disk", "params": {"disk": "seen"},
            "if_in_use": "wait"});
        let sent = site.jetstream();
        let sent = sent.publish("storage.default.low", job.to_string().into());
        sent.await?.await?;
        socket.until_job(SUB, &id, "waiting").await;
        let goes_on = |frame: &Value| {
            let rows = frame["jobs"].as_array().into_iter().flatten();
            let mut ours = rows.filter(|row| row["id"] == id.as_str());
            ours.any(|row| row["state"] != "waiting")
        };
        let (ended, told, known, seen) = tokio::join!(
            virsh.tell("destroy seen"),
            ends.next(),
            seen_as(&mut records, "shutoff"),
            async {
                socket.until("a job that goes on", goes_on).await;
                Instant::now()
            },
        );
        ended?;
        let (told, known) = (told?, known?);
        in_catalogue.push(after(told, known));
        on_socket.push(after(told, seen));
        socket.until_job(SUB, &id, "succeeded").await;
        off(site, "seen").await?;

        let (ran, known) = tokio::join!(
            async {
                let ran = virsh.tell("start seen").await;
                ran.map(|_| Instant::now())
            },
            seen_as(&mut records, "running"),
        );
        started.push(after(ran?, known?));
        virsh.tell("destroy seen").await?;
        ends.next().await?;
        seen_as(&mut records, "shutoff").await?;
    }
    let mut table = Table::new(&[
        "`virsh destroy` and `virsh start` behind our back",
        "p50, ms",
        "p99, ms",
        "max, ms",
    ]);
    for (name, samples) in [
        ("event → the domain's record", &in_catalogue),
        (
            "event → a job that waited for its disk goes on, on a websocket",
            &on_socket,
        ),
        ("end of the call to start → the domain's record", &started),
    ] {
        table.row(vec![
            name.to_owned(),
            format!("{:.1}", samples.median()),
            format!("{:.1}", samples.percentile(99)),
            format!("{:.1}", samples.max()),
        ]);
    }
    report.table(&table);
    report.text(format!(
        "From when another client of libvirt has the event; {SAMPLES} times, so that p99 is the \
         longest of them. 0 where the record came before the call was over."
    ));
    Ok(())
}

async fn start(site: &Site, number: u32) -> Result<(), Failure> {
    let mut probe = Probe::new(site.jetstream(), STARTS).await?;
    let params = json!({"domain": "seen", "template": template(&["seen"])});
    probe
        .job(&format!("seen-{number}"), "start_domain", params)
        .await
}

/// When the catalogue's record says that the domain is so, and as it should be.
async fn seen_as(records: &mut Subscriber, state: &str) -> Result<Instant, Failure> {
    loop {
        let next = timeout(LIMIT, records.next()).await?;
        let next = next.ok_or_else(|| failure("the connection was closed"))?;
        let record: Value = serde_json::from_slice(&next.payload)?;
        if record["state"] == state && record["desired"] == state {
            return Ok(Instant::now());
        }
    }
}

/// Milliseconds from one moment to the other; 0 when it came before.
fn after(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}
