//! From a message to a claim: what the tables of the protocol say, done.

use crate::{
    perform::{Look, Perform},
    slots::Slot,
    worker::{Running, Worker},
};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use virtbus_bus::{
    BusError, Delivery, Entry, WriteError,
    jobs::{ChangeError, DeadLetter, PublishError},
};
use virtbus_wire::{
    Code, Event, JobId, JobState, Record, StateName,
    protocol::{
        arrival::{Arrival, Arrived, Headers, Life, MSG_ID_HEADER, TRACE_HEADER, arrive},
        delivery::{Action, GENERATION_HEADER, JOB_HEADER, Message, Reading, decide},
        gate::{Gate, gate, looks_at_dependencies},
    },
    state::WaitReason,
};

/// How long a message that is ahead of its record is handed back for.
pub(crate) const AHEAD: Duration = Duration::from_secs(1);
/// How old a message may be for its job to have most likely no record yet: core waits as long
/// before it makes one.
const FRESH: Duration = Duration::from_millis(250);
/// How often a claim is tried when others change the record at the same time.
const CLAIMS_MAX: u32 = 16;

/// What is to be done with a message.
#[derive(Debug)]
pub(crate) enum Settled {
    /// Its job is ours now: run it.
    Claimed(Box<Entry<Record>>, Running),
    /// Acknowledge it.
    Over,
    /// Hand it back.
    HandBack(Duration),
}

/// What comes next for a queued job.
enum Next {
    /// A change of its record.
    Change(Event),
    /// Another worker should have it.
    HandBack(Duration),
}

/// What a message was taken with.
#[derive(Debug)]
#[expect(dead_code, reason = "slots and places are free again when dropped")]
pub(crate) enum Room {
    /// A slot, kept until the job is over.
    Slot(Slot),
    /// Nothing: it's a long job, and all slots for such are taken.
    None,
    /// A place for those who need no slot, since they only go to the end of a long line. (Should
    /// that be gone just then, one job runs that no slot was free for.)
    Line(Option<OwnedSemaphorePermit>),
}

impl<P: Perform> Worker<P> {
    /// Claims the job of a message, or finds out what else becomes of the message.
    pub(crate) async fn settle(
        &self,
        delivery: &Delivery,
        room: &mut Room,
    ) -> Result<Settled, BusError> {
        let arrival = arrival(delivery);
        let now = self.bus.now();
        let mut arrived = arrive(&arrival, Life::First, now);
        let mut seen = None;
        if let Arrived::Job { id, record, dlq } = &arrived {
            let is_fresh = delivery.delivered == 1 && now.since(delivery.published_at) < FRESH;
            if !is_fresh {
                seen = self.jobs.get(id).await?;
            }
            if seen.is_none() {
                if let Some(settled) = self.create(delivery, record, *dlq, room).await? {
                    return Ok(settled);
                }
                seen = self.jobs.get_latest(id).await?;
            }
            let later = seen
                .as_ref()
                .is_some_and(|found| arrival.life(&found.value) == Life::Later);
            if later {
                arrived = arrive(&arrival, Life::Later, now);
                seen = None;
            }
        }
        self.settle_known(delivery, &arrived, seen, room).await
    }

    /// As [`Worker::settle`], for a message whose job most likely has a record; `seen` is what
    /// some replica said of it just now.
    async fn settle_known(
        &self,
        delivery: &Delivery,
        arrived: &Arrived,
        mut seen: Option<Entry<Record>>,
        room: &mut Room,
    ) -> Result<Settled, BusError> {
        let (id, generation) = match arrived {
            Arrived::System { id, generation } => (id, *generation),
            Arrived::Job { id, .. } => (id, 1),
        };
        let (queue, seq) = (delivery.queue.clone(), delivery.seq);
        let message = Message {
            generation,
            queue,
            seq,
        };
        let mut reading = Reading::Any;
        for _ in 0..CLAIMS_MAX {
            let entry = match (seen.take(), reading) {
                (Some(entry), _) => Some(entry),
                (None, Reading::Any) => self.jobs.get(id).await?,
                (None, Reading::Leader) => self.jobs.get_latest(id).await?,
            };
            let action = self.decide(entry.as_ref(), &message, reading).await?;
            reading = Reading::Leader;
            let settled = match (action, entry) {
                (Action::ReadLeader, _) => None,
                (Action::Create, _) => match arrived {
                    Arrived::Job { record, dlq, .. } => {
                        self.create(delivery, record, *dlq, room).await?
                    }
                    Arrived::System { .. } => Some(Settled::Over),
                },
                (Action::Claim, Some(entry)) => self.claim(delivery, entry, room).await?,
                (Action::ReleaseAndDrop, Some(entry)) => {
                    self.release_remains(&entry.value).await;
                    Some(Settled::Over)
                }
                (Action::Drop | Action::Claim | Action::ReleaseAndDrop, _) => Some(Settled::Over),
                (Action::AskAgainSoon, _) => Some(Settled::HandBack(AHEAD)),
                (Action::AskAgainLater, _) => Some(Settled::HandBack(self.ack_wait())),
            };
            if let Some(settled) = settled {
                return Ok(settled);
            }
        }
        Ok(Settled::HandBack(AHEAD))
    }

