//! `virtbus list`: jobs, the last changed first; with `-w` also what happens from now on.

use crate::{
    exit::{Exit, Failure},
    inputs, jobs,
    output::{Cell, Output, Tone, span},
    scan, screen,
};
use futures_util::StreamExt as _;
use serde_json::json;
use std::ops::ControlFlow;
use virtbus_bus::Bus;
use virtbus_wire::{Record, StateName, Timestamp, row::Row};

const HEADS: [&str; 6] = ["ID", "TASK", "QUEUE", "STATE", "AGE", "NOTE"];
/// Widths of columns of lines that come one by one.
const WIDTHS: [usize; 6] = [36, 15, 24, 10, 8, 0];

/// List jobs, the last changed first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only jobs in these states
    #[arg(long, value_delimiter = ',', value_parser = inputs::state)]
    state: Vec<StateName>,
    /// Only jobs of this queue
    #[arg(long, value_name = "SUBJECT")]
    queue: Option<String>,
    /// Only jobs of this task
    #[arg(long)]
    task: Option<String>,
    /// Only jobs of this user
    #[arg(long)]
    user: Option<String>,
    /// Only jobs of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs that work on this, such as disk.d7
    #[arg(long, value_name = "KIND.ID")]
    object: Option<String>,
    /// Only jobs with this label
    #[arg(long, value_name = "NAME=VALUE", value_parser = inputs::pair)]
    label: Vec<(String, String)>,
    /// Only jobs submitted since then: a time, or a length of time ago (2h)
    #[arg(long, value_name = "TIME", value_parser = inputs::past)]
    since: Option<Timestamp>,
    /// At most so many; 0 = all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Go on with each change until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

impl Args {
    fn fits(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let has_label = |(name, value): &(String, String)| record.labels.get(name) == Some(value);
        let objects = &record.objects;
        (self.state.is_empty() || self.state.contains(&record.state.name()))
            && is(&self.queue, Some(&record.queue.to_string()))
            && is(&self.task, Some(&record.task))
            && is(&self.user, record.user.as_ref().map(AsRef::as_ref))
            && is(&self.tenant, record.tenant.as_ref().map(AsRef::as_ref))
            && self
                .object
                .as_ref()
                .is_none_or(|object| objects.contains(object))
            && self.label.iter().all(has_label)
            && self.since.is_none_or(|since| record.submitted_at >= since)
    }
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    if args.watch {
        return follow(args, bus, output).await;
    }
    let (found, _) = read(args, bus, 0).await?;
    show(&found, output)?;
    Ok(Exit::Done)
}

/// First listens, then reads: nothing that happens in between is lost. Revisions only grow, so
/// the last one tells what is new, also after a lost connection.
async fn follow(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let changes = bus.client().subscribe("events.jobs.*").await;
    let mut changes = changes.map_err(|error| Failure::unreachable(error.to_string()))?;
    let mut health = bus.health();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut last = 0;
    let mut is_complete = false;
    loop {
        if !is_complete {
            let (found, newest) = read(args, bus, last).await?;
            for (record, revision) in found.iter().rev() {
                tell(record, *revision, output)?;
            }
            last = last.max(newest);
            is_complete = true;
        }
        let change = tokio::select! {
            Some(change) = changes.next() => change,
            Ok(()) = health.changed() => {
                is_complete = !health.borrow_and_update().connected;
                continue;
            }
            _ = &mut interrupted => return Ok(Exit::Interrupted),
        };
        let revision = change.headers.as_ref().and_then(|headers| {
            let sequence = headers.get("Nats-Sequence")?;
            sequence.as_str().parse::<u64>().ok()
        });
        let Some(revision) = revision.filter(|revision| *revision > last) else {
            continue;
        };
        last = revision;
        if let Ok(record) = serde_json::from_slice::<Record>(&change.payload)
            && args.fits(&record)
        {
            tell(&record, revision, output)?;
        }
    }
}

/// The records that fit, the last changed first, as far as they are newer than `after`; and the
/// newest revision of all.
async fn read(args: &Args, bus: &Bus, after: u64) -> Result<(Vec<(Record, u64)>, u64), Failure> {
    let mut found = Vec::new();
    let mut newest = 0;
    scan::newest_first(bus, jobs::BUCKET, |stored| {
        newest = newest.max(stored.revision);
        // A record of a later version that can't be read is no reason to show none.
        if let Ok(record) = serde_json::from_slice::<Record>(&stored.payload)
            && args.fits(&record)
            && stored.revision > after
        {
            found.push((record, stored.revision));
        }
        let is_enough = args.limit > 0 && found.len() >= args.limit;
        if is_enough || stored.revision <= after {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .await?;
    Ok((found, newest))
}

fn show(found: &[(Record, u64)], output: Output) -> Result<(), Failure> {
    if output.json {
        let rows: Vec<Row> = found
            .iter()
            .map(|(record, revision)| Row::new(record, *revision))
            .collect();
        return output.value(&json!({"jobs": rows}));
    }
    let now = Timestamp::now();
    let rows: Vec<_> = found.iter().map(|(record, _)| cells(record, now)).collect();
    output.table(&HEADS, &rows)
}

fn tell(record: &Record, revision: u64, output: Output) -> Result<(), Failure> {
    if output.json {
        output.json_line(&Row::new(record, revision))
    } else {
        output.row(&cells(record, Timestamp::now()), &WIDTHS)
    }
}

fn cells(record: &Record, now: Timestamp) -> Vec<Cell> {
    let state = record.state.name();
    let note = match state {
        // The queue has a column of its own.
        StateName::Queued => String::new(),
        StateName::Waiting
        | StateName::Running
        | StateName::Cancelling
        | StateName::Succeeded
        | StateName::Failed
        | StateName::Cancelled => screen::describe(record),
    };
    let note = note.strip_prefix(state.as_str()).unwrap_or(&note);
    let note = note.trim_start_matches([':', ' ']);
    vec![
        record.id.as_str().into(),
        record.task.as_str().into(),
        record.queue.to_string().into(),
        Cell::state(state),
        Cell::new(span(now.since(record.submitted_at)), Tone::Faint),
        note.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use virtbus_wire::{Envelope, record::Address};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn fits(line: &str) -> bool {
        let words = std::iter::once("list").chain(line.split_whitespace());
        let job = br#"{"task":"resize","user":"alice","labels":{"class":"m1"}}"#;
        let queue = Address::from("storage.default.low".to_owned());
        let job = Envelope::decode(job).unwrap();
        let mut record = Record::new("j1".parse().unwrap(), job, queue, Timestamp::now());
        record.objects = vec!["disk.d7".to_owned()];
        Line::parse_from(words).args.fits(&record)
    }

    #[test]
    fn filters_all_have_to_fit() {
        assert!(fits(""));
        assert!(fits(
            "--state queued,failed --user alice --object disk.d7 --label class=m1"
        ));
        assert!(fits("--since 1h --task resize --queue storage.default.low"));
        assert!(!fits("--state failed"));
        assert!(!fits("--user bob"));
        assert!(!fits("--tenant acme"));
        assert!(!fits("--label class=m2"));
        assert!(!fits("--object disk.d8"));
    }
}
