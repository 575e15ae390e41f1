//! Answers that tasks of all classes give in the same way.

use crate::{
    perform::{Assignment, Done, Stop},
    stop::StopSignal,
};
use serde::Serialize;
use std::time::Duration;
use virtbus_wire::{
    Code, JobError,
    task::{Ping, Pong},
};

/// A typed result as a record holds it.
///
/// # Errors
/// `internal` for a value that is no JSON object.
pub fn done(result: &impl Serialize) -> Result<Done, Stop> {
    match serde_json::to_value(result) {
        Ok(serde_json::Value::Object(done)) => Ok(done),
        Ok(_) | Err(_) => Err(JobError::internal("a result that is no object").into()),
    }
}

/// Ends a ping whose service has looked at what it should: it takes as long, and fails, as asked.
///
/// # Errors
/// `tool.failed` when the ping was asked to fail, and when the job is told to stop.
pub async fn pong(
    ping: &Ping,
    job: &Assignment,
    stop: &StopSignal,
    checks: Vec<String>,
) -> Result<Done, Stop> {
    if let Some(millis) = ping.sleep_ms {
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(millis.get())) => {}
            () = stop.asked() => return Err(Stop::Stopped),
        }
    }
    if ping.fail {
        return Err(JobError::new(Code::ToolFailed, "the ping was asked to fail").into());
    }
    done(&Pong {
        worker: job.owner.worker.clone(),
        boot: job.owner.boot,
        checks,
    })
}
