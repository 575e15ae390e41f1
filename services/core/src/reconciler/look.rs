//! Looking at one job and doing what the rules say: read, decide, compare-and-set, publish.

use super::uses;
use crate::{
    registrar::{self, Lying},
    service::{Stores, per_job},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::collections::BTreeMap;
use virtbus_bus::{
    BusError, Entry, WriteError,
    jobs::{ChangeError, PublishError},
    lease::Leases,
    limits::tenant_lock_of,
};
use virtbus_wire::{
    Code, Event, JobError, JobId, JobState, Record, StateName, Timestamp,
    envelope::IfInUse,
    protocol::{
        delivery::{Exhausted, exhausted},
        lock::Holder,
        reconcile::{Seen, mend},
    },
    state::WaitReason,
};

/// Jobs that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 64;

/// What is known about a job besides its record.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// The revision for which it's known that its message lies nowhere.
    pub(super) lost_at: Option<u64>,
    /// Up to when all that was published has a record.
    pub(super) registered: Option<Timestamp>,
}

/// Looks at many jobs of which the same is known.
pub(super) async fn look_at_all(
    stores: &Stores,
    jobs: impl IntoIterator<Item = JobId>,
    known: Known,
) -> Result<(), BusError> {
    look_at_each(stores, jobs.into_iter().map(|job| (job, known))).await
}

/// Looks at many jobs, several at a time: whose looks end with a message don't wait for each
/// other's.
pub(super) async fn look_at_each(
    stores: &Stores,
    jobs: impl IntoIterator<Item = (JobId, Known)>,
) -> Result<(), BusError> {
    let looks = jobs.into_iter().map(|(job, known)| async move {
        // Named here, since the future borrows it.
        let job = job;
        look(stores, &job, known).await
    });
    let looks: Vec<_> = looks.collect();
    stream::iter(looks)
        .buffer_unordered(LOOKS_AT_ONCE)
        .try_for_each(|()| std::future::ready(Ok(())))
        .await
}

/// Looks at a job and mends it if it needs that.
pub(super) async fn look(stores: &Stores, job: &JobId, known: Known) -> Result<(), BusError> {
    per_job(look_at(stores, job, known).await).map(|_| ())
}

async fn look_at(stores: &Stores, job: &JobId, known: Known) -> Result<(), BusError> {
    let Some(entry) = stores.jobs.get_latest(job).await? else {
        return Ok(());
    };
    let states = registrar::states_before(stores, &entry.value).await?;
    let Some(event) = decide(stores, &entry, known, &states).await? else {
        return Ok(());
    };
    carry_out(stores, &entry, event).await.map(|_| ())
}

async fn decide(
    stores: &Stores,
    entry: &Entry<Record>,
    known: Known,
    states: &BTreeMap<JobId, StateName>,
) -> Result<Option<Event>, BusError> {
    let record = &entry.value;
    let now = stores.bus.now();
    let is_lost = known.lost_at == Some(entry.revision);
    let owner_is_alive = match record.state.hold() {
        Some(hold) if is_lost => Leases::new(&stores.bus).is_alive(&hold.owner).await?,
        Some(_) | None => true,
    };
    let (lock_is_free, since) = match &record.state {
        JobState::Waiting(waiting) => {
            let free = match &waiting.on {
                WaitReason::Lock {
                    resource, holder, ..
                } => Some(lock_is_free(stores, record, resource, holder.as_deref()).await?),
                WaitReason::Dependency { .. } | WaitReason::Time { .. } => None,
                WaitReason::Tenant { .. } => Some(tenant_has_room(stores, record).await?),
                WaitReason::Capacity { .. } | WaitReason::Transfer { .. } => None,
            };
            (free, Some(waiting.since))
        }
        JobState::Queued | JobState::Running(_) | JobState::Cancelling(_) => (None, None),
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => (None, None),
    };
    let seen = Seen {
        age: now.since(entry.written_at),
        has_message: is_lost.then_some(false),
        lock_is_free,
        all_registered: since
            .zip(known.registered)
            .is_some_and(|(since, registered)| registered > since),
        owner_is_alive,
        states,
    };
    Ok(mend(record, &seen, now))
}

