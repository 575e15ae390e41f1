//! What is asked of core for each of several jobs, and what is told of each.

use super::control;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::Output,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::{JobId, control::Operation};

/// Asks for one job, whose id joins `request`, and says what came of it.
///
/// # Errors
/// When core doesn't answer, or refuses.
pub(crate) async fn outcome(
    bus: &Bus,
    operation: Operation,
    id: &JobId,
    mut request: Value,
) -> Result<String, Failure> {
    request["id"] = json!(id);
    let answer = control::tell(bus, operation, request).await?;
    let outcome = answer.get("outcome").and_then(Value::as_str);
    Ok(outcome.unwrap_or("unknown").to_owned())
}

/// Asks for one job after the other and tells each outcome; the gravest is the program's.
///
/// # Errors
/// At the first job that isn't found or of which core gives no answer.
pub(crate) async fn ask_for_each(
    texts: &[String],
    (bus, output): (&Bus, Output),
    (operation, request): (Operation, Value),
    exit_of: fn(&str) -> Exit,
) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for text in texts {
        let id = jobs::find_id(bus, text).await?;
        let outcome = outcome(bus, operation, &id, request.clone()).await?;
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
