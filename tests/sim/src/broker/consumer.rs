//! One pull consumer of a work queue: what it has given out, to whom it will give next.

use super::{
    Out,
    stream::{Ms, Stored, Stream},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};

/// A request for messages.
#[derive(Debug)]
struct Pull {
    route: String,
    left: u64,
    expires: Option<Ms>,
    no_wait: bool,
    /// With a limit of bytes that no message fits.
    no_room: bool,
}

/// A message that somebody has.
#[derive(Debug)]
struct Given {
    again: Ms,
    /// Waits to be given anew.
    queued: bool,
}

/// A consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    /// Its name.
    pub name: String,
    /// The one subject it takes from.
    pub filter: String,
    config: Map<String, Value>,
    ack_wait: Ms,
    deliver_max: u64,
    pending_max: usize,
    next: u64,
    given: BTreeMap<u64, Given>,
    again: VecDeque<u64>,
    counts: BTreeMap<u64, u64>,
    waiting: VecDeque<Pull>,
    paused: bool,
    delivered: u64,
}

/// A word about a message that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    /// It's done.
    Done,
    /// Give it anew, after so long.
    Again(Option<Ms>),
    /// Somebody works on it.
    Progress,
}

impl Consumer {
    /// As the server's own definition says.
    #[must_use]
    pub(super) fn new(config: &Map<String, Value>) -> Self {
        let text = |field: &str| {
            config
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let number = |field: &str| config.get(field).and_then(Value::as_u64).unwrap_or(0);
        let name = match text("durable_name") {
            "" => text("name"),
            name => name,
        };
        Self {
            name: name.to_owned(),
            filter: text("filter_subject").to_owned(),
            ack_wait: Ms::try_from(number("ack_wait") / 1_000_000).unwrap_or(30_000),
            deliver_max: number("max_deliver"),
            pending_max: usize::try_from(number("max_ack_pending")).unwrap_or(1_000),
            config: config.clone(),
            next: 1,
            given: BTreeMap::new(),
            again: VecDeque::new(),
            counts: BTreeMap::new(),
            waiting: VecDeque::new(),
            paused: false,
            delivered: 0,
        }
    }

    /// Holds everything back, or no longer.
    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// A request for messages came.
    pub(super) fn pull(&mut self, route: String, asked: &Value, now: Ms) {
        let number = |field: &str| asked[field].as_u64();
        let expires = number("expires").filter(|nanos| *nanos > 0);
        let expires = expires.and_then(|nanos| Ms::try_from(nanos / 1_000_000).ok());
        self.waiting.push_back(Pull {
            route,
            left: number("batch").unwrap_or(1).max(1),
            expires: expires.map(|wait| now + wait),
            no_wait: asked["no_wait"].as_bool().unwrap_or(false),
            no_room: number("max_bytes").is_some_and(|max| max > 0),
        });
    }

    /// Forgets the requests of a client that is gone.
    pub(super) fn forget(&mut self, inbox: &str) {
        self.waiting.retain(|pull| !pull.route.starts_with(inbox));
    }

    /// A word about a message; whoever says it.
    pub(super) fn ack(&mut self, stream: &mut Stream, seq: u64, ack: Ack, now: Ms) {
        match ack {
            Ack::Done => {
                self.given.remove(&seq);
                self.counts.remove(&seq);
                self.again.retain(|other| *other != seq);
                stream.remove(seq, now);
            }
            Ack::Progress => {
                if let Some(given) = self.given.get_mut(&seq) {
                    given.again = now + self.ack_wait;
                }
            }
            Ack::Again(delay) => {
                let Some(given) = self.given.get_mut(&seq) else {
                    return;
                };
                match delay.filter(|delay| *delay > 0) {
                    Some(delay) => given.again = now + delay,
                    None if given.queued => {}
                    None => {
                        given.queued = true;
                        self.again.push_back(seq);
                    }
                }
            }
        }
    }

    /// When it has something to do by itself.
    #[must_use]
    pub(super) fn next_time(&self) -> Option<Ms> {
        let again = self.given.values().filter(|given| !given.queued);
        let again = again.map(|given| given.again);
        let expires = self.waiting.iter().filter_map(|pull| pull.expires);
        again.chain(expires).min()
    }

    /// Gives out what can be given out.
    pub(super) fn pump(&mut self, stream: &mut Stream, now: Ms, out: &mut Vec<Out>) {
        for (seq, given) in &mut self.given {
            if !given.queued && given.again <= now {
                given.queued = true;
                self.again.push_back(*seq);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        let is_over = |pull: &Pull| pull.expires.is_some_and(|at| at <= now);
        for pull in waiting {
            if is_over(&pull) {
                out.push(Out::status(pull.route, 408, "Request Timeout"));
            } else {
                self.waiting.push_back(pull);
            }
        }
        while !self.paused && !self.waiting.is_empty() {
            if self.refuse_too_small(stream, out) {
                continue;
            }
            let Some(stored) = self.next_message(stream, out) else {
                break;
            };
            self.give(&stored, stream, now, out);
        }
        // Nothing is there at all: those that don't wait are told so.
        if self.again.is_empty() && stream.first_of(&self.filter, self.next).is_none() {
            let is_told = |pull: &Pull| pull.no_wait && pull.expires.is_none();
            for pull in self.waiting.iter().filter(|pull| is_told(pull)) {
                out.push(Out::status(pull.route.clone(), 404, "No Messages"));
            }
            self.waiting.retain(|pull| !is_told(pull));
        }
    }

    /// Answers the oldest request if something is there that doesn't fit it.
    fn refuse_too_small(&mut self, stream: &Stream, out: &mut Vec<Out>) -> bool {
        let is_there = !self.again.is_empty() || stream.first_of(&self.filter, self.next).is_some();
        let too_small = self.waiting.pop_front_if(|pull| is_there && pull.no_room);
        let Some(pull) = too_small else {
            return false;
        };
        let text = "Message Size Exceeds MaxBytes";
        out.push(Out::status(pull.route, 409, text));
        true
    }

    /// First what comes again, then what is new.
    fn next_message(&mut self, stream: &Stream, out: &mut Vec<Out>) -> Option<Stored> {
        while let Some(seq) = self.again.pop_front() {
            let count = self.counts.entry(seq).or_insert(1);
            *count += 1;
            if self.deliver_max > 0 && *count > self.deliver_max {
                if *count == self.deliver_max + 1 {
                    out.push(self.exhausted(&stream.name, seq));
                }
                self.given.remove(&seq);
                continue;
            }
            match stream.get(seq) {
                Some(stored) => return Some(stored.clone()),
                None => {
                    self.given.remove(&seq);
                    self.counts.remove(&seq);
                }
            }
        }
        if self.given.len() >= self.pending_max {
            return None;
        }
        let seq = stream.first_of(&self.filter, self.next)?;
        self.next = seq + 1;
        self.counts.insert(seq, 1);
        stream.get(seq).cloned()
    }

    fn give(&mut self, stored: &Stored, stream: &Stream, now: Ms, out: &mut Vec<Out>) {
        let Some(mut pull) = self.waiting.pop_front() else {
            return;
        };
        let seq = stored.seq;
        let again = now + self.ack_wait;
        self.given.insert(
            seq,
            Given {
                again,
                queued: false,
            },
        );
        self.delivered += 1;
        let count = self.counts.get(&seq).copied().unwrap_or(1);
        let nanos = stored.time * 1_000_000;
        let left = stream.count_of(&self.filter, self.next);
        let reply = format!(
            "$JS.ACK.{}.{}.{count}.{seq}.{}.{nanos}.{left}",
            stream.name, self.name, self.delivered
        );
        out.push(Out {
            route: pull.route.clone(),
            subject: stored.subject.to_string(),
            reply: Some(reply),
            headers: stored.headers.clone(),
            status: None,
            payload: stored.payload.clone(),
        });
        pull.left -= 1;
        if pull.left > 0 {
            self.waiting.push_back(pull);
        }
    }

    fn exhausted(&self, stream: &str, seq: u64) -> Out {
        let subject = format!(
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{}",
            self.name
        );
        let said = json!({
            "stream": stream,
            "consumer": self.name,
            "stream_seq": seq,
            "deliveries": self.deliver_max,
        });
        Out::message(subject, said.to_string())
    }

    /// What the server says of it.
    #[must_use]
    pub(super) fn info(&self, stream: &Stream) -> Value {
        let first = self.given.keys().next().copied().unwrap_or(self.next);
        json!({
            "stream_name": stream.name,
            "name": self.name,
            "config": self.config,
            "num_pending": stream.count_of(&self.filter, self.next),
            "num_ack_pending": self.given.len(),
            "num_waiting": self.waiting.len(),
            "ack_floor": {"consumer_seq": 0, "stream_seq": first.saturating_sub(1)},
            "delivered": {"consumer_seq": self.delivered, "stream_seq": self.next.saturating_sub(1)},
            "paused": self.paused,
        })
    }
}
