//! Commands of people: looked at here, carried out by the core service.

use crate::{app::App, sight::Sight};
use serde::Serialize;
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::{
    Code, JobError, JobId, Record,
    auth::Claims,
    control::{OfJob, Operation, Placed, Refusal, Submission},
    frame::Command,
};

/// The header of an answer that is a refusal.
const REFUSED: &str = "Nats-Service-Error-Code";

/// Carries out a command whose scope the caller has. A job that the caller doesn't see is
/// answered as one that isn't there.
///
/// # Errors
/// What the core service refuses, or that it doesn't answer.
pub(crate) async fn carry_out(
    app: &App,
    command: Command,
    claims: &Claims,
) -> Result<Value, JobError> {
    let (operation, job) = match &command {
        Command::Cancel(cancel) => (Operation::JobsCancel, Some(&cancel.id)),
        Command::Priority(change) => (Operation::JobsPriority, Some(&change.id)),
        Command::Retry(retry) => (Operation::JobsRetry, Some(&retry.id)),
        Command::Pause(_) => (Operation::QueuesPause, None),
        Command::Resume(_) => (Operation::QueuesResume, None),
        Command::Submit(_) => (Operation::JobsSubmit, None),
    };
    if let Some(id) = job
        && !is_seen(app, &Sight::of(claims), id).await?
    {
        return Ok(json!({"outcome": "unknown"}));
    }
    let body = match command {
        Command::Cancel(cancel) => body(&cancel),
        Command::Priority(change) => body(&change),
        Command::Retry(retry) => body(&retry),
        Command::Pause(queue) | Command::Resume(queue) => body(&queue),
        Command::Submit(submission) => body(&on_behalf_of(submission, claims)),
    };
    let mut body = body?;
    // Who it was belongs into the record; core believes it of us.
    body["by"] = claims.sub.as_str().into();
    request(&app.bus, operation, &body).await
}

/// Submitted jobs belong to the token's user, whatever they say themselves.
fn on_behalf_of(mut submission: Submission, claims: &Claims) -> Submission {
    let own = |placed: &mut Placed| {
        placed.job.user = Some(claims.sub.clone());
        placed.job.tenant = claims.tenant.clone();
    };
    match &mut submission {
        Submission::Several { jobs } => jobs.iter_mut().for_each(own),
        Submission::One(job) => own(job),
    }
    submission
}

async fn is_seen(app: &App, sight: &Sight, id: &JobId) -> Result<bool, JobError> {
    let stopping = |_| JobError::new(Code::WorkerShutdown, "the service is stopping");
    if let Some(entry) = app.view.find(id.clone()).await.map_err(stopping)? {
        return Ok(sight.sees_job(&entry.job));
    }
    // Ended long ago: not in the view, but perhaps in the bucket.
    let body = body(&OfJob { id: id.clone() })?;
    match request(&app.bus, Operation::JobsGet, &body).await {
        Ok(record) => {
            let unreadable = |_| JobError::internal("the record can't be read");
            let record: Record = serde_json::from_value(record).map_err(unreadable)?;
            Ok(sight.sees(record.user.as_ref(), record.tenant.as_ref()))
        }
        Err(error) if error.code == Code::JobNotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn body(request: &impl Serialize) -> Result<Value, JobError> {
    serde_json::to_value(request).map_err(|_| JobError::internal("the request has no form in JSON"))
}

async fn request(bus: &Bus, operation: Operation, body: &Value) -> Result<Value, JobError> {
    let answer = bus.control(operation, body.to_string()).await;
    let answer = answer.map_err(|error| {
        tracing::warn!(%error, %operation, "no answer");
        JobError::internal("the core service doesn't answer")
    })?;
    let unreadable = |_| JobError::internal("the core service's answer can't be read");
    let headers = answer.headers.as_ref();
    if headers.is_some_and(|headers| headers.get(REFUSED).is_some()) {
        let refusal: Refusal = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
        return Err(refusal.error);
    }
    serde_json::from_slice(&answer.payload).map_err(unreadable)
}
