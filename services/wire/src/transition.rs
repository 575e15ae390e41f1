//! The one function that applies an event to a job: nothing else changes a state.

use crate::{
    error::JobError,
    queue::Queue,
    record::{Moment, Record},
    state::{
        Cancel, Ended, Event, Hold, IllegalEvent, JobState, Owner, Phase, Progress, StateName,
        WaitReason, Waiting,
    },
    time::Timestamp,
};
use serde_json::{Map, Value};

impl Record {
    /// The record after an event. The only way a job's state changes.
    ///
    /// # Errors
    /// When the state doesn't allow the event; the rules are those of PROTOCOL, section 3.
    pub fn apply(&self, event: Event, now: Timestamp) -> Result<Self, IllegalEvent> {
        let illegal = IllegalEvent {
            state: self.state.name(),
            event: event.verb(),
        };
        let mut next = self.clone();
        let applied = match event {
            Event::Claim { owner, seq, begin } => next.claim(owner, seq, begin, now),
            Event::ClaimHere { owner, seq, queue } => {
                next.queue = queue.into();
                next.claim(owner, seq, false, now)
            }
            Event::Enter(phase) => next.enter(phase),
            Event::Progress(progress) => next.advance(progress),
            Event::Park { on, refund, ticket } => next.park(on, refund, ticket, now),
            Event::Wait(on) => next.wait(on, now),
            Event::Publish { round } => next.publish(round, now),
            Event::Move(queue) => next.relocate(queue, now),
            Event::Cancel(cancel) => next.cancel(cancel, now),
            Event::Succeed(result) => next.succeed(result, false, now),
            Event::Recover(result) => next.succeed(result, true, now),
            Event::Fail(error) => next.fail(error, now),
            Event::GiveUp => next.give_up(now),
            Event::Drop(error) => next.drop_unmet(error, now),
            Event::Settle(result) => next.settle(result, now),
            Event::Rehome(queue) => next.rehome(queue, now),
            Event::Retry => next.retry_again(now),
        };
        if applied { Ok(next) } else { Err(illegal) }
    }

