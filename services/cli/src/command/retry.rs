//! `virtbus retry`: asks core to run jobs that are over once more, under the same id.

use super::control;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::Output,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::JobId;

/// Run jobs that are over once more
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for text in &args.ids {
        let id = jobs::find_id(bus, text).await?;
        let outcome = retry(bus, &id).await?;
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

/// Asks for a retry, and says what came of it: `queued`, `not_final` or `unknown`.
///
/// # Errors
/// When core doesn't answer, or refuses.
pub(crate) async fn retry(bus: &Bus, id: &JobId) -> Result<String, Failure> {
    let answer = control::tell(bus, "virtbus.jobs.retry", json!({"id": id})).await?;
    let outcome = answer.get("outcome").and_then(Value::as_str);
    Ok(outcome.unwrap_or("unknown").to_owned())
}

fn exit_of(outcome: &str) -> Exit {
    match outcome {
        "queued" => Exit::Done,
        "not_final" => Exit::Conflict,
        _ => Exit::NotFound,
    }
}
