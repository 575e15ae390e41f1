//! Jobs that somebody lost before: claimed anew, later, or ended.

use crate::{
    claim::{AHEAD, Room},
    perform::Perform,
    worker::{Handled, Worker},
};
use std::time::Duration;
use virtbus_bus::{Delivery, Entry};
use virtbus_wire::{
    Code, Event, JobState, Record,
    protocol::{outcome, poison::rest},
};

impl<P: Perform> Worker<P> {
    /// How long the message of a job whose owner is dead is handed back for; none when it's to be
    /// claimed now.
    pub(crate) fn put_off(
        &self,
        delivery: &Delivery,
        entry: &Entry<Record>,
        room: &mut Room,
    ) -> Option<Duration> {
        let rested = self.bus.now().since(entry.written_at);
        let left = rest(&entry.value, &self.owner()).saturating_sub(rested);
        if left > Duration::ZERO {
            let (job, lost) = (&entry.value.id, entry.value.lost);
            tracing::warn!(%job, lost, ?left, "it cost each worker that looked at it: left alone");
            return Some(left);
        }
        (!self.has_slot(delivery, room)).then_some(AHEAD)
    }

    /// Ends a claimed job that cost too many workers before its work, by its record alone: any look
    /// at it may be what kills. What older claims have of locks core frees, now that it's over.
    pub(crate) async fn end_poison(&self, delivery: &Delivery, entry: &Entry<Record>) -> Handled {
        let record = &entry.value;
        let (job, lost) = (&record.id, record.lost);
        tracing::error!(%job, lost, "ended: each claim was lost before its work began");
        let event = match &record.state {
            JobState::Cancelling(_) => Event::GiveUp,
            JobState::Running(_) | JobState::Queued | JobState::Waiting(_) => {
                // Before the record is final: whoever comes after a crash in between does both again.
                if let Err(error) = self.bury(delivery, job, Code::WorkerLost).await {
                    tracing::warn!(%job, %error, "the dead letter could not be written yet");
                    return Handled::Open;
                }
                Event::Fail(outcome::worker_lost(record))
            }
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return Handled::Over;
            }
        };
        match self.jobs.change(entry, event).await {
            Ok(ended) => {
                self.counts.ended(&ended.value);
                Handled::Over
            }
            // Cancelled just now, perhaps: it's claimed anew.
            Err(error) => {
                tracing::warn!(%job, ?error, "its end could not be written yet");
                Handled::Open
            }
        }
    }
}
