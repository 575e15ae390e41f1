//! `virtbus cancel`: asks core to end a job.

use super::control;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::Output,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;

/// Cancel jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
    /// Kill a tool that ignores the request at once
    #[arg(long)]
    force: bool,
    /// Only if it hasn't started
    #[arg(long)]
    only_waiting: bool,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for text in &args.ids {
        let id = jobs::find_id(bus, text).await?;
        let request = json!({"id": id, "force": args.force, "only_waiting": args.only_waiting});
        let answer = control::tell(bus, "virtbus.jobs.cancel", request).await?;
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
        "cancelled" | "cancelling" => Exit::Done,
        "too_late" | "already_started" | "already_finished" => Exit::Conflict,
        _ => Exit::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_too_late_is_a_conflict() {
        assert_eq!(exit_of("cancelling"), Exit::Done);
        assert_eq!(exit_of("too_late"), Exit::Conflict);
        assert_eq!(exit_of("unknown"), Exit::NotFound);
    }
}
