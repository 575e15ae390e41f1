//! `virtbus cancel`: asks core to end a job.

use super::each;
use crate::{
    exit::{Exit, Failure},
    output::Output,
};
use serde_json::json;
use virtbus_bus::Bus;
use virtbus_wire::control::Operation;

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
    let request = json!({"force": args.force, "only_waiting": args.only_waiting});
    let asked = (Operation::JobsCancel, request);
    each::ask_for_each(&args.ids, (bus, output), asked, exit_of).await
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
