//! Which pull request to send next: strict priority, as a pure state machine.
//!
//! Queues are swept from the most to the least urgent with requests that don't wait. Where one
//! was found empty a request that waits is armed, before the next is asked: from then on the
//! server tells at once what comes there, and the queue needs no sweep. A request that the server
//! still has is never repeated, and never taken back: a message delivered to a request taken back
//! too late would be stranded until `ack_wait`. What comes without a free slot is handed back
//! instead.

use std::time::Duration;
use tokio::time::Instant;
use virtbus_wire::Priority;

/// How long the server keeps a request that waits. The oldest one gets a message, so `ack_wait`,
/// 30 s, should be no multiple of this: what comes again then would come to the same worker each
/// time, though it may be one for another.
const ARMED: Duration = Duration::from_secs(7);
/// How long a request that doesn't wait may stay unanswered: the server parks one on a queue that
/// is paused or saturated, without telling.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);
/// After how long an unanswered request is taken for lost.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// How long a queue is left alone after the server refused a request.
const REFUSED: Duration = Duration::from_secs(1);
/// The most messages asked for at once, beside those that are read ahead.
const BATCH_MAX: u32 = 16;

/// How many jobs of each priority may be taken now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Appetite {
    /// Of priority `high`.
    pub high: u32,
    /// Of priority `default`.
    pub default: u32,
    /// Of priority `low`.
    pub low: u32,
    /// Whether `low` goes first this time, since it has less than its floor.
    pub low_first: bool,
    /// How many more may be read ahead, of any priority of which something may be taken.
    pub ahead: u32,
}

impl Appetite {
    /// How many jobs of this priority may be taken.
    #[must_use]
    pub fn of(self, priority: Priority) -> u32 {
        match priority {
            Priority::High => self.high,
            Priority::Default => self.default,
            Priority::Low => self.low,
        }
    }

    /// How many messages to ask a queue of this priority for.
    fn batch(self, priority: Priority) -> u32 {
        match self.of(priority) {
            0 => 0,
            count => count.min(BATCH_MAX).saturating_add(self.ahead),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this request.
    Pull(Pull),
    /// Wait for an answer, at most until then.
    Wait(Instant),
}

/// A request to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pull {
    /// The index of the queue it's for.
    pub(crate) queue: usize,
    /// Its number, which its answers name.
    pub(crate) number: u64,
    /// How many messages it asks for.
    pub(crate) batch: u32,
    /// How long the server keeps it; none = it answers at once.
    pub(crate) expires: Option<Duration>,
}

/// One request that the server may still have.
#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    sent: Instant,
    left: u32,
    is_sweep: bool,
}

#[derive(Debug)]
struct Source {
    priority: Priority,
    request: Option<Request>,
    /// Found empty since the sweep began.
    swept: bool,
    not_before: Option<Instant>,
}

/// The requests of one worker for all its queues.
#[derive(Debug)]
pub(crate) struct Pulls {
    sources: Vec<Source>,
    /// Where a sweep starts among queues of the same priority, so that none is always last.
    turn: usize,
    next_number: u64,
}

impl Pulls {
    pub(crate) fn new(priorities: impl IntoIterator<Item = Priority>) -> Self {
        let source = |priority| Source {
            priority,
            request: None,
            swept: false,
            not_before: None,
        };
        Self {
            sources: priorities.into_iter().map(source).collect(),
            turn: 0,
            next_number: 1,
        }
    }

    /// Begins a new sweep: a slot became free, or something more urgent may have come.
    pub(crate) fn restart(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        for source in &mut self.sources {
            source.swept = false;
        }
    }

    /// Forgets all requests: the connection was lost, and the server with them.
    pub(crate) fn reconnected(&mut self) {
        for source in &mut self.sources {
            source.request = None;
        }
        self.restart();
    }

