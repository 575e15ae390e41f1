//! `virtbus.queues.pause`, `resume`, `purge`.

use super::{Caller, Failed};
use crate::{
    consumers::{self, state},
    registrar::{self, Lying, lying},
    service::{Stores, per_job},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::time::Duration;
use virtbus_bus::{BusError, WriteError, jobs::ChangeError};
use virtbus_wire::{
    Event, JobError, JobState, Queue, Record,
    catalog::QueueRecord,
    control::{OnQueue, Paused, Purged, REASON_BYTES_MAX},
    protocol::{
        arrival::{Arrived, unknown_queue},
        delivery::Message,
    },
    record::Address,
    state::Cancel,
};

/// How often a change that others come between is tried.
const TRIES_MAX: u32 = 8;
/// Jobs purged at the same time.
const AT_ONCE: usize = 32;
/// What is published later than this after a purge began isn't meant: the server's clock and ours
/// are closer than that.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// Pauses a queue, or lets it go on: first its record, then its consumer.
pub(super) async fn pause(
    stores: &Stores,
    asked: OnQueue,
    caller: Caller,
    paused: bool,
) -> Result<Paused, Failed> {
    let OnQueue { queue, reason } = asked;
    check(stores, &queue, reason.as_ref()).await?;
    let ensured = consumers::ensure(stores, [&queue]).await;
    ensured.map_err(|error| {
        tracing::error!(%error, %queue, "its consumer can't be made");
        JobError::internal("the queue's consumer can't be made")
    })?;
    let record = QueueRecord {
        paused,
        by: caller.by,
        reason,
        at: stores.bus.now(),
    };
    write(stores, &queue.subject(), &record).await?;
    state::pause(stores, queue.stream(), &queue.consumer(), paused).await?;
    tracing::info!(%queue, paused, by = record.by, reason = record.reason, "pause");
    Ok(Paused { queue, paused })
}

/// Refuses a reason that is too long.
pub(super) fn check_reason(reason: Option<&String>) -> Result<(), JobError> {
    if reason.is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
        let message = format!("at most {REASON_BYTES_MAX} bytes");
        return Err(JobError::invalid_params("reason", message));
    }
    Ok(())
}

async fn check(stores: &Stores, queue: &Queue, reason: Option<&String>) -> Result<(), Failed> {
    check_reason(reason)?;
    match stores.catalogue.knows(queue).await? {
        true => Ok(()),
        false => Err(unknown_queue(&Address::Queue(queue.clone())).into()),
    }
}

