//! Where a queued job's message lies.

use crate::{registrar::lying, service::Stores};
use std::time::Duration;
use virtbus_bus::{BusError, Page, Stored};
use virtbus_wire::{JobState, Record, Timestamp};

/// How far a record's time and its message's may be apart, the wrong way round: the first is
/// written with our clock.
const CLOCKS_APART: Duration = Duration::from_secs(2);

/// Deletes the message of a job as it was while `queued`. Best effort: what is left has no
/// effect, and is deleted later.
pub(super) async fn remove(stores: &Stores, job: &Record) {
    let removed = async {
        let Some(message) = find(stores, job).await? else {
            return Ok(());
        };
        let Some(queue) = job.queue.queue() else {
            return Ok(());
        };
        stores.bus.delete_message(queue.stream(), message.seq).await
    };
    if let Err(error) = removed.await {
        let error: BusError = error;
        tracing::info!(job = %job.id, %error, "a message without purpose is left for later");
    }
}

/// The message that stands for a queued job, if it's easily found.
pub(super) async fn find(stores: &Stores, job: &Record) -> Result<Option<Stored>, BusError> {
    let Some(queue) = job.queue.queue() else {
        return Ok(None);
    };
    if !matches!(job.state, JobState::Queued) {
        return Ok(None);
    }
    if let Some(came) = job.dedupe.as_ref().filter(|_| job.generation == 1) {
        let found = stores.bus.message(&came.stream, came.seq).await?;
        // A stream that was made anew counts from 1 again.
        return Ok(found.filter(|message| message.time == came.time));
    }
    let queued = job.queued_at.unwrap_or(job.submitted_at).as_millis();
    let apart = i64::try_from(CLOCKS_APART.as_millis()).unwrap_or(i64::MAX);
    let since = Timestamp::from_millis(queued.saturating_sub(apart));
    // One page: with more than that in two seconds the reconciler finds it.
    let page = stores
        .bus
        .browse_since(queue.stream(), &queue.subject(), since)
        .await?;
    let Page { items, .. } = page;
    let is_its = |stored: &Stored| {
        lying(stored, stores.bus.now())
            .is_some_and(|found| *found.id() == job.id && found.generation() == job.generation)
    };
    Ok(items.into_iter().find(is_its))
}