    /// What to do next. A request is said again until it was [`Pulls::sent`].
    pub(crate) fn step(&mut self, appetite: Appetite, now: Instant) -> Step {
        self.forget_lost(now);
        for queue in self.order(appetite) {
            let wanted = appetite.batch(self.sources[queue].priority);
            let source = &self.sources[queue];
            let waits = source.not_before.is_some_and(|until| until > now);
            match source.request {
                _ if wanted == 0 || waits => {}
                // The more urgent queue must have said that it's empty before the next is asked.
                Some(request) if request.is_sweep && now < request.sent + SWEEP_PATIENCE => {
                    return Step::Wait(request.sent + SWEEP_PATIENCE);
                }
                // It's armed.
                Some(_) => {}
                None if source.swept => return Step::Pull(self.pull(queue, 1, Some(ARMED))),
                None => return Step::Pull(self.pull(queue, wanted, None)),
            }
        }
        Step::Wait(self.next_deadline(now))
    }

    /// Whether a message that came from this queue is its turn. One that a request brought which
    /// was armed long ago isn't while a more urgent queue may hold something that nobody asked for
    /// since: that queue's own request may have brought a message that no slot was free for.
    pub(crate) fn is_turn_of(&self, queue: usize, appetite: Appetite, now: Instant) -> bool {
        let request = self.sources[queue].request;
        if request.is_some_and(|request| request.is_sweep) {
            return true;
        }
        let priority = self.sources[queue].priority;
        let order = self.order(appetite).into_iter();
        let mut before = order
            .map(|other| &self.sources[other])
            .take_while(|source| source.priority != priority);
        before.all(|source| {
            let waits = source.not_before.is_some_and(|until| until > now);
            let is_answered = match source.request {
                Some(request) => !request.is_sweep || now >= request.sent + SWEEP_PATIENCE,
                None => source.swept,
            };
            appetite.of(source.priority) == 0 || waits || is_answered
        })
    }

    /// A message of this queue came.
    pub(crate) fn delivered(&mut self, queue: usize) {
        let request = &mut self.sources[queue].request;
        if let Some(pending) = request {
            pending.left = pending.left.saturating_sub(1);
            if pending.left == 0 {
                *request = None;
            }
        }
        self.restart();
    }

    /// The server answered the request of this number: nothing (more) is there.
    pub(crate) fn empty(&mut self, number: u64) {
        if let Some(source) = self.source_of(number) {
            source.swept = true;
            source.request = None;
        }
    }

    /// The server refused the request of this number.
    pub(crate) fn refused(&mut self, number: u64, now: Instant) {
        if let Some(source) = self.source_of(number) {
            source.request = None;
            source.not_before = Some(now + REFUSED);
        }
    }

    fn source_of(&mut self, number: u64) -> Option<&mut Source> {
        self.sources.iter_mut().find(|source| {
            source
                .request
                .is_some_and(|request| request.number == number)
        })
    }

    fn pull(&self, queue: usize, batch: u32, expires: Option<Duration>) -> Pull {
        Pull {
            queue,
            number: self.next_number,
            batch,
            expires,
        }
    }

    /// This request is on its way.
    pub(crate) fn sent(&mut self, pull: Pull, now: Instant) {
        self.next_number = pull.number + 1;
        let source = &mut self.sources[pull.queue];
        source.request = Some(Request {
            number: pull.number,
            sent: now,
            left: pull.batch,
            is_sweep: pull.expires.is_none(),
        });
        source.not_before = None;
    }

    fn forget_lost(&mut self, now: Instant) {
        for source in &mut self.sources {
            let lost = |request: &mut Request| now >= request.sent + FORGOTTEN;
            if source.request.take_if(lost).is_some() {
                source.swept = false;
            }
        }
    }

    /// The queues in the order they are asked.
    fn order(&self, appetite: Appetite) -> Vec<usize> {
        let count = self.sources.len();
        let mut order: Vec<usize> = (0..count).map(|i| (i + self.turn) % count.max(1)).collect();
        order.sort_by_key(|&queue| {
            let priority = self.sources[queue].priority;
            (!(appetite.low_first && priority == Priority::Low), priority)
        });
        order
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let ends = self.sources.iter().filter_map(|source| {
            let request = source.request.map(|request| request.sent + FORGOTTEN);
            match (request, source.not_before) {
                (None, Some(until)) if until > now => Some(until),
                (request, _) => request,
            }
        });
        ends.min().unwrap_or(now + FORGOTTEN)
    }
}

#[cfg(test)]
mod tests;
