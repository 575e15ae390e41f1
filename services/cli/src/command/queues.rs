//! `virtbus queues`: what waits and what runs, per queue.

use super::workers;
use crate::{
    exit::{Exit, Failure},
    output::{Cell, Output, Tone},
};
use futures_util::TryStreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::Class;

/// List the queues
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

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
}

pub(crate) async fn run(_: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
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
                queue,
            });
        }
    }
    Ok(found)
}

fn row(queue: &Queue) -> Vec<Cell> {
    let unserved = queue.workers == 0 && queue.depth > 0;
    let tone = if unserved { Tone::Bad } else { Tone::Plain };
    vec![
        queue.queue.as_str().into(),
        queue.depth.to_string().into(),
        queue.running.to_string().into(),
        Cell::new(queue.workers.to_string(), tone),
        if queue.paused { "paused" } else { "" }.into(),
    ]
}
