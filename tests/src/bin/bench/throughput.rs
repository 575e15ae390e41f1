//! How many pings one worker process works off in a second.

use crate::{
    bare::{self, BARE, Records, Workers},
    error::Failure,
    events::{BUS, Job, Probe},
    latency,
    report::{Report, Table},
    site::Site,
    stats::Samples,
};

/// Slots of the worker, and jobs of one run: about a second's worth.
const RUNS: [(u32, u32); 4] = [(1, 1_000), (4, 2_000), (16, 4_000), (64, 6_000)];
const REPEATS: u32 = 3;
/// The least share of the bare rate.
const BUDGET: f64 = 0.9;

/// Whether core registers the jobs before the worker sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    Stopped,
    Running,
}

/// What the bare path does between claim and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    None,
    /// As a ping of the storage service: makes, renames and unlinks a file in the pool.
    File,
}

/// Everything a run needs.
struct Ground<'a> {
    site: &'a mut Site,
    records: Records,
    bus: Probe,
    bare: Probe,
}

pub(crate) async fn run(site: &mut Site) -> Result<Report, Failure> {
    bare::set_up(site.client()).await?;
    let records = latency::records(site).await?;
    // What only looks on would take its share of the cores.
    for service in ["feedback", "hypervisor", "storage", "core"] {
        site.stop(service).await?;
    }
    let bus = Probe::new(site.jetstream(), BUS).await?;
    let bare = Probe::new(site.jetstream(), BARE).await?;
    let mut ground = Ground {
        site,
        records,
        bus,
        bare,
    };
    let mut report = Report::default();
    let stopped = ground.compare(Core::Stopped).await?;
    report.table(&stopped);
    ground.site.start_again("core", &[])?;
    let running = ground.compare(Core::Running).await?;
    report.table(&running);
    report.text(format!(
        "Backlogs of {} jobs for {} slots, from the first event to the end of the last job; \
         {REPEATS} runs, bare and bus in turns, medians with extremes; the ratio is that of \
         neighbouring runs, the budget at least {BUDGET} \
         of bare. A storage ping makes, renames and unlinks a file in the pool; `bare + file` does so too.",
        list(RUNS.map(|(_, jobs)| jobs)),
        list(RUNS.map(|(slots, _)| slots)),
    ));
    Ok(report)
}

fn list(numbers: [u32; RUNS.len()]) -> String {
    numbers.map(|number| number.to_string()).join(", ")
}

impl Ground<'_> {
    async fn compare(&mut self, core: Core) -> Result<Table, Failure> {
        let head = match core {
            Core::Stopped => "slots, core stopped",
            Core::Running => "slots, core running (has registered all)",
        };
        let mut table = Table::new(&[
            head,
            "bare, jobs/s",
            "bare + file, jobs/s",
            "bus, jobs/s",
            "bus / bare",
            "bus / (bare + file)",
            "budget",
        ]);
        for (slots, jobs) in RUNS {
            let [mut bare, mut filing, mut bus] = [(); 3].map(|()| Samples::default());
            for repeat in 0..REPEATS {
                bare.push(self.bare(slots, jobs, Work::None).await?);
                filing.push(self.bare(slots, jobs, Work::File).await?);
                let name = format!("{core:?}-{slots}-{repeat}");
                bus.push(self.bus(core, slots, jobs, &name).await?);
            }
            let (ratio, like) = (bus.over(&bare), bus.over(&filing));
            let met = ratio.median() >= BUDGET;
            table.row(vec![
                slots.to_string(),
                bare.spread(0),
                filing.spread(0),
                bus.spread(0),
                ratio.spread(2),
                like.spread(2),
                if met { "met" } else { "missed" }.to_owned(),
            ]);
        }
        Ok(table)
    }

    async fn bare(&mut self, slots: u32, jobs: u32, work: Work) -> Result<f64, Failure> {
        let client = self.site.another_client().await;
        let backlog = (0..jobs).map(|number| Job::ping(&format!("bare-{slots}-{number}")));
        self.bare.publish_all(backlog).await?;
        let disks = self.site.pool_root().join("disks");
        let folder = (work == Work::File).then_some(disks.as_path());
        let workers = Workers::start(client, slots, &self.records, folder).await?;
        let pace = self.bare.pace(jobs).await?;
        workers.stop().await?;
        Ok(pace)
    }

    async fn bus(&mut self, core: Core, slots: u32, jobs: u32, name: &str) -> Result<f64, Failure> {
        let backlog = (0..jobs).map(|number| Job::ping(&format!("{name}-{number}")));
        self.bus.publish_all(backlog).await?;
        if core == Core::Running {
            // One event for each record that core makes.
            self.bus.skip(jobs as usize).await?;
        }
        let settings = [
            ("VIRTBUS__WORK__SLOTS", slots.to_string()),
            ("VIRTBUS__WORK__RESERVED_HIGH", "0".to_owned()),
            ("VIRTBUS__WORK__LONG_MAX", "1".to_owned()),
        ];
        self.site.start_again("storage", &settings)?;
        let pace = self.bus.pace(jobs).await?;
        self.site.stop("storage").await?;
        Ok(pace)
    }
}
