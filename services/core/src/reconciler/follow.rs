//! Following the bucket `jobs`: events as they come, and reading on by revision where one is
//! missing.

use super::index::{Brief, Index};
use crate::service::Stores;
use async_nats::Message;
use futures_util::FutureExt as _;
use std::collections::BTreeSet;
use virtbus_bus::{
    BusError, Stored, Subscription, browse,
    jobs::{BUCKET, EVENTS},
};
use virtbus_wire::{JobId, Timestamp};

/// The index and what keeps it up to date.
pub(super) struct Follower {
    /// The jobs that aren't over.
    pub(super) index: Index,
    due: BTreeSet<JobId>,
    events: Subscription,
}

impl Follower {
    /// Reads all records, and follows them from there.
    pub(super) async fn start(stores: &Stores) -> Result<Self, BusError> {
        let subject = format!("{EVENTS}.*");
        let events = stores.bus.subscribe(subject).await;
        let events = events.map_err(|error| BusError::Unreachable {
            call: "the subscription to events".to_owned(),
            reason: error,
        })?;
        let mut follower = Self {
            index: Index::default(),
            due: BTreeSet::new(),
            events,
        };
        follower.catch_up(stores).await?;
        Ok(follower)
    }

    /// The jobs to look at because of what was taken in, or because their time has come.
    pub(super) fn take_due(&mut self, now: Timestamp) -> BTreeSet<JobId> {
        let times = self.index.due(now);
        let mut due = std::mem::take(&mut self.due);
        due.extend(times);
        due
    }

    /// Takes in the next event. Nothing is lost when this is dropped: what was not taken in is
    /// read again.
    pub(super) async fn next(&mut self, stores: &Stores) -> Result<(), BusError> {
        let event = self.events.next().await;
        self.event(stores, event).await
    }

    /// Takes in the events that have come already.
    pub(super) async fn take_in_what_came(&mut self, stores: &Stores) -> Result<(), BusError> {
        while let Some(event) = self.events.next().now_or_never() {
            self.event(stores, event).await?;
        }
        Ok(())
    }

    async fn event(&mut self, stores: &Stores, event: Option<Message>) -> Result<(), BusError> {
        let Some(event) = event else {
            return Err(BusError::Unreachable {
                call: "the subscription to events".to_owned(),
                reason: "it ended".to_owned(),
            });
        };
        match browse::stored(event) {
            // One was lost on the way: read on from the last.
            Some(event) if event.seq > self.index.revision + 1 => self.catch_up(stores).await,
            Some(event) => {
                self.take_in(&event);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes in what was written since the last revision known.
    pub(super) async fn catch_up(&mut self, stores: &Stores) -> Result<(), BusError> {
        let stream = format!("KV_{BUCKET}");
        let mut from = Some(self.index.revision + 1);
        while let Some(revision) = from {
            let page = stores.bus.browse(&stream, ">", revision).await?;
            page.items.iter().for_each(|stored| self.take_in(stored));
            from = page.next;
        }
        Ok(())
    }

    fn take_in(&mut self, stored: &Stored) {
        let key = stored.subject.rsplit('.').next().unwrap_or_default();
        let Ok(job) = key.parse::<JobId>() else {
            return;
        };
        let brief = if stored.payload.is_empty() {
            None
        } else {
            match serde_json::from_slice::<Brief>(&stored.payload) {
                Ok(brief) => Some(brief),
                Err(error) => {
                    tracing::error!(%job, %error, "a record can't be read");
                    None
                }
            }
        };
        let due = self.index.learn(&job, stored.seq, stored.time, brief);
        self.due.extend(due);
    }
}
