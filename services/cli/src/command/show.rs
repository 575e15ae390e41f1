//! `virtbus show`: one job's record.

use crate::{
    exit::{Exit, Failure},
    jobs,
    output::{Cell, Output, Tone},
    screen,
};
use virtbus_bus::Bus;
use virtbus_wire::{Record, record::Moment};

/// Show a job
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job: its id, at least 8 characters of its beginning or end, or `last`
    id: String,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let entry = jobs::find(bus, &args.id).await?;
    if output.json {
        output.value(&entry.value)?;
    } else {
        output.fields(&fields(&entry.value))?;
        output.text("")?;
        output.text("timeline")?;
        let rows: Vec<_> = entry.value.timeline.iter().map(moment).collect();
        output.table(&["AT", "STATE", "WORKER", "ATTEMPT", "CODE"], &rows)?;
    }
    Ok(Exit::Done)
}

fn fields(record: &Record) -> Vec<(&'static str, Cell)> {
    let owner = record
        .state
        .hold()
        .map(|hold| hold.owner.worker.to_string());
    let maybe = |text: Option<String>| text.unwrap_or_default();
    let lost = (record.lost > 0).then(|| format!("{} claims, before its work", record.lost));
    let mut fields: Vec<(&'static str, Cell)> = vec![
        ("job", record.id.as_str().into()),
        ("task", record.task.as_str().into()),
        ("queue", record.queue.to_string().into()),
        ("state", Cell::state(record.state.name())),
        ("", screen::describe(record).into()),
        ("params", record.params.to_string().into()),
        ("objects", record.objects.join(" ").into()),
        ("worker", maybe(owner).into()),
        (
            "user",
            maybe(record.user.as_ref().map(ToString::to_string)).into(),
        ),
        (
            "tenant",
            maybe(record.tenant.as_ref().map(ToString::to_string)).into(),
        ),
        ("labels", pairs(record).into()),
        ("reason", maybe(record.reason.clone()).into()),
        ("after", after(record).into()),
        (
            "attempt",
            format!("{} ({} left)", record.attempt, record.tries_left).into(),
        ),
        ("lost", maybe(lost).into()),
        (
            "submitted",
            Cell::new(record.submitted_at.to_string(), Tone::Faint),
        ),
    ];
    fields.retain(|(_, cell)| !cell.is_empty());
    fields
}

fn pairs(record: &Record) -> String {
    let pairs = record.labels.iter();
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join(" ")
}

fn after(record: &Record) -> String {
    let after: Vec<&str> = record
        .after
        .iter()
        .map(|after| after.job.as_str())
        .collect();
    after.join(" ")
}

fn moment(moment: &Moment) -> Vec<Cell> {
    let text = |value: Option<String>| Cell::from(value.unwrap_or_default());
    vec![
        Cell::new(moment.at.to_string(), Tone::Faint),
        Cell::state(moment.state),
        text(moment.worker.as_ref().map(ToString::to_string)),
        text(moment.attempt.map(|attempt| attempt.to_string())),
        text(moment.code.map(|code| code.to_string())),
    ]
}
