//! `virtbus.jobs.explain`.

use super::{
    Failed, jobs,
    lines::{self, Waits},
    messages,
};
use crate::{consumers::state, service::Stores};
use serde_json::{Map, Value, json};
use virtbus_bus::BusError;
use virtbus_wire::{
    JobState, Priority, Queue, Record, Timestamp,
    catalog::QueueRecord,
    control::{Explain, Explained, Why},
    row::RowWaiting,
    state::{Ended, Hold, WaitReason},
};

/// What was read about a job's queue, and about the lock that it waits for.
#[derive(Debug, Default)]
struct Line {
    /// Its pause, if it's paused.
    pause: Option<QueueRecord>,
    /// Workers that serve it.
    workers: u32,
    /// How many are before the job, where that can be told.
    ahead: Option<u64>,
    /// What it waits for by now, if it's parked.
    waits: Option<Waits>,
}

/// Why a job is where it is.
pub(super) async fn explain(stores: &Stores, asked: Explain) -> Result<Explained, Failed> {
    let found = jobs::find(stores, &asked.id).await?;
    let job = found.ok_or_else(|| jobs::not_found(&asked.id))?.value;
    let mut line = match job.queue.queue() {
        Some(queue) => line(stores, &job, queue).await?,
        None => Line::default(),
    };
    if let JobState::Waiting(waiting) = &job.state {
        line.waits = Some(lines::now(stores, &job, &waiting.on).await?);
    }
    Ok(explained(&job, line, stores.bus.now()))
}

async fn line(stores: &Stores, job: &Record, queue: &Queue) -> Result<Line, BusError> {
    let pause = stores.catalogue.queues.get(&queue.subject()).await?;
    let workers = stores.catalogue.alive().await?;
    let serving = workers
        .iter()
        .filter(|beat| !beat.draining && beat.queues.contains(queue));
    let ahead = match &job.state {
        JobState::Queued => ahead(stores, job, queue).await?,
        JobState::Waiting(_) | JobState::Running(_) | JobState::Cancelling(_) => None,
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => None,
    };
    Ok(Line {
        pause: pause
            .map(|entry| entry.value)
            .filter(|record| record.paused),
        workers: u32::try_from(serving.count()).unwrap_or(u32::MAX),
        ahead,
        waits: None,
    })
}

/// How many jobs nobody took yet come before this one: those of its queue that were published
/// earlier, and all that are more urgent.
async fn ahead(stores: &Stores, job: &Record, queue: &Queue) -> Result<Option<u64>, BusError> {
    let Some(message) = messages::find(stores, job).await? else {
        return Ok(None);
    };
    let Some(consumer) = state::one(stores, queue).await? else {
        return Ok(None);
    };
    let (stream, subject) = (queue.stream(), queue.subject());
    let first = consumer.ack_floor.stream_seq + 1;
    let all = stores.bus.count_from(stream, &subject, first).await?;
    let from_it = stores.bus.count_from(stream, &subject, message.seq).await?;
    let earlier = all.saturating_sub(from_it);
    // Those that somebody has are not in line any more.
    let mut ahead = earlier.saturating_sub(consumer.num_ack_pending);
    let urgent = Priority::ALL
        .into_iter()
        .filter(|other| *other < queue.priority());
    for queue in urgent.filter_map(|priority| queue.with_priority(priority)) {
        let consumer = state::one(stores, &queue).await?;
        ahead = ahead.saturating_add(consumer.map_or(0, |consumer| consumer.num_pending));
    }
    Ok(Some(ahead))
}

/// Puts what was read into words.
fn explained(job: &Record, line: Line, now: Timestamp) -> Explained {
    let mut eta_s = None;
    let mut ahead = None;
    let (why, detail) = match &job.state {
        JobState::Queued => {
            ahead = line.ahead;
            match &line.pause {
                Some(pause) => (Why::Paused, object(json!(pause))),
                None if line.workers == 0 => (Why::NoWorker, Map::new()),
                None => (Why::Position, Map::new()),
            }
        }
        JobState::Waiting(waiting) => {
            if let WaitReason::Time { until, .. } = &waiting.on {
                eta_s = Some(until.since(now).as_secs());
            }
            let mut waiting = waiting.clone();
            if let Some(waits) = line.waits {
                (waiting.on, ahead) = (waits.on, waits.ahead);
            }
            (reason(&waiting.on), RowWaiting::from(&waiting).detail)
        }
        JobState::Running(hold) => {
            eta_s = job.progress.as_ref().and_then(|progress| progress.eta_s);
            (Why::Running, held(job, hold))
        }
        JobState::Cancelling(hold) => (Why::Cancelling, held(job, hold)),
        JobState::Succeeded(ended, _) => (Why::Final, over(ended, None)),
        JobState::Failed(ended, error) => (Why::Final, over(ended, Some(json!(error)))),
        JobState::Cancelled(ended, error) => {
            let error = error.as_ref().map(|error| json!(error));
            (Why::Final, over(ended, error))
        }
    };
    Explained {
        state: job.state.name(),
        why,
        detail,
        queue: job.queue.clone(),
        ahead,
        workers: line.workers,
        eta_s,
    }
}

fn reason(on: &WaitReason) -> Why {
    match on {
        WaitReason::Dependency { .. } => Why::Dependency,
        WaitReason::Lock { .. } => Why::Lock,
        WaitReason::Time { .. } => Why::Time,
        WaitReason::Capacity { .. } => Why::Capacity,
        WaitReason::Tenant { .. } => Why::Tenant,
        WaitReason::Transfer { .. } => Why::Transfer,
    }
}

fn held(job: &Record, hold: &Hold) -> Map<String, Value> {
    let mut detail = object(json!({
        "worker": hold.owner.worker,
        "phase": hold.phase,
        "attempt": job.attempt,
        "since": job.timeline.last().map(|moment| moment.at),
    }));
    if job.lost > 0 {
        detail.insert("lost".to_owned(), job.lost.into());
    }
    detail
}

fn over(ended: &Ended, error: Option<Value>) -> Map<String, Value> {
    let mut detail = object(json!({"at": ended.at}));
    if let Some(error) = error {
        detail.insert("error".to_owned(), error);
    }
    detail
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) => Map::new(),
        Value::String(_) | Value::Array(_) => Map::new(),
    }
}

#[cfg(test)]
mod tests;