    async fn decide(
        &self,
        entry: Option<&Entry<Record>>,
        message: &Message,
        reading: Reading,
    ) -> Result<Action, BusError> {
        let record = entry.map(|entry| &entry.value);
        let alive = match record.and_then(|record| record.state.hold()) {
            Some(hold) if hold.owner == self.owner() => {
                record.is_some_and(|record| self.claims.contain(&record.id, record.claim))
            }
            Some(hold) => self.leases.is_alive(&hold.owner).await?,
            None => false,
        };
        Ok(decide(record, message, reading, |_| alive))
    }

    /// Makes the first record of a job; none when somebody else just did.
    async fn create(
        &self,
        delivery: &Delivery,
        record: &Result<Box<Record>, Box<Record>>,
        dlq: bool,
        room: &mut Room,
    ) -> Result<Option<Settled>, BusError> {
        let first = match record {
            Ok(queued) => match self.first(delivery, queued, room).await? {
                Ok(first) => first,
                Err(delay) => return Ok(Some(Settled::HandBack(delay))),
            },
            Err(failed) => {
                if dlq {
                    let reason = Code::JobMalformed;
                    self.bury(delivery, &failed.id, reason).await?;
                }
                (**failed).clone()
            }
        };
        let running = self.claims.begin(&first.id, first.claim);
        match self.jobs.create(&first).await {
            Ok(revision) if first.state.name() == StateName::Running => {
                let entry = Entry {
                    written_at: first.submitted_at,
                    value: first,
                    revision,
                };
                Ok(Some(Settled::Claimed(Box::new(entry), running)))
            }
            Ok(_) => {
                self.pass_on(delivery, &first).await;
                Ok(Some(Settled::Over))
            }
            Err(WriteError::Conflict(_)) => Ok(None),
            Err(WriteError::Bus(error)) => Err(error),
        }
    }

    /// The first record of a job; an error is the time that its message is handed back for.
    async fn first(
        &self,
        delivery: &Delivery,
        queued: &Record,
        room: &mut Room,
    ) -> Result<Result<Record, Duration>, BusError> {
        let event = match self.next(delivery, queued, room).await? {
            Next::Change(event) => event,
            Next::HandBack(delay) => return Ok(Err(delay)),
        };
        // Every event for a queued job is legal for one; should that be wrong, it stays queued.
        let first = queued.apply(event, self.bus.now());
        Ok(Ok(first.unwrap_or_else(|_| queued.clone())))
    }

    /// Publishes a job that this worker moved to another queue.
    async fn pass_on(&self, delivery: &Delivery, record: &Record) {
        let is_elsewhere = record.queue.queue() != Some(&delivery.queue);
        if record.state == JobState::Queued
            && is_elsewhere
            && let Err(error) = self.jobs.publish(record).await
        {
            tracing::warn!(job = %record.id, %error, "passed on later, by the reconciler");
        }
    }

    /// Claims a job that has a record; none when the record was changed meanwhile.
    async fn claim(
        &self,
        delivery: &Delivery,
        entry: Entry<Record>,
        room: &mut Room,
    ) -> Result<Option<Settled>, BusError> {
        let event = if entry.value.state == JobState::Queued {
            match self.next(delivery, &entry.value, room).await? {
                Next::Change(event) => event,
                Next::HandBack(delay) => return Ok(Some(Settled::HandBack(delay))),
            }
        } else if let Some(delay) = self.put_off(delivery, &entry, room) {
            return Ok(Some(Settled::HandBack(delay)));
        } else {
            self.claim_event(delivery, &entry.value).await?
        };
        let is_claim = matches!(event, Event::Claim { .. } | Event::ClaimHere { .. });
        let running = self.claims.begin(&entry.value.id, entry.value.claim + 1);
        match self.jobs.change(&entry, event).await {
            Ok(claimed) if is_claim => Ok(Some(Settled::Claimed(Box::new(claimed), running))),
            Ok(changed) => {
                self.pass_on(delivery, &changed.value).await;
                Ok(Some(Settled::Over))
            }
            Err(ChangeError::Illegal(_) | ChangeError::Write(WriteError::Conflict(_))) => Ok(None),
            Err(ChangeError::Write(WriteError::Bus(error))) => Err(error),
        }
    }

