//! Following jobs: first listen, then read the record, then go on from there.
//!
//! Events are hints, at most once: a lost one costs a moment, since the record is read again on
//! every reconnect and every few seconds. Works without any service but the messaging server,
//! also for jobs that are over.

use crate::{
    exit::{Exit, Failure},
    jobs,
    screen::Screen,
};
use async_nats::{Message, Subscriber};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior},
};
use virtbus_bus::{Bucket, Bus, BusError, Entry, Health};
use virtbus_wire::{Code, JobId, JobState, Record, StateName, state::Progress};

/// How often the record is read again although nothing was heard.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How long the server may be away while jobs are followed.
const OUTAGE_MAX: Duration = Duration::from_secs(120);
/// The most jobs followed at once.
pub(crate) const JOBS_MAX: usize = 256;
/// How long a job may stay without a record: core registers what was published within a second.
pub(crate) const APPEARS_IN: Duration = Duration::from_secs(3);

/// What became known of a job.
#[derive(Debug, Clone)]
pub(crate) enum Update {
    /// Its record changed, or was read for the first time.
    Record(Box<Entry<Record>>),
    /// It came further.
    Progress { id: JobId, progress: Live },
    /// Its record is gone.
    Gone(JobId),
}

/// What is published of a running job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Live {
    #[serde(default)]
    pub(crate) attempt: Option<u32>,
    #[serde(flatten)]
    pub(crate) progress: Progress,
}

/// One job that is followed.
#[derive(Debug)]
struct Follower {
    id: JobId,
    bucket: Bucket<Record>,
    changes: Subscriber,
    progress: Subscriber,
    health: watch::Receiver<Health>,
    looks: Interval,
    /// The record as it was told last: revision, attempt, whether it runs.
    told: Option<(u64, u32, bool)>,
    /// Until when the record may stay away.
    appears_by: Option<Instant>,
    /// Since when the server doesn't answer.
    lost_since: Option<Instant>,
}

impl Follower {
    async fn start(bus: &Bus, id: JobId, appears_in: Option<Duration>) -> Result<Self, Failure> {
        let listen = async |kind: &str| {
            let subscribed = bus.client().subscribe(format!("events.{kind}.{id}")).await;
            subscribed.map_err(|error| Failure::unreachable(format!("can't listen: {error}")))
        };
        let (changes, progress) = (listen("jobs").await?, listen("progress").await?);
        // The first tick comes at once: that's the first look.
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            bucket: jobs::bucket(bus),
            changes,
            progress,
            health: bus.health(),
            looks,
            told: None,
            appears_by: appears_in.map(|limit| Instant::now() + limit),
            lost_since: None,
            id,
        })
    }

    /// The next thing that became known. Cancel-safe but for a read that is then done again.
    async fn next(&mut self) -> Result<Update, Failure> {
        loop {
            let update = tokio::select! {
                _ = self.looks.tick() => self.look().await?,
                Some(change) = self.changes.next() => match self.hear(&change) {
                    Some(update) => Some(update),
                    None => self.look().await?,
                },
                Some(message) = self.progress.next() => self.hear_progress(&message),
                Ok(()) = self.health.changed() => {
                    self.looks.reset_immediately();
                    None
                }
            };
            if let Some(update) = update {
                return Ok(update);
            }
        }
    }

    /// Reads the record.
    async fn look(&mut self) -> Result<Option<Update>, Failure> {
        match self.bucket.get_latest(self.id.as_str()).await {
            Ok(Some(entry)) => {
                self.lost_since = None;
                Ok(self.tell(entry))
            }
            Ok(None) if self.told.is_some() => Ok(Some(Update::Gone(self.id.clone()))),
            Ok(None) => {
                self.lost_since = None;
                if self.appears_by.is_some_and(|limit| limit <= Instant::now()) {
                    let mut failure = Failure::not_found(format!("no job {}", self.id));
                    failure.code = Code::JobNotFound.to_string();
                    return Err(failure);
                }
                let soon = self
                    .appears_by
                    .map_or(LOOK_INTERVAL, |limit| limit - Instant::now());
                self.looks.reset_after(soon.min(LOOK_INTERVAL));
                Ok(None)
            }
            Err(error @ BusError::Unreachable { .. }) => {
                let since = *self.lost_since.get_or_insert_with(Instant::now);
                if since.elapsed() > OUTAGE_MAX {
                    return Err(error.into());
                }
                Ok(None)
            }
            Err(
                error @ (BusError::Refused { .. }
                | BusError::TooLarge { .. }
                | BusError::Corrupt { .. }),
            ) => Err(error.into()),
        }
    }

    /// A change as the bucket published it; nothing when the record has to be read for it.
    fn hear(&mut self, change: &Message) -> Option<Update> {
        let sequence = change.headers.as_ref()?.get("Nats-Sequence")?;
        let revision = sequence.as_str().parse().ok()?;
        let value: Record = serde_json::from_slice(&change.payload).ok()?;
        let entry = Entry {
            written_at: value.timeline.last()?.at,
            value,
            revision,
        };
        self.tell(entry)
    }

    fn tell(&mut self, entry: Entry<Record>) -> Option<Update> {
        if self.told.is_some_and(|(told, ..)| entry.revision <= told) {
            return None;
        }
        let runs = entry.value.state.name() == StateName::Running;
        self.told = Some((entry.revision, entry.value.attempt, runs));
        Some(Update::Record(Box::new(entry)))
    }

    /// The two lanes aren't ordered: what isn't of the running attempt is dropped.
    fn hear_progress(&self, message: &Message) -> Option<Update> {
        let (_, current, runs) = self.told?;
        let progress: Live = serde_json::from_slice(&message.payload).ok()?;
        let is_current = progress.attempt.is_none_or(|attempt| attempt == current);
        (runs && is_current).then(|| Update::Progress {
            id: self.id.clone(),
            progress,
        })
    }
}