    fn claim(&mut self, owner: Owner, seq: u64, begin: bool, now: Timestamp) -> bool {
        let cancelling = match &self.state {
            JobState::Queued | JobState::Running(_) => false,
            JobState::Cancelling(_) => true,
            JobState::Waiting(_) => return false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return false;
            }
        };
        let begin = begin && self.claim == 0 && !cancelling;
        // Who claims anew what it gave up is alive: that claim wasn't lost.
        let lost = |hold: &Hold| hold.phase < Phase::Work && hold.owner != owner;
        self.lost += u32::from(self.state.hold().is_some_and(lost));
        self.claim += 1;
        self.seq = Some(seq);
        self.rounds = 0;
        self.started_at.get_or_insert(now);
        let worker = owner.worker.clone();
        let phase = if self.claim > 1 {
            Phase::Clean
        } else {
            Phase::Locks
        };
        let hold = Hold { owner, phase };
        self.state = if cancelling {
            JobState::Cancelling(hold)
        } else {
            JobState::Running(hold)
        };
        let attempt = self.attempt + u32::from(!cancelling);
        self.remember(Moment {
            worker: Some(worker),
            attempt: Some(attempt),
            ..Moment::new(self.state.name(), now)
        });
        !begin || self.enter(Phase::Work)
    }

    fn enter(&mut self, phase: Phase) -> bool {
        let JobState::Running(hold) = &mut self.state else {
            return false;
        };
        if phase <= hold.phase || (phase == Phase::Work && self.tries_left == 0) {
            return false;
        }
        hold.phase = phase;
        if phase >= Phase::Work {
            self.lost = 0;
        }
        if phase == Phase::Work {
            self.attempt += 1;
            self.tries_left -= 1;
            self.progress = None;
        }
        true
    }

    fn advance(&mut self, progress: Progress) -> bool {
        if !matches!(self.state, JobState::Running(_)) {
            return false;
        }
        self.progress = Some(progress.after(self.progress.as_ref()));
        true
    }

    fn park(&mut self, on: WaitReason, refund: bool, ticket: Option<u64>, now: Timestamp) -> bool {
        let JobState::Running(hold) = &self.state else {
            return false;
        };
        let began = hold.phase >= Phase::Work;
        // A claim that found an earlier effect entered `commit` without an attempt of its own.
        if refund && began && self.tries_left < self.retry.max_attempts {
            self.tries_left += 1;
        }
        if !refund && !began {
            // What fails before the work uses up a try all the same, or it would fail for ever.
            self.tries_left = self.tries_left.saturating_sub(1);
        }
        self.ticket = self.ticket.or(ticket);
        self.set_waiting(on, now);
        true
    }

    fn wait(&mut self, on: WaitReason, now: Timestamp) -> bool {
        match &self.state {
            JobState::Queued => self.set_waiting(on, now),
            JobState::Waiting(waiting) => {
                let since = waiting.since;
                self.state = JobState::Waiting(Waiting { on, since });
            }
            JobState::Running(_) | JobState::Cancelling(_) => return false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return false;
            }
        }
        true
    }

    fn set_waiting(&mut self, on: WaitReason, now: Timestamp) {
        // With what the attempt ended that is retried.
        let code = match &on {
            WaitReason::Time { error, .. } => error.as_ref().map(|error| error.code),
            WaitReason::Dependency { .. } | WaitReason::Lock { .. } => None,
            WaitReason::Capacity { .. } | WaitReason::Tenant { .. } => None,
            WaitReason::Transfer { .. } => None,
        };
        self.state = JobState::Waiting(Waiting { on, since: now });
        self.lost = 0;
        self.remember(Moment {
            code,
            ..Moment::new(StateName::Waiting, now)
        });
    }

    fn publish(&mut self, round: bool, now: Timestamp) -> bool {
        match &self.state {
            JobState::Queued => self.rounds += u32::from(round),
            JobState::Waiting(_) => self.set_queued(now),
            JobState::Running(_) | JobState::Cancelling(_) => {}
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return false;
            }
        }
        self.generation += 1;
        true
    }

    fn set_queued(&mut self, now: Timestamp) {
        self.state = JobState::Queued;
        self.lost = 0;
        self.queued_at = Some(now);
        self.remember(Moment::new(StateName::Queued, now));
    }

    fn relocate(&mut self, queue: Queue, now: Timestamp) -> bool {
        match &self.state {
            JobState::Queued => {
                self.generation += 1;
                self.queued_at = Some(now);
            }
            JobState::Waiting(_) => {}
            JobState::Running(_) | JobState::Cancelling(_) => return false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return false;
            }
        }
        self.queue = queue.into();
        true
    }

    fn cancel(&mut self, cancel: Cancel, now: Timestamp) -> bool {
        match &self.state {
            JobState::Queued | JobState::Waiting(_) => {
                self.cancel = Some(cancel);
                self.end(now, |ended| JobState::Cancelled(ended, None));
                true
            }
            JobState::Running(hold) if hold.phase < Phase::Commit => {
                self.cancel = Some(cancel);
                self.state = JobState::Cancelling(hold.clone());
                self.remember(Moment::new(StateName::Cancelling, now));
                true
            }
            JobState::Cancelling(_) if cancel.force => {
                self.cancel = Some(cancel);
                true
            }
            JobState::Running(_) | JobState::Cancelling(_) => false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => false,
        }
    }

    fn succeed(&mut self, result: Map<String, Value>, found: bool, now: Timestamp) -> bool {
        let legal = match &self.state {
            JobState::Running(hold) => found || hold.phase >= Phase::Work,
            JobState::Cancelling(_) => found,
            JobState::Queued | JobState::Waiting(_) => false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => false,
        };
        if legal {
            // Tasks that are too quick to tell how far they came are done all the same.
            if let Some(progress) = &mut self.progress {
                progress.percent = Some(100.0);
                progress.done_bytes = progress.total_bytes.or(progress.done_bytes);
                progress.eta_s = None;
            }
            self.end(now, |ended| JobState::Succeeded(ended, result));
        }
        legal
    }

    fn fail(&mut self, error: JobError, now: Timestamp) -> bool {
        let legal = !self.state.name().is_final();
        if legal {
            self.end(now, |ended| JobState::Failed(ended, error));
        }
        legal
    }

    fn give_up(&mut self, now: Timestamp) -> bool {
        let legal = matches!(self.state, JobState::Cancelling(_));
        if legal {
            self.end(now, |ended| JobState::Cancelled(ended, None));
        }
        legal
    }

    fn drop_unmet(&mut self, error: JobError, now: Timestamp) -> bool {
        let legal = matches!(self.state, JobState::Queued | JobState::Waiting(_));
        if legal {
            self.end(now, |ended| JobState::Cancelled(ended, Some(error)));
        }
        legal
    }

    fn settle(&mut self, result: Map<String, Value>, now: Timestamp) -> bool {
        let legal = match &self.state {
            JobState::Queued | JobState::Waiting(_) | JobState::Running(_) => true,
            JobState::Cancelling(_) => false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => false,
        };
        if legal {
            self.end(now, |ended| JobState::Succeeded(ended, result));
        }
        legal
    }

    fn rehome(&mut self, queue: Queue, now: Timestamp) -> bool {
        let legal = match &self.state {
            JobState::Queued | JobState::Waiting(_) | JobState::Running(_) => true,
            JobState::Cancelling(_) => false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => false,
        };
        if legal {
            self.queue = queue.into();
            self.generation += 1;
            self.set_queued(now);
        }
        legal
    }

    fn end(&mut self, now: Timestamp, state: impl FnOnce(Ended) -> JobState) {
        let by = self.state.hold().map(|hold| hold.owner.clone());
        self.state = state(Ended { at: now, by });
        self.ticket = None;
        let code = match &self.state {
            JobState::Failed(_, error) | JobState::Cancelled(_, Some(error)) => Some(error.code),
            JobState::Cancelled(_, None) | JobState::Succeeded(..) => None,
            JobState::Queued | JobState::Waiting(_) => None,
            JobState::Running(_) | JobState::Cancelling(_) => None,
        };
        self.remember(Moment {
            code,
            ..Moment::new(self.state.name(), now)
        });
    }

    fn retry_again(&mut self, now: Timestamp) -> bool {
        if !self.state.name().is_final() {
            return false;
        }
        self.generation += 1;
        self.tries_left = self.retry.max_attempts;
        self.rounds = 0;
        (self.not_before, self.expires_at, self.started_at) = (None, None, None);
        (self.progress, self.ticket, self.cancel) = (None, None, None);
        self.set_queued(now);
        true
    }
}