/// Writes a record of bucket `queues`, as often as others come between.
pub(super) async fn write(stores: &Stores, key: &str, record: &QueueRecord) -> Result<(), Failed> {
    let queues = &stores.catalogue.queues;
    for _ in 0..TRIES_MAX {
        let slot = queues.slot(key).await?;
        match queues.update(key, record, slot.revision).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(WriteError::Conflict(key.to_owned()).into())
}

/// Cancels what nobody took yet, job by job: first the record, then the message.
pub(super) async fn purge(
    stores: &Stores,
    asked: OnQueue,
    caller: Caller,
) -> Result<Purged, Failed> {
    let OnQueue { queue, reason } = asked;
    check(stores, &queue, reason.as_ref()).await?;
    let cancel = Cancel {
        by: caller.by,
        at: stores.bus.now(),
        force: false,
        reason,
    };
    let until = cancel.at.after(CLOCKS_APART);
    let (mut cancelled, mut from) = (0_u64, Some(1));
    while let Some(seq) = from {
        let page = stores
            .bus
            .browse(queue.stream(), &queue.subject(), seq)
            .await?;
        let now = stores.bus.now();
        let meant = page.items.iter().filter(|stored| stored.time <= until);
        let found: Vec<Lying<'_>> = meant.filter_map(|stored| lying(stored, now)).collect();
        let is_last = found.len() < page.items.len();
        let each = found
            .into_iter()
            .map(|found| remove(stores, found, &cancel));
        let each: Vec<_> = each.collect();
        let outcomes: Vec<bool> = stream::iter(each)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let count = outcomes.into_iter().filter(|is_gone| *is_gone).count();
        cancelled = cancelled.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        from = page.next.filter(|_| !is_last);
    }
    tracing::info!(%queue, cancelled, by = cancel.by, reason = cancel.reason, "purged");
    Ok(Purged { queue, cancelled })
}

async fn remove(stores: &Stores, found: Lying<'_>, cancel: &Cancel) -> Result<bool, BusError> {
    let removed = per_job(cancel_job(stores, &found, cancel).await)?;
    let is_cancelled = removed.unwrap_or(false);
    if is_cancelled {
        registrar::delete(stores, found.arrival.stream, found.arrival.seq).await?;
    }
    Ok(is_cancelled)
}

/// Whether the job of a message was cancelled here. Who comes between may have given it its record
/// just now, or have taken it: that's looked at again.
async fn cancel_job(stores: &Stores, found: &Lying<'_>, cancel: &Cancel) -> Result<bool, BusError> {
    for _ in 0..TRIES_MAX {
        if let Some(is_cancelled) = try_to_cancel(stores, found, cancel).await? {
            return Ok(is_cancelled);
        }
    }
    Ok(false)
}

/// As [`cancel_job`]; none when somebody came between.
async fn try_to_cancel(
    stores: &Stores,
    found: &Lying<'_>,
    cancel: &Cancel,
) -> Result<Option<bool>, BusError> {
    let entry = stores.jobs.get_latest(found.id()).await?;
    let event = Event::Cancel(cancel.clone());
    let Some(entry) = entry else {
        // Nobody has seen it: its record begins with its end.
        let Arrived::Job {
            record: Ok(record), ..
        } = &found.arrived
        else {
            return Ok(Some(false));
        };
        let Ok(record) = record.apply(event, cancel.at) else {
            return Ok(Some(false));
        };
        return match stores.jobs.create(&record).await {
            Ok(_) => Ok(Some(true)),
            Err(WriteError::Conflict(_)) => Ok(None),
            Err(WriteError::Bus(error)) => Err(error),
        };
    };
    let stands = found
        .message()
        .is_some_and(|message| stands(&entry.value, &message));
    if !stands {
        return Ok(Some(false));
    }
    match stores.jobs.change(&entry, event).await {
        Ok(_) => Ok(Some(true)),
        Err(ChangeError::Illegal(_)) => Ok(Some(false)),
        Err(ChangeError::Write(WriteError::Conflict(_))) => Ok(None),
        Err(ChangeError::Write(WriteError::Bus(error))) => Err(error),
    }
}

/// Whether a message stands for a job that nobody took.
fn stands(job: &Record, message: &Message) -> bool {
    matches!(job.state, JobState::Queued)
        && job.generation == message.generation
        && job.queue.queue() == Some(&message.queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::{BootId, Envelope, Timestamp, state::Owner};

    #[test]
    fn a_purge_touches_only_what_nobody_took() {
        let now = Timestamp::now();
        let low: Queue = "storage.p.low".parse().unwrap();
        let high: Queue = "storage.p.high".parse().unwrap();
        let id = "j".parse().unwrap();
        let queued = Record::new(id, Envelope::bare("ping"), low.clone().into(), now);
        let after = |event| queued.apply(event, now).unwrap();
        let owner = Owner {
            worker: "st-1".parse().unwrap(),
            boot: BootId::default(),
        };
        let claimed = after(Event::Claim {
            owner,
            seq: 1,
            begin: true,
        });
        let published = after(Event::Publish { round: false });
        let moved = after(Event::Move(high));
        let failed = after(Event::Fail(JobError::internal("x")));
        for (job, expected) in [
            (&queued, true),
            (&claimed, false),
            (&published, false),
            (&moved, false),
            (&failed, false),
        ] {
            let message = Message {
                generation: 1,
                queue: low.clone(),
                seq: 1,
            };
            assert_eq!(stands(job, &message), expected, "{:?}", job.state);
        }
    }
}
