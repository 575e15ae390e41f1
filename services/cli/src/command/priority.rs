//! `virtbus priority`: asks core to move a job that hasn't started.

use super::each;
use crate::{
    exit::{Exit, Failure},
    output::Output,
};
use serde_json::json;
use virtbus_bus::Bus;
use virtbus_wire::{Priority, control::Operation};

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
    let request = json!({"priority": args.priority});
    let asked = (Operation::JobsPriority, request);
    each::ask_for_each(&args.ids, (bus, output), asked, exit_of).await
}

fn exit_of(outcome: &str) -> Exit {
    match outcome {
        "changed" => Exit::Done,
        "already_started" | "already_finished" => Exit::Conflict,
        _ => Exit::NotFound,
    }
}
