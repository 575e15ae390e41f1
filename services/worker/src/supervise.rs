//! What goes on beside a running job: signs of life, cancels, deadlines, progress.

use crate::{
    attempt::{Attempt, Ending},
    keeper::KeepError,
    perform::Perform,
    rate::Rate,
    stop::Why,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::AbortOnDropHandle;
use virtbus_bus::{
    Delivery,
    jobs::{EVENTS, PROGRESS},
    lease::Standing,
    locks::LockSet,
};
use virtbus_wire::{BootId, Event, JobError, state::Progress};

/// A job that ends sooner isn't watched for cancels: that would cost more than the job.
const WATCHED_AFTER: Duration = Duration::from_millis(20);
/// The least time between two live messages of progress.
const LIVE_EVERY: Duration = Duration::from_millis(250);
/// How often it's looked whether work is silent, in the time it may be.
const LOOKS_PER_SILENCE: u32 = 8;
/// The least time between two writes of progress to the record.
const WRITTEN_EVERY: Duration = Duration::from_secs(5);

impl<P: Perform> Attempt<P> {
    /// Runs the claim to its ending while its message is kept, its record is watched, and its
    /// progress is told.
    pub(crate) async fn supervise(self: &Arc<Self>, delivery: &Delivery) -> (Ending, LockSet) {
        let attempt = Arc::clone(self);
        // In a task of its own: a panic of the work ends the work, not the worker.
        let work = async move { attempt.perform().await };
        let work = tokio::spawn(self.worker.bus.within(work));
        let mut work = AbortOnDropHandle::new(work);
        let beside = async {
            tokio::time::sleep(WATCHED_AFTER).await;
            tokio::join!(
                self.keep_message(delivery),
                self.watch(),
                self.watch_silence(),
                self.tell_progress()
            );
        };
        let ended = tokio::select! {
            biased;
            ended = &mut work => ended,
            () = beside => (&mut work).await,
        };
        self.tell_last().await;
        match ended {
            Ok(ended) => ended,
            Err(panicked) => {
                tracing::error!(job = %self.job.id, %panicked, "the task panicked");
                let failed = Ending::Failed(JobError::internal("the task panicked"));
                (self.undo(failed).await, LockSet::new())
            }
        }
    }

    async fn keep_message(&self, delivery: &Delivery) {
        // A claim begins in the first third of the time, and has just written the record.
        let pace = self.worker.ack_wait() / 3;
        let mut ticks = tokio::time::interval_at(Instant::now() + pace, pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            delivery.keep().await;
            match self.keeper.refresh().await {
                Ok(()) => {}
                Err(KeepError::Lost | KeepError::Illegal) => {
                    self.stop.stop(Why::Lost, true);
                    return;
                }
                Err(KeepError::Bus(error)) => {
                    tracing::warn!(job = %self.job.id, %error, "the record can't be read");
                }
            }
        }
    }

    /// Stops the work on a cancel, at its deadline, when the worker stops, or when the worker
    /// can't trust its own lease any more.
    async fn watch(&self) {
        let subject = format!("{EVENTS}.{}", self.job.id);
        let mut events = self.worker.bus.subscribe(subject).await.ok();
        let mut standing = self.worker.standing.clone();
        let (began, mut told) = (Instant::now(), self.progress.subscribe());
        let (mut stopping, mut late) = (false, false);
        loop {
            let changed = async {
                match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            let timeout = self.timeout(&told.borrow_and_update());
            // The gravest first; events last, as many of them may come.
            tokio::select! {
                biased;
                () = in_doubt(&mut standing, self.job.owner.boot) => {
                    tracing::warn!(job = %self.job.id, "killed: the lease is in doubt");
                    self.stop.stop(Why::Lost, true);
                    return;
                }
                () = self.worker.hard_stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.stop.stop(Why::Shutdown, false);
                }
                // The work told how much there is, perhaps.
                Ok(()) = told.changed() => {}
                () = at(began.checked_add(timeout)), if !late => {
                    late = true;
                    if !self.keeper.is_committing().await {
                        self.stop.stop(Why::Deadline, false);
                    }
                }
                event = changed => match event {
                    // The event is a hint; the record decides.
                    Some(_) => {
                        let refreshed = self.keeper.refresh().await;
                        tracing::trace!(?refreshed, "the record changed");
                    }
                    None => events = None,
                },
            }
        }
    }

    /// How long this attempt may take: as the job says, else by what there is to do.
    fn timeout(&self, told: &Option<Progress>) -> Duration {
        let bytes = || told.as_ref().and_then(|told| told.total_bytes);
        let asked = self.job.record.timeout_s.map(Duration::from_secs);
        asked.unwrap_or_else(|| self.job.task.default_timeout(bytes()))
    }

    /// Stops work of which nothing is heard: no progress, and no output of its tools.
    async fn watch_silence(&self) {
        let Some(limit) = self.worker.work.silence(&self.job.task) else {
            return;
        };
        let mut told = self.progress.subscribe();
        let tools = self.stop.tools();
        let (mut heard, mut signs) = (Instant::now(), tools.signs());
        let mut looks = tokio::time::interval(limit / LOOKS_PER_SILENCE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let has_told = told.has_changed().unwrap_or(false);
            if has_told || tools.signs() != signs {
                told.mark_unchanged();
                (heard, signs) = (Instant::now(), tools.signs());
            } else if heard.elapsed() >= limit {
                if !self.keeper.is_committing().await {
                    tracing::warn!(job = %self.job.id, ?limit, "stopped: nothing is heard of it");
                    self.stop.stop(Why::Stalled, false);
                }
                return;
            }
        }
    }

    async fn tell_progress(&self) {
        let mut progress = self.progress.subscribe();
        // What was told before it was listened to is news too.
        progress.mark_changed();
        let mut written: Option<Instant> = None;
        let (mut rate, began) = (Rate::default(), Instant::now());
        loop {
            if progress.changed().await.is_err() {
                return;
            }
            let latest = progress.borrow_and_update().clone();
            let Some(latest) = latest else { continue };
            let latest = rate.fill(latest, began.elapsed());
            self.publish(&latest).await;
            if written.is_none_or(|at| at.elapsed() >= WRITTEN_EVERY) {
                written = Some(Instant::now());
                // The next one, or the end of the job, says it again.
                let told = self.keeper.apply(Event::Progress(latest)).await;
                tracing::trace!(ok = told.is_ok(), "progress written");
            }
            tokio::time::sleep(LIVE_EVERY).await;
        }
    }

    /// The last progress is told whatever the rate; the record gets it with the ending.
    async fn tell_last(&self) {
        let latest = self.progress.borrow().clone();
        if let Some(latest) = latest {
            self.publish(&latest).await;
        }
    }

    async fn publish(&self, progress: &Progress) {
        #[derive(serde::Serialize)]
        struct Live<'a> {
            id: &'a str,
            attempt: u32,
            #[serde(flatten)]
            progress: &'a Progress,
        }
        let attempt = self.keeper.record().await.attempt;
        let live = Live {
            id: self.job.id.as_str(),
            attempt,
            progress,
        };
        let Ok(payload) = serde_json::to_vec(&live) else {
            return;
        };
        let subject = format!("{PROGRESS}.{}", self.job.id);
        let told = self.worker.bus.tell(subject, None, payload.into()).await;
        if let Err(error) = told {
            tracing::debug!(%error, "progress was not told");
        }
    }
}

/// Ends when the lease may be out, or was: the process has another boot then. A heartbeat that
/// ended is as bad.
async fn in_doubt(standing: &mut watch::Receiver<Standing>, boot: BootId) {
    drop(standing.wait_for(|now| !now.is_held_by(boot)).await);
}

/// Ends at that time; never when there is none.
pub(crate) async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
