//! `virtbus retry`: asks core to run jobs that are over once more, under the same id.

use super::each;
use crate::{
    exit::{Exit, Failure},
    output::Output,
};
use serde_json::json;
use virtbus_bus::Bus;
use virtbus_wire::{JobId, control::Operation};

/// Run jobs that are over once more
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let asked = (Operation::JobsRetry, json!({}));
    each::ask_for_each(&args.ids, (bus, output), asked, exit_of).await
}

/// Asks for a retry, and says what came of it: `queued`, `not_final` or `unknown`.
///
/// # Errors
/// When core doesn't answer, or refuses.
pub(crate) async fn retry(bus: &Bus, id: &JobId) -> Result<String, Failure> {
    each::outcome(bus, Operation::JobsRetry, id, json!({})).await
}

fn exit_of(outcome: &str) -> Exit {
    match outcome {
        "queued" => Exit::Done,
        "not_final" => Exit::Conflict,
        _ => Exit::NotFound,
    }
}
