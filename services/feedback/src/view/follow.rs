//! The task that owns the view and follows the bucket.

use super::{
    Ask, Desk, Place, TooMany,
    hub::Hub,
    rows::{Change as RowChange, Entry, Rows},
};
use std::{io, sync::atomic::Ordering, time::Duration};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{
    Bus, BusError,
    changes::{BucketState, Change, Changes, ProgressEvents, read_after, state},
};
use virtbus_daemon::{Daemon, Readiness};
use virtbus_wire::{JobId, Record, StateName, Timestamp, frame::ProgressItem, row::Row};

const BUCKET: &str = "jobs";
/// The name of the view's check.
pub(crate) const CHECK: &str = "view";
/// How often the bucket is looked at: a lost change shows after this time at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long the bucket surely keeps the mark of a record that is gone, in milliseconds: what was
/// removed before leaves no trace for a view that is loaded.
const MARKS_KEPT_MS: i64 = 50 * 60 * 1000;
/// Between two attempts to load the bucket.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Follows the bucket until the service stops.
pub(crate) async fn follow(bus: Bus, desk: Desk, ready: Readiness, stop: CancellationToken) {
    ready.set(CHECK, Err("not loaded yet"));
    let followed = stop.run_until_cancelled(async {
        let mut follower = Follower::new(bus, desk, ready);
        loop {
            follower.one_epoch().await;
        }
    });
    followed.await;
}

/// Starts the view as a part of the service.
pub(crate) fn spawn<T>(daemon: &Daemon<T>, bus: &Bus, desk: Desk) {
    let followed = follow(
        bus.clone(),
        desk,
        daemon.ready.clone(),
        daemon.stop.child_token(),
    );
    daemon.parts.spawn("view", followed);
}

struct Follower {
    bus: Bus,
    desk: Desk,
    ready: Readiness,
    hub: Hub,
}

/// One life of the bucket.
struct Epoch {
    name: String,
    rows: Rows,
}

impl Follower {
    fn new(bus: Bus, desk: Desk, ready: Readiness) -> Self {
        let hub = Hub::default();
        Self {
            bus,
            desk,
            ready,
            hub,
        }
    }

