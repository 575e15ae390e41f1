//! `virtbus queues`: what waits and what runs, per queue; and to pause, resume and purge one.

use super::{control, workers};
use crate::{
    exit::{Exit, Failure},
    output::{Cell, Output, Tone},
};
use futures_util::TryStreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use virtbus_bus::{Bucket, Bus};
use virtbus_wire::{Class, catalog::QueueRecord, control::Operation};

/// List the queues, or pause, resume or purge one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Leave a queue's jobs where they are
    Pause(OnQueue),
    /// Let a paused queue go on
    Resume(OnQueue),
    /// Cancel the jobs of a queue that nobody took
    Purge(OnQueue),
}

#[derive(Debug, clap::Args)]
struct OnQueue {
    /// The subject of the queue, such as storage.default.low
    queue: virtbus_wire::Queue,
    /// Why, for people
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Queue {
    queue: String,
    /// Jobs nobody took.
    depth: u64,
    /// Jobs that somebody took and didn't finish.
    running: usize,
    /// Workers that take from it.
    workers: usize,
    paused: bool,
    /// Who paused it, why and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<QueueRecord>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    match &args.action {
        None => list(bus, output).await,
        Some(Action::Pause(on)) => change(bus, output, Operation::QueuesPause, on).await,
        Some(Action::Resume(on)) => change(bus, output, Operation::QueuesResume, on).await,
        Some(Action::Purge(on)) => change(bus, output, Operation::QueuesPurge, on).await,
    }
}

async fn change(
    bus: &Bus,
    output: Output,
    operation: Operation,
    on: &OnQueue,
) -> Result<Exit, Failure> {
    let request = json!({"queue": on.queue, "reason": on.reason});
    control::change(bus, output, operation, request, |answer| {
        let said = match (answer.get("cancelled"), answer.get("paused")) {
            (Some(count), _) => format!("{count} jobs cancelled"),
            (None, Some(Value::Bool(true))) => "paused".to_owned(),
            (None, _) => "goes on".to_owned(),
        };
        format!("{}: {said}", on.queue)
    })
    .await
}

async fn list(bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let mut queues = read(bus).await?;
    queues.sort_by(|one, other| one.queue.cmp(&other.queue));
    if output.json {
        output.value(&json!({"queues": queues}))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = queues.iter().map(row).collect();
    output.table(&["QUEUE", "WAITING", "RUNNING", "WORKERS", ""], &rows)?;
    Ok(Exit::Done)
}

/// The consumers as the server sees them: core needn't be there.
async fn read(bus: &Bus) -> Result<Vec<Queue>, Failure> {
    let leases = workers::alive(bus).await?;
    let takers = |queue: &str| {
        let takes = |worker: &&Value| {
            let queues = worker.get("queues").and_then(Value::as_array);
            queues.is_some_and(|queues| queues.iter().any(|name| name == queue))
        };
        leases.values().filter(takes).count()
    };
    let mut pauses = pauses(bus).await?;
    let mut found = Vec::new();
    for class in Class::ALL {
        let name = class.stream();
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("the stream {name} can't be read: {error}"))
                .hint("`virtbus setup` makes the streams")
        };
        let stream = bus.jetstream().get_stream_no_info(name).await;
        let stream = stream.map_err(|error| failed(&error))?;
        let mut consumers = stream.consumers();
        while let Some(info) = consumers.try_next().await.map_err(|error| failed(&error))? {
            let queue = info.config.filter_subject;
            found.push(Queue {
                depth: info.num_pending,
                running: info.num_ack_pending,
                workers: takers(&queue),
                paused: info.paused,
                pause: pauses.remove(&queue).filter(|_| info.paused),
                queue,
            });
        }
    }
    Ok(found)
}

/// What is known of the pauses, by the queue's subject. A queue may be paused without: with the
/// nats CLI.
async fn pauses(bus: &Bus) -> Result<HashMap<String, QueueRecord>, Failure> {
    let records: Bucket<QueueRecord> = Bucket::new(bus, "queues");
    let records = records
        .all()
        .await
        .map_err(|error| Failure::failed(format!("the pauses can't be read: {error}")))?;
    let paused = records.into_iter().filter(|(_, entry)| entry.value.paused);
    Ok(paused.map(|(key, entry)| (key, entry.value)).collect())
}

/// `paused by alice since 2026-11-21T16:30:00Z: the disk is full`, as far as it's known.
fn paused(queue: &Queue) -> String {
    let Some(pause) = &queue.pause else {
        return if queue.paused { "paused" } else { "" }.to_owned();
    };
    let mut text = "paused".to_owned();
    if let Some(by) = &pause.by {
        text += &format!(" by {by}");
    }
    text += &format!(" since {}", pause.at);
    if let Some(reason) = &pause.reason {
        text += &format!(": {reason}");
    }
    text
}

fn row(queue: &Queue) -> Vec<Cell> {
    let unserved = queue.workers == 0 && queue.depth > 0;
    let tone = if unserved { Tone::Bad } else { Tone::Plain };
    vec![
        queue.queue.as_str().into(),
        queue.depth.to_string().into(),
        queue.running.to_string().into(),
        Cell::new(queue.workers.to_string(), tone),
        paused(queue).into(),
    ]
}
