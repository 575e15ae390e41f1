//! How soon an urgent job starts while many others wait and every slot but the reserved is busy.

use super::{Size, settings};
use crate::{
    error::{Failure, failure},
    events::{HIGH, Job, LOW, Probe, RUNNING, alone_until},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const SAMPLES: u32 = 100;
/// How long everything rests between two urgent jobs.
const REST: Duration = Duration::from_millis(15);
/// How long a purge may stand still.
const LIMIT: Duration = Duration::from_secs(60);
/// How long each of the others keeps its slot.
const BUSY_MS: u64 = 5_000;

pub(super) async fn measure(
    site: &mut Site,
    size: Size,
    report: &mut Report,
) -> Result<(), Failure> {
    let waiting = size.of(100_000, 2_000);
    site.start_again("storage", &settings())?;
    let idle = urgent_ones(site, "idle").await?;
    let mut crowd = Probe::new(site.jetstream(), LOW).await?;
    let job = |number| {
        let params = json!({"sleep_ms": BUSY_MS});
        Job::ping_with(&format!("waits-{number}"), &params, &json!({}))
    };
    crowd.publish_all((0..waiting).map(job)).await?;
    // Each has a record, and the slots are taken.
    crowd.skip(waiting as usize).await?;
    drop(crowd);
    let behind = urgent_ones(site, "behind").await?;
    site.stop("storage").await?;
    purge(site).await?;
    let mut table = Table::new(&["publish → running, `high`", "p50, ms", "p99, ms", "max, ms"]);
    let rows = [
        ("idle".to_owned(), &idle),
        (format!("behind {waiting} on `low`"), &behind),
    ];
    for (name, samples) in rows {
        table.row(vec![
            name,
            format!("{:.2}", samples.median()),
            format!("{:.2}", samples.percentile(99)),
            format!("{:.2}", samples.max()),
        ]);
    }
    report.table(&table);
    report.text(format!(
        "{SAMPLES} jobs one by one, {} ms of rest between; all slots but the reserved one hold \
         jobs that take {} s.",
        REST.as_millis(),
        BUSY_MS / 1_000
    ));
    Ok(())
}

/// Milliseconds from publish to running, one job after the other.
async fn urgent_ones(site: &Site, name: &str) -> Result<Samples, Failure> {
    let client = site.client();
    let mut samples = Samples::default();
    for number in 0..SAMPLES {
        sleep(REST).await;
        let id = format!("{name}-{number}");
        let took = alone_until(client, HIGH, (&id, Job::ping(&id)), RUNNING).await?;
        samples.push(took);
    }
    Ok(samples)
}

/// What still waits would be in the way of what comes next.
async fn purge(site: &Site) -> Result<(), Failure> {
    let stream = site.jetstream().get_stream("STORAGE").await?;
    let question = json!({"queue": LOW.subject, "reason": "bench"}).to_string();
    let mut left = u64::MAX;
    let mut fell = Instant::now();
    loop {
        let now = stream.get_info().await?.state.messages;
        if now == 0 {
            return Ok(());
        } else if now < left {
            (left, fell) = (now, Instant::now());
        } else if fell.elapsed() > LIMIT {
            return Err(failure("a purge doesn't go on"));
        }
        // A purge of very many takes longer than a request may, and goes on without it.
        let client = site.client();
        let asked = client.request("virtbus.queues.purge", question.clone().into());
        if let Err(error) = asked.await {
            eprintln!("bench: purge, {now} left: {error}");
        }
    }
}