    /// Loads the bucket and follows it until it's another one.
    async fn one_epoch(&mut self) {
        let (mut epoch, mut changes, mut progress) = loop {
            match self.load().await {
                Ok(loaded) => break loaded,
                Err(error) => {
                    self.ready.set(CHECK, Err(error));
                    sleep(RETRY_AFTER).await;
                }
            }
        };
        tracing::info!(
            epoch = epoch.name,
            revision = epoch.rows.last(),
            "the view is loaded"
        );
        self.ready.set(CHECK, Ok::<(), String>(()));
        let mut looks = look_now_and_then(self.bus.clone());
        loop {
            self.desk.last.store(epoch.rows.last(), Ordering::Release);
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) => self.change(&mut epoch, change).await,
                    None => return,
                },
                said = progress.next() => match said {
                    Some((job, said)) => self.progress(&epoch, &job, &said),
                    None => return,
                },
                look = looks.recv() => {
                    let is_another = match look {
                        Some(look) => self.compare(&mut epoch, look).await,
                        None => return,
                    };
                    if is_another {
                        tracing::warn!("the bucket is another one: everyone begins anew");
                        self.hub.over();
                        return;
                    }
                }
                ask = self.desk.asks.recv() => match ask {
                    Some(ask) => self.answer(&epoch, ask),
                    None => return,
                },
            }
        }
    }

    async fn load(&self) -> Result<(Epoch, Changes, ProgressEvents), BusError> {
        // First what is published, so that nothing falls between it and the reading.
        let changes = Changes::subscribe(&self.bus, BUCKET).await?;
        let progress = ProgressEvents::subscribe(&self.bus).await?;
        let BucketState { epoch, last } = state(&self.bus, BUCKET).await?;
        let mut rows = Rows::new(self.desk.limits, last);
        let remembered = Timestamp::now().as_millis() - MARKS_KEPT_MS;
        let reached = read_after(&self.bus, BUCKET, 0, last, |change| {
            if change.written_at.as_millis() < remembered {
                rows.forget(change.revision);
            }
            apply(&mut rows, change);
        });
        let reached = reached.await?;
        rows.reached(reached);
        let epoch = Epoch { name: epoch, rows };
        Ok((epoch, changes, progress))
    }

    async fn change(&self, epoch: &mut Epoch, change: Change) {
        let last = epoch.rows.last();
        if change.revision > last + 1 {
            tracing::debug!(last, next = change.revision, "a gap: reading on");
            self.fill(epoch, change.revision - 1).await;
        }
        for change in apply(&mut epoch.rows, change) {
            self.hub.tell(change);
        }
    }

    /// Whether the bucket is another one than the one that is followed.
    async fn compare(&self, epoch: &mut Epoch, look: Result<BucketState, BusError>) -> bool {
        match look {
            Ok(look) if look.epoch != epoch.name => return true,
            // The look may be older than the last change; one from now on isn't.
            Ok(look) if look.last < epoch.rows.last() => {
                let known = epoch.rows.last();
                let now = state(&self.bus, BUCKET).await;
                // Set back to an earlier time: what we know has never happened.
                return now.is_ok_and(|now| now.epoch != epoch.name || now.last < known);
            }
            Ok(look) => {
                self.fill(epoch, look.last).await;
                self.ready.set(CHECK, Ok::<(), String>(()));
            }
            Err(error) => self.ready.set(CHECK, Err(error)),
        }
        false
    }

    async fn fill(&self, epoch: &mut Epoch, through: u64) {
        let last = epoch.rows.last();
        let read = read_after(&self.bus, BUCKET, last, through, |change| {
            for change in apply(&mut epoch.rows, change) {
                self.hub.tell(change);
            }
        });
        match read.await {
            Ok(reached) => epoch.rows.reached(reached),
            // The next look finds the same gap.
            Err(error) => self.ready.set(CHECK, Err(error)),
        }
    }

    fn progress(&self, epoch: &Epoch, job: &str, said: &[u8]) {
        let Some(item) = progress_item(job, said) else {
            tracing::debug!(job, "a message that tells no progress");
            return;
        };
        let Some(entry) = epoch.rows.get(&item.id) else {
            return;
        };
        let is_at_work = match entry.job.state {
            StateName::Running | StateName::Cancelling => true,
            // Its record's change may come after the first progress; waiting for the bytes of
            // an upload is progress, too.
            StateName::Queued | StateName::Waiting => true,
            StateName::Succeeded | StateName::Failed | StateName::Cancelled => false,
        };
        if is_at_work && item.attempt >= entry.job.attempt {
            self.hub.progress(entry, item);
        }
    }

    fn answer(&mut self, epoch: &Epoch, ask: Ask) {
        // Whoever doesn't wait for the answer any more doesn't need it.
        match ask {
            Ask::Join {
                id,
                claims,
                mailbox,
                resume,
                reply,
            } => {
                let is_new = !self.hub.has(id);
                if is_new && self.hub.sessions_of(&claims.sub) >= self.desk.sessions_per_user_max {
                    reply.send(Err(TooMany)).ok();
                    return;
                }
                let resumed = resume
                    .filter(|cursor| cursor.epoch == epoch.name)
                    .map(|cursor| cursor.seq)
                    .filter(|seq| epoch.rows.can_resume(*seq));
                self.hub.join(id, claims, mailbox);
                let place = Place {
                    epoch: epoch.name.clone(),
                    seq: epoch.rows.last(),
                    resumed,
                };
                reply.send(Ok(place)).ok();
            }
            Ask::Leave(id) => self.hub.leave(id),
            Ask::Load {
                sight,
                filter,
                from,
                reply,
            } => {
                reply.send(epoch.rows.load(&sight, &filter, from)).ok();
            }
            Ask::Find { id, reply } => {
                reply.send(epoch.rows.get(&id).cloned()).ok();
            }
            Ask::Deliver { to, frame, reply } => {
                reply.send(self.hub.deliver(&to, &frame)).ok();
            }
        }
    }
}

/// Puts a change of the bucket in its place, and returns what changed for those who look.
fn apply(rows: &mut Rows, change: Change) -> Vec<RowChange> {
    let seq = change.revision;
    if seq <= rows.last() {
        return Vec::new();
    }
    let Ok(id) = change.key.parse::<JobId>() else {
        tracing::warn!(key = change.key, "a record whose key is no job id");
        rows.reached(seq);
        return Vec::new();
    };
    if change.payload.is_empty() {
        return rows.remove(&id, seq).into_iter().collect();
    }
    let entry = serde_json::from_slice::<Record>(&change.payload)
        .map_err(io::Error::from)
        .and_then(|record| Entry::new(Row::new(&record, seq)));
    match entry {
        Ok(entry) if entry.job.id == id => rows.put(entry),
        Ok(_) => {
            tracing::error!(job = %id, "a record under another job's key");
            rows.remove(&id, seq).into_iter().collect()
        }
        Err(error) => {
            // Better no row than one that is no longer true.
            tracing::error!(job = %id, %error, "a record that can't be read");
            rows.remove(&id, seq).into_iter().collect()
        }
    }
}

fn progress_item(job: &str, said: &[u8]) -> Option<ProgressItem> {
    let mut item: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(said).ok()?;
    item.insert("id".to_owned(), job.into());
    serde_json::from_value(item.into()).ok()
}

/// Looks at the bucket in a task of its own: while the server is away, the view still answers.
fn look_now_and_then(bus: Bus) -> mpsc::Receiver<Result<BucketState, BusError>> {
    let (looks, seen) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A look that waited in the channel would tell of the past.
            let Ok(slot) = looks.reserve().await else {
                return;
            };
            slot.send(state(&bus, BUCKET).await);
        }
    });
    seen
}
