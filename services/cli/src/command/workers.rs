//! `virtbus workers`: who is there to do work.

use crate::{
    exit::{Exit, Failure},
    output::{Cell, Output, span},
    scan, screen,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, ops::ControlFlow};
use virtbus_bus::Bus;
use virtbus_wire::{Timestamp, WorkerId};

/// The bucket of leases: a worker that is gone is gone from it.
const BUCKET: &str = "workers";

/// List the workers that are alive
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let workers = alive(bus).await?;
    if output.json {
        let workers: Vec<&Value> = workers.values().collect();
        output.value(&json!({"workers": workers}))?;
        return Ok(Exit::Done);
    }
    let now = Timestamp::now();
    let rows: Vec<_> = workers
        .iter()
        .map(|(id, worker)| row(id, worker, now))
        .collect();
    output.table(
        &["WORKER", "CLASS", "POOLS", "BUSY", "SLOTS", "UP", "SEEN"],
        &rows,
    )?;
    Ok(Exit::Done)
}

/// The leases by worker.
///
/// # Errors
/// When the bucket can't be read.
pub(crate) async fn alive(bus: &Bus) -> Result<BTreeMap<String, Value>, Failure> {
    let mut workers = BTreeMap::new();
    scan::newest_first(bus, BUCKET, |stored| {
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

fn row(id: &str, worker: &Value, now: Timestamp) -> Vec<Cell> {
    let field = |name: &str| worker.get(name).unwrap_or(&Value::Null);
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
    ]
}
