//! Making the record of a job that has none.

use crate::{
    registrar::Lying,
    service::{Stores, per_job},
};
use std::collections::BTreeMap;
use virtbus_bus::{BusError, WriteError, browse::PAGE_MAX, jobs::DeadLetter};
use virtbus_wire::{
    Code, Envelope, Event, JobError, JobId, JobState, Queue, Record, StateName, Timestamp,
    protocol::{
        arrival::{Arrived, unknown_queue},
        gate::{Gate, gate, looks_at_dependencies},
    },
};

/// What came of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// The record is there, made by us or by somebody who was faster.
    Known,
    /// The job ended or waits, and its message is gone.
    Settled,
    /// A publication by the system: its record is another's to make.
    NotOurs,
}

/// Makes the record of a message's job, unless somebody has. A job that can't run, or must wait,
/// needs no message: it's deleted then.
///
/// # Errors
/// When the server doesn't answer; doing it again goes on from there.
pub async fn register(stores: &Stores, lying: Lying<'_>) -> Result<Registered, BusError> {
    let id = lying.id().clone();
    let found = stores.jobs.get_latest(&id).await?.map(|entry| entry.value);
    let lying = lying.or_later(found.as_ref(), stores.bus.now());
    let found = match *lying.id() == id {
        true => found,
        // It got another name: what is under that one?
        false => stores
            .jobs
            .get_latest(lying.id())
            .await?
            .map(|entry| entry.value),
    };
    let Arrived::Job { record, dlq, .. } = &lying.arrived else {
        return Ok(Registered::NotOurs);
    };
    match found {
        Some(known) if lying.arrival.brought(&known) => finish(stores, &lying, &known).await,
        // Another message's job: the reconciler sees to this copy.
        Some(_) => Ok(Registered::Known),
        None => {
            let served = match record.as_ref().map(|record| record.queue.queue()) {
                Ok(Some(queue)) => stores.catalogue.knows(queue).await?,
                Ok(None) | Err(_) => false,
            };
            make(stores, &lying, record, *dlq, served).await
        }
    }
}

/// As [`register`], for a message whose job has no record as far as a replica knows. `served`
/// says which queues somebody registered.
///
/// # Errors
/// As [`register`].
pub(crate) async fn register_new(
    stores: &Stores,
    lying: Lying<'_>,
    served: &BTreeMap<Queue, bool>,
) -> Result<Registered, BusError> {
    let Arrived::Job { record, dlq, .. } = &lying.arrived else {
        return Ok(Registered::NotOurs);
    };
    let queue = record.as_ref().ok().and_then(|record| record.queue.queue());
    let served = queue.and_then(|queue| served.get(queue)).copied();
    make(stores, &lying, record, *dlq, served.unwrap_or(false)).await
}

async fn make(
    stores: &Stores,
    lying: &Lying<'_>,
    record: &Result<Box<Record>, Box<Record>>,
    dlq: bool,
    served: bool,
) -> Result<Registered, BusError> {
    let mut record = match record {
        Ok(record) => settle(stores, record, served).await?,
        Err(failed) => (**failed).clone(),
    };
    if dlq {
        copy_to_dead_letters(stores, lying, Code::JobMalformed).await?;
    }
    let made = match stores.jobs.create(&record).await {
        Err(WriteError::Bus(BusError::TooLarge { reason, .. })) => {
            record = oversized(&record, &reason, stores.bus.now());
            stores.jobs.create(&record).await
        }
        made => made,
    };
    match made {
        Ok(_) => log(&record),
        Err(WriteError::Conflict(_)) => return Ok(Registered::Known),
        Err(WriteError::Bus(error)) => return Err(error),
    }
    finish(stores, lying, &record).await
}

/// What people see of a job whose record the server will never take: that it failed, and why.
fn oversized(record: &Record, reason: &str, now: Timestamp) -> Record {
    let job = Envelope {
        id: Some(record.id.clone()),
        user: record.user.clone(),
        tenant: record.tenant.clone(),
        ..Envelope::bare(&record.task)
    };
    let (id, queue) = (record.id.clone(), record.queue.clone());
    let mut small = Record::new(id, job, queue, record.submitted_at);
    small.dedupe = record.dedupe.clone();
    tracing::error!(job = %record.id, reason, "a job is too large for a record: it fails");
    let error = JobError::invalid_params("params", "the job is too large for its record");
    // A record that was just made is queued, and a queued one can fail.
    let failed = small.apply(Event::Fail(error), now);
    failed.unwrap_or(small)
}