    /// What happens to a queued job: the claim, or what stands before it.
    async fn next(
        &self,
        delivery: &Delivery,
        queued: &Record,
        room: &mut Room,
    ) -> Result<Next, BusError> {
        let mut states: Vec<(JobId, StateName)> = Vec::new();
        if looks_at_dependencies(queued) {
            for dependency in &queued.after {
                let entry = self.jobs.get_latest(&dependency.job).await?;
                states.extend(entry.map(|e| (dependency.job.clone(), e.value.state.name())));
            }
        }
        let state_of = |id: &JobId| {
            states
                .iter()
                .find(|(job, _)| job == id)
                .map(|found| found.1)
        };
        let event = match gate(queued, self.bus.now(), state_of) {
            Gate::Wait(on) => Event::Wait(on),
            Gate::Fail(error) => Event::Fail(error),
            Gate::Drop(error) => Event::Drop(error),
            Gate::Open if self.is_for_a_long_line(queued, room).await? => {
                self.claim_event(delivery, queued).await?
            }
            Gate::Open if !self.has_slot(delivery, room) => {
                if matches!(room, Room::Line(_)) {
                    // Those behind it are no more likely to be for a line.
                    self.locks.long_lines().forget();
                    return Ok(Next::HandBack(Duration::ZERO));
                }
                let needs = [("slot".to_owned(), "long".into())].into_iter().collect();
                Event::Wait(WaitReason::Capacity { needs })
            }
            Gate::Open => match self.perform.look(queued, delivery.delivered).await {
                Look::Claim => self.claim_event(delivery, queued).await?,
                Look::ClaimHere(queue) => Event::ClaimHere {
                    owner: self.owner(),
                    seq: delivery.seq,
                    queue,
                },
                Look::HandBack(delay) => return Ok(Next::HandBack(delay)),
                Look::Pass(queue) => Event::Move(queue),
                Look::Wait(on) => Event::Wait(on),
            },
        };
        Ok(Next::Change(event))
    }

    /// Whether the job may run. One that came without a slot has one from now on, if there is one.
    pub(crate) fn has_slot(&self, delivery: &Delivery, room: &mut Room) -> bool {
        if matches!(room, Room::Line(_))
            && let Some(slot) = self.slots.take(self.kind(delivery))
        {
            *room = Room::Slot(slot);
        }
        matches!(room, Room::Slot(_))
    }

    /// Whether the job, which came with nothing else, goes to the end of a long line.
    async fn is_for_a_long_line(&self, queued: &Record, room: &Room) -> Result<bool, BusError> {
        let is_asked = matches!(room, Room::Line(_));
        let Some(job) = self.assignment(queued).filter(|_| is_asked) else {
            return Ok(false);
        };
        // One whose locks can't be said is told so as it runs.
        let Ok(set) = self.lock_set(&job).await else {
            return Ok(false);
        };
        let (id, ticket) = (&queued.id, queued.ticket);
        self.locks.long_lines().leads_to_one(&set, id, ticket).await
    }

    async fn claim_event(&self, delivery: &Delivery, record: &Record) -> Result<Event, BusError> {
        let locks = &record.locks;
        let has_own = !locks.exclusive.is_empty() || !locks.shared.is_empty();
        let needs_locks =
            has_own || !record.objects.is_empty() || self.tenant_lock(record).await?.is_some();
        Ok(Event::Claim {
            owner: self.owner(),
            seq: delivery.seq,
            begin: !needs_locks,
        })
    }

    /// Copies a message that nobody will run to the dead letters, under the name that its job has
    /// here: what its publisher wrote may name another's.
    pub(crate) async fn bury(
        &self,
        delivery: &Delivery,
        job: &JobId,
        reason: Code,
    ) -> Result<(), BusError> {
        let reason = reason.as_str();
        let subject = delivery.queue.subject();
        let (stream, seq) = (delivery.queue.stream(), delivery.seq);
        let payload = delivery.payload();
        let letter = DeadLetter {
            subject: &subject,
            payload,
            job,
            reason,
            stream,
            seq,
        };
        self.jobs
            .dead_letter(letter)
            .await
            .map_err(|error| match error {
                PublishError::Bus(error) => error,
                PublishError::Full(subject) => BusError::Refused {
                    call: format!("a copy to dlq.{subject}"),
                    reason: "it is full".to_owned(),
                },
            })
    }
}

/// The message as the protocol sees it.
fn arrival(delivery: &Delivery) -> Arrival<'_> {
    Arrival {
        subject: delivery.subject(),
        payload: delivery.payload(),
        headers: Headers {
            msg_id: delivery.header(MSG_ID_HEADER),
            job: delivery.header(JOB_HEADER),
            generation: delivery.header(GENERATION_HEADER),
            traceparent: delivery.header(TRACE_HEADER),
        },
        stream: delivery.queue.stream(),
        seq: delivery.seq,
        time: delivery.published_at,
    }
}
