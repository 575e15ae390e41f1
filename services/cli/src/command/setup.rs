//! `virtbus setup`: streams, buckets and consumers as the files under `nats/` say.

use super::pools;
use crate::{
    exit::{Exit, Failure},
    output::Output,
};
use std::collections::BTreeSet;
use virtbus_bus::{
    Bus,
    topology::{self, Mode, Outcome, Report, Wanted},
};
use virtbus_wire::{Label, Queue};

/// Create or update streams, buckets and consumers; doing it again changes nothing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Copies of each stream and bucket in a cluster: 1, 3 or 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: Option<u8>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    if args.replicas.is_some_and(|copies| copies % 2 == 0) {
        return Err(Failure::usage("--replicas must be 1, 3 or 5"));
    }
    let mode = if args.dry_run {
        Mode::DryRun
    } else {
        Mode::Apply
    };
    let wanted = Wanted {
        replicas: args.replicas,
        queues: registered_queues(bus).await?,
    };
    let report = topology::apply(bus.jetstream(), &wanted, mode).await?;
    show(&report, output)?;
    let refused = report.refused().count();
    if refused == 0 {
        return Ok(Exit::Done);
    }
    let mut failure = Failure::failed(format!("{refused} can't be made as they should be"));
    failure.code = "refused".to_owned();
    Err(failure.hint("the report above names each, and why"))
}

fn show(report: &Report, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.value(report);
    }
    let same = report.items.len() - report.drifted().count();
    let kept = |item: &&topology::Item| item.outcome != Outcome::Same || !item.changes.is_empty();
    let told = Report {
        dry_run: report.dry_run,
        items: report.items.iter().filter(kept).cloned().collect(),
    };
    if !told.items.is_empty() {
        output.text(told.to_string().trim_end())?;
    }
    output.text(&format!("{same} of {} as wanted", report.items.len()))
}

/// The queues of what is registered: core made their consumers, and a missing one is made again.
pub(crate) async fn registered_queues(bus: &Bus) -> Result<Vec<Queue>, Failure> {
    let mut names: BTreeSet<Label> = BTreeSet::new();
    let mut queues = Vec::new();
    for pool in pools::names(bus, "pools").await? {
        queues.extend(topology::queues_of_pool(&pool));
        names.insert(pool);
    }
    for host in pools::names(bus, "hypervisors").await? {
        if names.insert(host.clone()) {
            queues.extend(topology::queues_of_host(&host));
        }
    }
    Ok(queues)
}
