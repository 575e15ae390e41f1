//! `virtbus workers`: who is there to do work; and to let one take no more.

use super::control;
use crate::{
    exit::{Exit, Failure},
    output::{Cell, Output, Tone, span},
    scan, screen,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, ops::ControlFlow};
use virtbus_bus::Bus;
use virtbus_wire::{
    Timestamp, WorkerId,
    catalog::{DRAIN_PREFIX, QueueRecord},
    control::Operation,
};

/// The bucket of leases: a worker that is gone is gone from it.
const BUCKET: &str = "workers";

/// Those whose lease ran out in the last day.
const LOST: &str = "workers_lost";
/// Where it's written who takes no more jobs.
const QUEUES: &str = "queues";

/// List the workers, or drain one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Let a worker finish what it has and take no more
    Drain(OnWorker),
    /// Let a drained worker take jobs again
    Undrain(OnWorker),
}

#[derive(Debug, clap::Args)]
struct OnWorker {
    /// The worker's id
    worker: WorkerId,
    /// Why, for people
    #[arg(long)]
    reason: Option<String>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    match &args.action {
        None => list(bus, output).await,
        Some(Action::Drain(on)) => change(bus, output, Operation::WorkersDrain, on).await,
        Some(Action::Undrain(on)) => change(bus, output, Operation::WorkersUndrain, on).await,
    }
}

async fn change(
    bus: &Bus,
    output: Output,
    operation: Operation,
    on: &OnWorker,
) -> Result<Exit, Failure> {
    let request = json!({"worker": on.worker, "reason": on.reason});
    control::change(bus, output, operation, request, |answer| {
        let said = match answer.get("drained") {
            Some(Value::Bool(true)) => "takes no more jobs",
            Some(_) | None => "takes jobs",
        };
        format!("{}: {said}", on.worker)
    })
    .await
}

/// A worker as the list shows it.
struct Shown {
    /// Its last beat; none of one that was away for longer than a day.
    beat: Value,
    is_lost: bool,
    drain: Option<QueueRecord>,
}

async fn list(bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let workers = read(bus).await?;
    if output.json {
        let workers: Vec<Value> = workers.iter().map(to_json).collect();
        output.value(&json!({"workers": workers}))?;
        return Ok(Exit::Done);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = workers
        .iter()
        .map(|(id, worker)| row(id, worker, now))
        .collect();
    output.table(
        &[
            "WORKER", "CLASS", "POOLS", "BUSY", "SLOTS", "UP", "SEEN", "",
        ],
        &rows,
    )?;
    Ok(Exit::Done)
}

/// Who is there, who was there in the last day, and who is drained. Read from the buckets: core
/// needn't be there.
async fn read(bus: &Bus) -> Result<BTreeMap<String, Shown>, Failure> {
    let shown = |is_lost| {
        move |(id, beat)| {
            let shown = Shown {
                beat,
                is_lost,
                drain: None,
            };
            (id, shown)
        }
    };
    let lost = beats(bus, LOST).await?.into_iter().map(shown(true));
    let mut workers: BTreeMap<String, Shown> = lost.collect();
    workers.extend(alive(bus).await?.into_iter().map(shown(false)));
    scan::newest_first(bus, QUEUES, |stored| {
        let record = serde_json::from_slice::<QueueRecord>(&stored.payload);
        if let (Some(id), Ok(drain)) = (stored.key.strip_prefix(DRAIN_PREFIX), record)
            && drain.paused
        {
            let worker = workers.entry(id.to_owned()).or_insert_with(|| Shown {
                beat: json!({"worker": id}),
                is_lost: true,
                drain: None,
            });
            worker.drain = Some(drain);
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(workers)
}

fn to_json((_, worker): (&String, &Shown)) -> Value {
    let mut json = worker.beat.clone();
    if worker.is_lost {
        json["lost"] = true.into();
    }
    if let Some(drain) = &worker.drain {
        json["drain"] = json!(drain);
    }
    json
}

/// The leases by worker.
///
/// # Errors
/// When the bucket can't be read.
pub(crate) async fn alive(bus: &Bus) -> Result<BTreeMap<String, Value>, Failure> {
    beats(bus, BUCKET).await
}

async fn beats(bus: &Bus, bucket: &str) -> Result<BTreeMap<String, Value>, Failure> {
    let mut workers = BTreeMap::new();
    scan::newest_first(bus, bucket, |stored| {
        // Leases of other kinds, such as that of the leading core, begin otherwise.
        if stored.key.parse::<WorkerId>().is_ok()
            && let Ok(worker) = serde_json::from_slice(&stored.payload)
        {
            workers.insert(stored.key, worker);
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(workers)
}

fn row(id: &str, worker: &Shown, now: Timestamp) -> Vec<Cell> {
    let field = |name: &str| worker.beat.get(name).unwrap_or(&Value::Null);
    let text = |name: &str| screen::plain(field(name));
    let pools = field("pools").as_array().into_iter().flatten();
    let pools: Vec<&str> = pools.filter_map(Value::as_str).collect();
    let ago = |name: &str| {
        let at: Option<Timestamp> = field(name).as_str().and_then(|text| text.parse().ok());
        at.map_or(String::new(), |at| span(now.since(at)))
    };
    vec![
        id.into(),
        text("class").into(),
        pools.join(",").into(),
        text("busy").into(),
        text("slots").into(),
        ago("started_at").into(),
        ago("at").into(),
        note(worker),
    ]
}

/// What is odd about a worker.
fn note(worker: &Shown) -> Cell {
    let mut words = Vec::new();
    if worker.is_lost {
        words.push("lost".to_owned());
    }
    if let Some(drain) = &worker.drain {
        let by = drain.by.as_ref().map(|by| format!(" by {by}"));
        let reason = drain.reason.as_ref().map(|reason| format!(": {reason}"));
        words.push(format!(
            "drained{}{}",
            by.unwrap_or_default(),
            reason.unwrap_or_default()
        ));
    }
    let tone = match worker.is_lost {
        true => Tone::Bad,
        false => Tone::Plain,
    };
    Cell::new(words.join(", "), tone)
}
