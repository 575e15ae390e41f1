//! One claim, from the clean-up of older ones to its ending.

use crate::{
    keeper::{KeepError, Keeper},
    perform::{Assignment, Done, Kept, Perform, Run, Stop},
    stop::{StopSignal, Why},
    worker::Worker,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use virtbus_bus::{BusError, Delivery, Entry, WriteError, locks::LockSet};
use virtbus_wire::{
    Code, Event, JobError, Record,
    protocol::{lock::Holder, outcome},
    state::WaitReason,
    task::Task,
};

/// The wait of a job whose work found an earlier claim in its way.
const EARLIER_PAUSE: Duration = Duration::from_secs(5);

/// How often it's tried to put back what was begun.
const UNDO_MAX: u32 = 5;
/// The wait between two of those.
const UNDO_AGAIN: Duration = Duration::from_secs(1);

/// How a claim ended.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// The work is done.
    Done(Done),
    /// An earlier claim had done it.
    Found(Done),
    /// It can't be done, or not now.
    Failed(JobError),
    /// The last attempt's worker died.
    WorkerLost,
    /// It was cancelled, and everything is as before.
    GaveUp,
    /// The worker stops; everything is as before.
    Shutdown,
    /// Something must come first; the ticket is for waits for locks.
    Wait(WaitReason, Option<u64>),
    /// The claim is lost: nothing more is changed.
    Lost,
    /// It can't be said yet what came of it, or not be put back: it's to be claimed anew.
    Open,
}

/// One claim of one job.
#[derive(Debug)]
pub(crate) struct Attempt<P> {
    pub(crate) worker: Arc<Worker<P>>,
    pub(crate) job: Assignment,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) stop: StopSignal,
    pub(crate) progress: watch::Sender<Option<virtbus_wire::state::Progress>>,
    kept: Kept,
    revision: u64,
}

impl<P: Perform> Attempt<P> {
    /// A claim that was just made.
    pub(crate) fn new(worker: &Arc<Worker<P>>, entry: Entry<Record>, task: Task) -> Self {
        let record = entry.value.clone();
        let stop = match task.is_long() && worker.work.make_way {
            true => StopSignal::making_way(&worker.way),
            false => StopSignal::new(),
        };
        let revision = entry.revision;
        let hold = record.state.hold();
        let owner = hold.map_or_else(|| worker.owner(), |hold| hold.owner.clone());
        let progress = watch::Sender::new(None);
        let keeper = Keeper::new(
            &worker.bus,
            &worker.jobs,
            entry,
            owner.clone(),
            worker.standing.clone(),
            stop.clone(),
            progress.clone(),
        );
        let keeper = Arc::new(keeper);
        let (id, claim) = (record.id.clone(), record.claim);
        let job = Assignment {
            id,
            claim,
            owner,
            task,
            record,
        };
        let kept = Kept::default();
        Self {
            worker: Arc::clone(worker),
            job,
            keeper,
            stop,
            progress,
            kept,
            revision,
        }
    }

    /// Goes from the claim to its ending, with what it holds of locks by then.
    pub(crate) async fn perform(&self) -> (Ending, LockSet) {
        let mut held = LockSet::new();
        let ending = match self.prepare(&mut held).await {
            Ok(()) => self.work().await,
            // It got in line before anything was begun.
            Err(ending @ Ending::Wait(_, Some(_))) if self.job.record.claim <= 1 => {
                return (ending, held);
            }
            Err(ending) => ending,
        };
        (self.undo(ending).await, held)
    }

    async fn work(&self) -> Ending {
        let run = Run {
            keeper: Arc::clone(&self.keeper),
            stop: self.stop.clone(),
            progress: self.progress.clone(),
            kept: self.kept.clone(),
        };
        match self.worker.perform.run(&self.job, &run).await {
            Ok(done) => Ending::Done(done),
            Err(stop) => self.stopped(stop),
        }
    }

    /// What it means that work ended without being done.
    pub(crate) fn stopped(&self, stop: Stop) -> Ending {
        let why = match stop {
            Stop::Failed(error) => return Ending::Failed(error),
            Stop::Wait(on) => return Ending::Wait(on, None),
            // It has no effect any more: this claim has looked since, and the fence keeps it out.
            Stop::Earlier(error) => {
                let until = self.worker.bus.now().after(EARLIER_PAUSE);
                let error = Some(error);
                return Ending::Wait(WaitReason::Time { until, error }, None);
            }
            Stop::Lost => return Ending::Lost,
            Stop::Stopped => self.stop.why(),
        };
        match why {
            Some(Why::Lost) => Ending::Lost,
            // Without a reason of ours the record said so: it's cancelling.
            Some(Why::Cancel) | None => Ending::GaveUp,
            Some(Why::Shutdown) => Ending::Shutdown,
            Some(Why::Stalled) => {
                let message = "the work told nothing for too long";
                Ending::Failed(JobError::new(Code::JobStalled, message))
            }
            Some(Why::Deadline) => {
                let message = "the attempt took longer than its time-out";
                Ending::Failed(JobError::new(Code::JobTimeout, message))
            }
        }
    }

