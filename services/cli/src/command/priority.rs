//! `virtbus priority`: asks core to move a job that hasn't started.

use super::control;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::Output,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::Priority;

/// Change the priority of jobs that haven't started
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// high, default or low
    #[arg(value_parser = priority)]
    priority: Priority,
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
}

fn priority(text: &str) -> Result<Priority, String> {
    text.parse().map_err(|_| "high, default or low".to_owned())
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for text in &args.ids {
        let id = jobs::find_id(bus, text).await?;
        let request = json!({"id": id, "priority": args.priority});
        let answer = control::tell(bus, "virtbus.jobs.priority", request).await?;
        let outcome = answer.get("outcome").and_then(Value::as_str);
        let outcome = outcome.unwrap_or("unknown").to_owned();
        exit = exit.max(exit_of(&outcome));
        if !output.json {
            output.text(&format!("{id}  {}", outcome.replace('_', " ")))?;
        }
        told.push(json!({"id": id, "outcome": outcome}));
    }
    if output.json {
        output.value(&json!({"jobs": told}))?;
    }
    Ok(exit)
}

fn exit_of(outcome: &str) -> Exit {
    match outcome {
        "changed" => Exit::Done,
        "already_started" | "already_finished" => Exit::Conflict,
        _ => Exit::NotFound,
    }
}