/// Deletes the message of a job that needs none.
async fn finish(
    stores: &Stores,
    lying: &Lying<'_>,
    record: &Record,
) -> Result<Registered, BusError> {
    match record.state.name() {
        StateName::Queued | StateName::Running | StateName::Cancelling => Ok(Registered::Known),
        StateName::Failed | StateName::Cancelled | StateName::Succeeded | StateName::Waiting => {
            delete(stores, lying.arrival.stream, lying.arrival.seq).await?;
            Ok(Registered::Settled)
        }
    }
}

fn log(record: &Record) {
    let (job, queue, state) = (&record.id, &record.queue, record.state.name());
    match &record.state {
        JobState::Failed(_, error) => tracing::info!(%job, %queue, %state, %error, "registered"),
        JobState::Queued | JobState::Waiting(_) | JobState::Cancelled(..) => {
            tracing::debug!(%job, %queue, %state, "registered");
        }
        JobState::Running(_) | JobState::Cancelling(_) | JobState::Succeeded(..) => {}
    }
}

/// What a new job begins as: `queued`, or at once something else.
async fn settle(stores: &Stores, record: &Record, served: bool) -> Result<Record, BusError> {
    let now = stores.bus.now();
    let event = if served {
        let states = states_before(stores, record).await?;
        match gate(record, now, |job| states.get(job).copied()) {
            Gate::Open => None,
            Gate::Wait(on) => Some(Event::Wait(on)),
            Gate::Fail(error) => Some(Event::Fail(error)),
            Gate::Drop(error) => Some(Event::Drop(error)),
        }
    } else {
        Some(Event::Fail(unknown_queue(&record.queue)))
    };
    // Each of these is legal for a queued job.
    let settled = event.and_then(|event| record.apply(event, now).ok());
    Ok(settled.unwrap_or_else(|| record.clone()))
}

/// The states of the jobs that one comes after, as far as that still matters.
///
/// # Errors
/// When the server doesn't answer.
pub async fn states_before(
    stores: &Stores,
    record: &Record,
) -> Result<BTreeMap<JobId, StateName>, BusError> {
    let mut states = BTreeMap::new();
    if !looks_at_dependencies(record) {
        return Ok(states);
    }
    let ids: Vec<&str> = record
        .after
        .iter()
        .map(|before| before.job.as_str())
        .collect();
    for ids in ids.chunks(PAGE_MAX) {
        for row in stores.jobs.bucket().of_keys(ids).await? {
            if let Some(Some(entry)) = per_job(row.entry)? {
                states.insert(entry.value.id, entry.value.state.name());
            }
        }
    }
    Ok(states)
}

/// Copies a message to the dead letters.
///
/// # Errors
/// When the server doesn't take it.
pub async fn copy_to_dead_letters(
    stores: &Stores,
    lying: &Lying<'_>,
    reason: Code,
) -> Result<(), BusError> {
    let letter = DeadLetter {
        subject: lying.arrival.subject,
        payload: lying.arrival.payload,
        job: lying.id(),
        reason: reason.as_str(),
        stream: lying.arrival.stream,
        seq: lying.arrival.seq,
    };
    match stores.jobs.dead_letter(letter).await {
        Ok(()) => Ok(()),
        Err(virtbus_bus::jobs::PublishError::Bus(error)) => Err(error),
        Err(virtbus_bus::jobs::PublishError::Full(subject)) => {
            // Keeping every queue going is worth more than the copy.
            tracing::error!(subject, "the dead letters take no more: a copy is lost");
            Ok(())
        }
    }
}

/// Deletes a message by its sequence. One that is gone already is fine.
///
/// # Errors
/// When the server doesn't answer.
pub async fn delete(stores: &Stores, stream: &str, seq: u64) -> Result<(), BusError> {
    stores.bus.delete_message(stream, seq).await
}