/// The jobs that a person means, each once.
///
/// # Errors
/// When they are too many, or one isn't found.
pub(crate) async fn find_ids(bus: &Bus, texts: &[String]) -> Result<Vec<JobId>, Failure> {
    if texts.len() > JOBS_MAX {
        return Err(Failure::usage(format!("at most {JOBS_MAX} jobs at once")));
    }
    let mut ids = Vec::new();
    for text in texts {
        let id = jobs::find_id(bus, text).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// How long to follow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Until the record is there at all.
    pub(crate) appears_in: Option<Duration>,
    /// Until all jobs are over.
    pub(crate) over_in: Option<Duration>,
}

/// How following ended.
#[derive(Debug)]
pub(crate) enum Followed {
    /// All jobs are over; their last records, in the order they were named.
    Over(Vec<Record>),
    /// A person had enough of it. The jobs go on.
    Detached,
}

/// Follows jobs until all are over, showing on the screen what becomes known.
///
/// # Errors
/// When a job isn't there, the time is up, or the server is away for too long.
pub(crate) async fn follow(
    bus: &Bus,
    ids: &[JobId],
    limits: Limits,
    screen: &mut Screen,
) -> Result<Followed, Failure> {
    let mut updates = Vec::with_capacity(ids.len());
    for id in ids {
        let follower = Follower::start(bus, id.clone(), limits.appears_in).await?;
        updates.push(Box::pin(stream::unfold(follower, async |mut follower| {
            let update = follower.next().await;
            Some((update, follower))
        })));
    }
    let mut updates = stream::select_all(updates);
    let mut last: BTreeMap<JobId, Record> = BTreeMap::new();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let deadline = limits.over_in.map(|limit| Instant::now() + limit);
    loop {
        let update = tokio::select! {
            Some(update) = updates.next() => update?,
            _ = &mut interrupted => {
                screen.detach(ids);
                return Ok(Followed::Detached);
            }
            () = until(deadline) => {
                screen.close();
                return Err(Failure::new(Exit::TimedOut, "not over in time; the job goes on"));
            }
        };
        screen.show(&update)?;
        match update {
            Update::Record(entry) => {
                last.insert(entry.value.id.clone(), entry.value);
            }
            Update::Progress { .. } => {}
            Update::Gone(id) => {
                screen.close();
                return Err(Failure::not_found(format!("the record of {id} is gone")));
            }
        }
        let over = |id| last.get(id).filter(|r: &&Record| r.state.name().is_final());
        if let Some(records) = ids.iter().map(over).collect::<Option<Vec<_>>>() {
            screen.close();
            return Ok(Followed::Over(records.into_iter().cloned().collect()));
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The exit code that jobs which are over ask for: that of the gravest end.
pub(crate) fn exit_of(records: &[Record]) -> Exit {
    records.iter().map(outcome).max().unwrap_or(Exit::Done)
}

fn outcome(record: &Record) -> Exit {
    match &record.state {
        JobState::Failed(_, error) => match error.code.as_str() {
            "worker.lost" | "job.malformed" | "internal" => Exit::JobLost,
            _ => Exit::JobFailed,
        },
        JobState::Cancelled(..) => Exit::JobCancelled,
        JobState::Succeeded(..) => Exit::Done,
        JobState::Queued
        | JobState::Waiting(_)
        | JobState::Running(_)
        | JobState::Cancelling(_) => Exit::Failure,
    }
}
