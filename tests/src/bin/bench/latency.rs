//! How long an idle worker takes to have a published job running.

use crate::{
    bare::{self, BARE, Records, Workers},
    error::Failure,
    events::{BUS, Job, Probe, SUCCEEDED},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use std::time::Duration;

const ROUNDS: u32 = 5;
const PER_ROUND: u32 = 120;
/// Jobs before the first that counts.
const WARM_UP: u32 = 50;
/// How long everything rests between two jobs, so that each meets an idle worker.
const REST: Duration = Duration::from_millis(15);
/// What the bus may take more than bare, in milliseconds.
const BUDGET_P50: f64 = 1.0;
const BUDGET_P99: f64 = 5.0;

/// One way to have a job done.
struct Way {
    probe: Probe,
    all: Samples,
    p50: Samples,
    p99: Samples,
}

impl Way {
    fn new(probe: Probe) -> Self {
        let (all, p50, p99) = Default::default();
        Self {
            probe,
            all,
            p50,
            p99,
        }
    }

    /// One job from idle to its end; milliseconds until it ran, and both records.
    async fn once(&mut self, id: &str) -> Result<(f64, Records), Failure> {
        tokio::time::sleep(REST).await;
        let (took, running) = self.probe.start_one(Job::ping(id)).await?;
        let succeeded = self.probe.until(SUCCEEDED).await?.payload;
        let records = Records { running, succeeded };
        Ok((took.as_secs_f64() * 1e3, records))
    }

    fn end_round(&mut self, round: &Samples) {
        self.all.extend(round);
        self.p50.push(round.median());
        self.p99.push(round.percentile(99));
    }
}

/// The records of a ping, as the bus writes them.
pub(crate) async fn records(site: &Site) -> Result<Records, Failure> {
    let mut bus = Way::new(Probe::new(site.jetstream(), BUS).await?);
    Ok(bus.once("sample").await?.1)
}

pub(crate) async fn run(site: &mut Site) -> Result<Report, Failure> {
    bare::set_up(site.client()).await?;
    let records = records(site).await?;
    let workers = Workers::start(site.another_client().await, 1, &records, None).await?;
    let mut bus = Way::new(Probe::new(site.jetstream(), BUS).await?);
    let mut bare = Way::new(Probe::new(site.jetstream(), BARE).await?);
    for number in 0..WARM_UP {
        bare.once("warm").await?;
        bus.once(&format!("warm-{number}")).await?;
    }
    for round in 0..ROUNDS {
        let (mut of_bare, mut of_bus) = (Samples::default(), Samples::default());
        for number in 0..PER_ROUND {
            let id = format!("idle-{round}-{number}");
            of_bare.push(bare.once(&id).await?.0);
            of_bus.push(bus.once(&id).await?.0);
        }
        bare.end_round(&of_bare);
        bus.end_round(&of_bus);
    }
    workers.stop().await?;
    Ok(report(&bare, &bus))
}

fn report(bare: &Way, bus: &Way) -> Report {
    let mut table = Table::new(&["publish → running, idle", "p50, ms", "p99, ms", "max, ms"]);
    for (name, way) in [("bare", bare), ("bus", bus)] {
        let (p50, p99) = (way.all.median(), way.all.percentile(99));
        table.row(vec![
            name.to_owned(),
            format!("{p50:.2} ({:.2}–{:.2})", way.p50.min(), way.p50.max()),
            format!("{p99:.2} ({:.2}–{:.2})", way.p99.min(), way.p99.max()),
            format!("{:.2}", way.all.max()),
        ]);
    }
    let both = |percent| (bus.all.percentile(percent), bare.all.percentile(percent));
    let ratio = |(ours, bare): (f64, f64)| format!("{:.2}", ours / bare);
    table.row(vec![
        "bus / bare".to_owned(),
        ratio(both(50)),
        ratio(both(99)),
        ratio(both(100)),
    ]);
    let more = |percent, budget: f64| {
        let (ours, bare) = both(percent);
        let verdict = if ours - bare <= budget {
            "met"
        } else {
            "missed"
        };
        format!("{:+.2} (budget +{budget}: {verdict})", ours - bare)
    };
    table.row(vec![
        "bus − bare".to_owned(),
        more(50, BUDGET_P50),
        more(99, BUDGET_P99),
        String::new(),
    ]);
    let mut report = Report::default();
    report.table(&table);
    report.text(format!(
        "{} jobs each way, one by one, bare and bus in turns, {} ms of rest before each; in \
         brackets the extremes of {ROUNDS} rounds.",
        bus.all.len(),
        REST.as_millis(),
    ));
    report
}