    /// Puts back what was begun, unless there is an effect or the claim is lost.
    pub(crate) async fn undo(&self, ending: Ending) -> Ending {
        match &ending {
            Ending::Done(_) | Ending::Found(_) | Ending::Lost | Ending::Open => return ending,
            Ending::Failed(_) | Ending::WorkerLost | Ending::GaveUp => {}
            Ending::Shutdown | Ending::Wait(..) => {}
        }
        // Who lost its claim would undo its successor's work.
        if let Err(KeepError::Lost) = self.keeper.refresh().await {
            return Ending::Lost;
        }
        if self.keeper.is_committing().await {
            // What failed past the fence may have had its effect all the same.
            match self.settle_earlier().await {
                Ok(Some(done)) => return Ending::Done(done),
                Ok(None) => {}
                Err(Ending::Lost) => return Ending::Lost,
                Err(other) => tracing::debug!(job = %self.job.id, ?other, "no effect is found"),
            }
        }
        for tries in 0..UNDO_MAX {
            // Without an answer nobody knows whose work would be undone.
            let error = match self.keeper.refresh().await {
                Err(KeepError::Lost) => return Ending::Lost,
                Err(KeepError::Bus(error)) => error.to_string(),
                Ok(()) | Err(KeepError::Illegal) => {
                    let own = self.keeper.as_ref();
                    match self.worker.perform.abandon(&self.job, own).await {
                        Ok(()) => return ending,
                        Err(error) => error.to_string(),
                    }
                }
            };
            tracing::warn!(job = %self.job.id, error, tries, "not yet put back");
            sleep(UNDO_AGAIN).await;
        }
        // No final state may be written before all is as it was.
        tracing::error!(job = %self.job.id, "what was begun could not be put back");
        Ending::Open
    }

    /// Writes how it ended, then gives back locks. None when the claim was lost.
    pub(crate) async fn finish(
        &self,
        delivery: &Delivery,
        ending: Ending,
        held: &LockSet,
    ) -> Result<Option<Record>, BusError> {
        if matches!(ending, Ending::WorkerLost) {
            // Before the record is final: whoever comes after a crash in between does both again.
            let job = &self.job.id;
            self.worker.bury(delivery, job, Code::WorkerLost).await?;
        }
        let ending = self.in_line(ending, held).await?;
        let is_in_line = matches!(ending, Ending::Wait(_, Some(_)));
        let record = match self.write_ending(ending).await {
            Ok(record) => record,
            Err(KeepError::Lost | KeepError::Illegal) => return Ok(None),
            Err(KeepError::Bus(error)) => return Err(error),
        };
        self.kept.drop_all();
        if is_in_line {
            // What it had of them it gave back as it got in line.
            return Ok(Some(record));
        }
        if held.is_empty() {
            // Ended before the locks were noted, by a panic perhaps.
            self.worker.release_remains(&record).await;
            return Ok(Some(record));
        }
        let released = self.worker.locks.release(held.keys(), &self.holder()).await;
        if let Err(error) = released {
            tracing::warn!(job = %self.job.id, %error, "locks will be released by the reconciler");
        }
        Ok(Some(record))
    }

    /// A job that waits for another's use of what it has locked keeps its place: it gives the
    /// locks back and stands in line for them, as if it hadn't been granted them.
    async fn in_line(&self, ending: Ending, held: &LockSet) -> Result<Ending, BusError> {
        let Ending::Wait(on @ WaitReason::Lock { .. }, None) = ending else {
            return Ok(ending);
        };
        let ticket = self.ticket();
        match self.worker.locks.enlist(held, &self.holder(), ticket).await {
            Ok(()) => Ok(Ending::Wait(on, Some(ticket))),
            Err(WriteError::Conflict(lock)) => Err(BusError::Unreachable {
                call: format!("a change of lock {lock}"),
                reason: "others changed it all the time".to_owned(),
            }),
            Err(WriteError::Bus(error)) => Err(error),
        }
    }

    /// Its place in waiting lists.
    pub(crate) fn ticket(&self) -> u64 {
        self.job.record.ticket.unwrap_or(self.revision)
    }

    async fn write_ending(&self, ending: Ending) -> Result<Record, KeepError> {
        let record = self.keeper.record().await;
        let now = self.worker.bus.now();
        let event = match ending {
            Ending::Lost | Ending::Open => return Err(KeepError::Lost),
            Ending::Done(done) => Event::Succeed(done),
            Ending::Found(done) => Event::Recover(done),
            Ending::WorkerLost => Event::Fail(outcome::worker_lost(&record)),
            Ending::GaveUp => Event::GiveUp,
            Ending::Shutdown => outcome::after_shutdown(now),
            Ending::Wait(on, ticket) => Event::Park {
                on,
                refund: true,
                ticket,
            },
            Ending::Failed(error) => {
                outcome::after_failure(&record, error, now, self.worker.bus.random())
            }
        };
        match self.keeper.apply(event).await {
            // Cancelled before its end was written, and nothing has happened: it's given up.
            Err(KeepError::Illegal) => self.keeper.apply(Event::GiveUp).await,
            other => other,
        }
    }

    pub(crate) fn holder(&self) -> Holder {
        Holder {
            job: self.job.id.clone(),
            claim: self.job.claim,
            since: None,
        }
    }
}
