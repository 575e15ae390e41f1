//! Crowds that have to wait, and jobs behind them on the same queue that needn't.

use crate::{
    error::Failure,
    events::{Job, LOW, Probe},
    report::{Report, Table},
    scale::Size,
    site::Site,
    stats::Samples,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use virtbus_testbed::{until, within};

/// Jobs that one storage service runs at once here: two of them stay with those that are waited for.
const SLOTS: u32 = 8;
/// The jobs of others.
const OTHERS: u32 = 100;
const REPEATS: u32 = 3;
/// How long the job that a crowd waits for goes on: longer than the measurement.
const HELD_MS: u64 = 600_000;

/// How long a crowd may take to get in line.
const IN_LINE: Duration = Duration::from_secs(300);

/// Jobs that all wait for one.
struct Crowd {
    name: &'static str,
    /// What they have in common.
    common: Value,
    count: u32,
}

pub(crate) async fn run(site: &mut Site, size: Size) -> Result<Report, Failure> {
    for service in ["hypervisor", "storage", "core"] {
        site.stop(service).await?;
    }
    let cap = "VIRTBUS__LIMITS__TENANT_MAX_RUNNING__STORAGE";
    site.start_again("core", &[(cap, "1".to_owned())])?;
    let pools = site.jetstream().get_key_value("pools").await?;
    until("the cap", async || match pools.get("_limits").await {
        Ok(Some(limits)) if limits.windows(11).any(|text| text == br#""storage":1"#) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    site.start_again("storage", &[("VIRTBUS__WORK__SLOTS", SLOTS.to_string())])?;
    let crowds = [
        Crowd {
            name: "for one lock",
            common: json!({"locks": {"exclusive": ["x.one"]}}),
            count: size.of(17_000, 500),
        },
        Crowd {
            name: "of a tenant with a cap of 1",
            common: json!({"tenant": "acme"}),
            count: size.of(50_000, 500),
        },
    ];
    let mut table = Table::new(&[
        "on the same queue",
        "100 others alone, s",
        "published behind them, s",
        "all of these in line, s",
        "others from then on, s",
        "in line / alone",
    ]);
    for crowd in crowds {
        table.row(crowd.measure(site).await?);
    }
    let mut report = Report::default();
    report.table(&table);
    report.text(format!(
        "One storage service with {SLOTS} slots; from the first publish of the {OTHERS} to the end \
         of the last; and from the last publish of the crowd until all of it was parked. Alone and \
         beside a crowd in line: {REPEATS} times, medians with extremes."
    ));
    Ok(report)
}

impl Crowd {
    async fn measure(&self, site: &Site) -> Result<Vec<String>, Failure> {
        let key = self.common.to_string().len();
        let mut probe = Probe::new(site.jetstream(), LOW).await?;
        let alone = repeated(&mut probe, &format!("alone-{key}")).await?;
        let held = json!({"sleep_ms": HELD_MS});
        let holder = Job::ping_with(&format!("held-{key}"), &held, &self.common);
        probe.start_one(holder).await?;
        let stream = site.jetstream().get_stream("STORAGE").await?;
        // Those that crowds wait for stay there.
        let stay = stream.get_info().await?.state.messages;
        let member =
            |number| Job::ping_with(&format!("c-{key}-{number}"), &json!({}), &self.common);
        let crowd = Probe::new(site.jetstream(), LOW).await?;
        crowd.publish_all((0..self.count).map(member)).await?;
        drop(crowd);
        let published = Instant::now();
        let behind = others(&mut probe, &format!("behind-{key}")).await?;
        within(IN_LINE, "the crowd in line", async || {
            match stream.get_info().await {
                Ok(info) if info.state.messages == stay => Ok(()),
                other => Err(format!("{:?}", other.map(|info| info.state.messages))),
            }
        })
        .await;
        let in_line = published.elapsed().as_secs_f64();
        // More was told of the crowd than a subscription keeps for who doesn't read it.
        let mut probe = Probe::new(site.jetstream(), LOW).await?;
        let beside = repeated(&mut probe, &format!("beside-{key}")).await?;
        let pace = f64::from(self.count) / in_line;
        Ok(vec![
            format!("{} {}", self.count, self.name),
            alone.spread(2),
            format!("{behind:.1}"),
            format!("{in_line:.1} ({pace:.0} jobs/s)"),
            beside.spread(2),
            format!("{:.2}", beside.median() / alone.median()),
        ])
    }
}

async fn repeated(probe: &mut Probe, name: &str) -> Result<Samples, Failure> {
    let mut samples = Samples::default();
    for repeat in 0..REPEATS {
        samples.push(others(probe, &format!("{name}-{repeat}")).await?);
    }
    Ok(samples)
}

/// Seconds for jobs of nobody's that need nothing.
async fn others(probe: &mut Probe, name: &str) -> Result<f64, Failure> {
    let prefix = format!("{name}-");
    let jobs = (0..OTHERS).map(|number| Job::ping(&format!("{prefix}{number}")));
    probe.work_off(&prefix, jobs).await
}