/// Whether a job may have what it waits for: nobody uses it any more whom the job waits for, and
/// its lock would be granted.
async fn lock_is_free(
    stores: &Stores,
    record: &Record,
    resource: &str,
    holder: Option<&str>,
) -> Result<bool, BusError> {
    let user = holder.filter(|_| record.if_in_use == IfInUse::Wait);
    if let Some(user) = user
        && uses::is_used(stores, resource, user).await?
    {
        return Ok(false);
    }
    calls(stores, record, resource).await
}

/// Whether it's the job's turn to have the lock.
async fn calls(stores: &Stores, record: &Record, lock: &str) -> Result<bool, BusError> {
    let holder = Holder {
        job: record.id.clone(),
        claim: record.claim,
        since: None,
    };
    let ticket = record.ticket.unwrap_or(u64::MAX);
    stores.locks.calls(lock, &holder, ticket).await
}

/// Whether it's the job's turn to run as one of its tenant's.
async fn tenant_has_room(stores: &Stores, record: &Record) -> Result<bool, BusError> {
    match tenant_lock_of(record) {
        Some(lock) => calls(stores, record, &lock).await,
        None => Ok(true),
    }
}

/// Writes what an event makes of a job, and publishes it if it has a new generation. `None` when
/// somebody else changed the job meanwhile.
pub(super) async fn carry_out(
    stores: &Stores,
    entry: &Entry<Record>,
    event: Event,
) -> Result<Option<Entry<Record>>, BusError> {
    let before = &entry.value;
    let next = match stores.jobs.change(entry, event).await {
        Ok(next) => next,
        Err(ChangeError::Illegal(error)) => {
            tracing::error!(job = %before.id, %error, "a rule asked for what can't be");
            return Ok(None);
        }
        Err(ChangeError::Write(WriteError::Conflict(_))) => return Ok(None),
        Err(ChangeError::Write(WriteError::Bus(error))) => return Err(error),
    };
    let (job, was, now) = (&before.id, before.state.name(), next.value.state.name());
    let generation = next.value.generation;
    tracing::info!(%job, %was, %now, generation, "mended");
    if generation > before.generation {
        match stores.jobs.publish(&next.value).await {
            Ok(_) => {}
            Err(PublishError::Full(queue)) => {
                tracing::warn!(%job, queue, "the queue is full: published later");
            }
            Err(PublishError::Bus(error)) => return Err(error),
        }
    }
    Ok(Some(next))
}

/// Sees to a message whose deliveries ran out: deliveries are not attempts.
pub(super) async fn see_to_exhausted(stores: &Stores, lying: Lying<'_>) -> Result<(), BusError> {
    let found = stores.jobs.get_latest(lying.id()).await?;
    // The record under its number may be of an earlier life of the stream.
    let lying = lying.or_later(found.as_ref().map(|entry| &entry.value), stores.bus.now());
    let (stream, seq, id) = (lying.arrival.stream, lying.arrival.seq, lying.id().clone());
    let generation = lying.generation();
    let mut entry = stores.jobs.get_latest(&id).await?;
    if entry.is_none() && generation == 1 {
        registrar::register(stores, lying.clone()).await?;
        entry = stores.jobs.get_latest(&id).await?;
    }
    let verdict = exhausted(entry.as_ref().map(|entry| &entry.value), generation);
    match (verdict, entry) {
        (Exhausted::Publish, Some(entry)) => {
            let event = Event::Publish { round: true };
            if carry_out(stores, &entry, event).await?.is_none() {
                return Ok(());
            }
        }
        (Exhausted::Fail, Some(entry)) => {
            registrar::copy_to_dead_letters(stores, &lying, Code::Internal).await?;
            let error = JobError::internal("no worker managed to claim the job");
            if carry_out(stores, &entry, Event::Fail(error))
                .await?
                .is_none()
            {
                return Ok(());
            }
        }
        (Exhausted::Delete, _) | (Exhausted::Publish | Exhausted::Fail, None) => {}
    }
    registrar::delete(stores, stream, seq).await
}
