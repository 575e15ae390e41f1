//! The record of a job that this process has: every change of it while the job runs.

use crate::{
    perform::{Confirm, Confirmed, Stop},
    stop::{StopSignal, Why},
};
use tokio::sync::{Mutex, watch};
use virtbus_bus::{Bus, BusError, Entry, Jobs, WriteError, jobs::ChangeError, lease::Standing};
use virtbus_wire::{
    Event, JobError, JobState, Record,
    state::{Owner, Phase, Progress},
};

/// How often a write is tried when others change the record at the same time.
const WRITES_MAX: u32 = 16;

/// Holds a claim's record, and knows when the claim is lost.
#[derive(Debug)]
pub(crate) struct Keeper {
    bus: Bus,
    jobs: Jobs,
    owner: Owner,
    standing: watch::Receiver<Standing>,
    claim: u64,
    entry: Mutex<Entry<Record>>,
    stop: StopSignal,
    progress: watch::Sender<Option<Progress>>,
}

/// A change that this claim couldn't make.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// The record is another claim's by now, or over.
    #[error("the claim is lost")]
    Lost,
    /// The job's state doesn't allow it: it was cancelled.
    #[error("the job's state doesn't allow it")]
    Illegal,
    /// No usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Keeper {
    /// `progress` is what the work last told: it goes into the record with each write.
    pub(crate) fn new(
        bus: &Bus,
        jobs: &Jobs,
        entry: Entry<Record>,
        owner: Owner,
        standing: watch::Receiver<Standing>,
        stop: StopSignal,
        progress: watch::Sender<Option<Progress>>,
    ) -> Self {
        let (jobs, claim) = (jobs.clone(), entry.value.claim);
        Self {
            bus: bus.clone(),
            jobs,
            owner,
            standing,
            claim,
            entry: Mutex::new(entry),
            stop,
            progress,
        }
    }

    /// The record as last seen.
    pub(crate) async fn record(&self) -> Record {
        self.entry.lock().await.value.clone()
    }

    /// Makes a change, however often others come between, as long as the claim is ours and the
    /// lease isn't in doubt.
    pub(crate) async fn apply(&self, event: Event) -> Result<Record, KeepError> {
        let mut entry = self.entry.lock().await;
        for _ in 0..WRITES_MAX {
            if !self.standing.borrow().is_held_by(self.owner.boot) {
                self.stop.stop(Why::Lost, true);
                return Err(KeepError::Lost);
            }
            self.add_progress(&mut entry.value);
            match self.jobs.change(&entry, event.clone()).await {
                Ok(next) => {
                    *entry = next;
                    return Ok(entry.value.clone());
                }
                Err(ChangeError::Illegal(_)) => return Err(KeepError::Illegal),
                Err(ChangeError::Write(WriteError::Bus(error))) => return Err(error.into()),
                Err(ChangeError::Write(WriteError::Conflict(_))) => {
                    let latest = self.jobs.get_latest(&entry.value.id).await?;
                    let latest = latest.ok_or(KeepError::Lost)?;
                    self.look(&latest.value)?;
                    *entry = latest;
                }
            }
        }
        Err(KeepError::Bus(BusError::Unreachable {
            call: format!("a change of job {}", entry.value.id),
            reason: "others changed it all the time".to_owned(),
        }))
    }

    /// Goes on to a later phase.
    pub(crate) async fn enter(&self, phase: Phase) -> Result<(), Stop> {
        match self.apply(Event::Enter(phase)).await {
            Ok(_) => Ok(()),
            Err(KeepError::Lost) => Err(Stop::Lost),
            Err(KeepError::Illegal) => Err(Stop::Stopped),
            Err(KeepError::Bus(error)) => {
                tracing::warn!(%error, ?phase, "the phase could not be written");
                Err(Stop::Failed(JobError::internal(
                    "the messaging server did not answer",
                )))
            }
        }
    }

    /// Reads the record again: a cancel stops the work, a lost claim kills it.
    pub(crate) async fn refresh(&self) -> Result<(), KeepError> {
        let mut entry = self.entry.lock().await;
        let latest = self
            .jobs
            .get_latest(&entry.value.id)
            .await?
            .ok_or(KeepError::Lost)?;
        if latest.revision > entry.revision {
            self.look(&latest.value)?;
            *entry = latest;
        }
        Ok(())
    }

    /// Whether the fence is passed: nothing is stopped by time from there on.
    pub(crate) async fn is_committing(&self) -> bool {
        let entry = self.entry.lock().await;
        entry
            .value
            .state
            .hold()
            .is_some_and(|hold| hold.phase == Phase::Commit)
    }

    /// Otherwise a reader would see the work go back to what was written seconds ago.
    fn add_progress(&self, record: &mut Record) {
        let told = self.progress.borrow().clone();
        if let Some(told) = told
            && let Ok(next) = record.apply(Event::Progress(told), self.bus.now())
        {
            *record = next;
        }
    }

    /// What a newer record means for the running work.
    fn look(&self, record: &Record) -> Result<(), KeepError> {
        if !record.is_held_by(&self.owner, self.claim) {
            self.stop.stop(Why::Lost, true);
            return Err(KeepError::Lost);
        }
        if let JobState::Cancelling(_) = record.state {
            let force = record.cancel.as_ref().is_some_and(|cancel| cancel.force);
            self.stop.stop(Why::Cancel, force);
        }
        Ok(())
    }
}

impl Confirm for Keeper {
    fn confirm(&self) -> Confirmed<'_> {
        Box::pin(async {
            self.refresh().await.map_err(|error| match error {
                KeepError::Lost => Stop::Lost,
                KeepError::Illegal | KeepError::Bus(_) => {
                    Stop::Failed(JobError::internal(error.to_string()))
                }
            })
        })
    }
}
