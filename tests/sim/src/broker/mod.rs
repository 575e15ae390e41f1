//! The messaging server, as far as the system uses it: streams, work queues, buckets, direct
//! reads. It has no clock and no network of its own: who calls it says when, and carries what it
//! answers.

mod api;
mod consumer;
mod direct;
pub mod stream;

pub(crate) use api::raw;

use bytes::Bytes;
use consumer::{Ack, Consumer};
use serde_json::Value;
use std::collections::BTreeMap;
use stream::{Headers, Ms, Published, Stream, header};
use virtbus_bus::topology;
use virtbus_wire::{Queue, Timestamp};

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    /// Who gets it: those that listen to this subject.
    pub route: String,
    /// What it calls itself.
    pub subject: String,
    /// Where words about it go.
    pub reply: Option<String>,
    /// Its headers.
    pub headers: Headers,
    /// The status of an answer that is no message.
    pub status: Option<(u16, String)>,
    /// Its content.
    pub payload: Bytes,
}

impl Out {
    /// A plain message.
    pub(crate) fn message(route: String, payload: String) -> Self {
        Self {
            subject: route.clone(),
            route,
            reply: None,
            headers: Vec::new(),
            status: None,
            payload: payload.into(),
        }
    }

    fn status(route: String, code: u16, text: &str) -> Self {
        Self {
            status: Some((code, text.to_owned())),
            ..Self::message(route, String::new())
        }
    }
}

/// A message to the server.
#[derive(Debug, Clone)]
pub struct In {
    /// Where it's sent to.
    pub subject: String,
    /// Where the answer goes.
    pub reply: Option<String>,
    /// Its headers.
    pub headers: Headers,
    /// Its content.
    pub payload: Bytes,
    /// How old the replica's view is that answers a direct read.
    pub behind: Ms,
}

/// The server.
#[derive(Debug)]
pub struct Broker {
    streams: BTreeMap<String, Stream>,
    consumers: BTreeMap<(String, String), Consumer>,
}

impl Broker {
    /// With all streams and buckets of the system, and the consumers of these queues.
    ///
    /// # Panics
    /// When the definitions can't be read.
    #[must_use]
    pub fn new(queues: &[Queue], ack_wait: Ms) -> Self {
        let definitions = topology::streams().expect("definitions of streams");
        let streams = definitions.iter().map(|definition| {
            let stream = Stream::new(&definition.config);
            (stream.name.clone(), stream)
        });
        let mut broker = Self {
            streams: streams.collect(),
            consumers: BTreeMap::new(),
        };
        for queue in queues {
            let mut definition = topology::consumer(queue).expect("a consumer's definition");
            let nanos = Value::from(ack_wait * 1_000_000);
            definition.config.insert("ack_wait".to_owned(), nanos);
            let consumer = Consumer::new(&definition.config);
            let key = (queue.stream().to_owned(), consumer.name.clone());
            broker.consumers.insert(key, consumer);
        }
        broker
    }

    /// A stream by its name.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.get(name)
    }

    /// A stream by its name, to change it.
    pub fn stream_mut(&mut self, name: &str) -> Option<&mut Stream> {
        self.streams.get_mut(name)
    }

    /// Stores a message from before the beginning.
    pub fn put(&mut self, subject: &str, payload: Bytes, now: Ms) {
        let mut takers = self.streams.values_mut();
        if let Some(stream) = takers.find(|stream| stream.takes(subject)) {
            stream.publish(subject, Headers::new(), payload, now);
        }
    }

    /// Forgets what a client asked for that is gone.
    pub fn forget(&mut self, inbox: &str) {
        for consumer in self.consumers.values_mut() {
            consumer.forget(inbox);
        }
    }

    /// Takes a message, and says what follows from it. None when nobody takes this subject.
    pub fn handle(&mut self, message: &In, now: Ms) -> Option<Vec<Out>> {
        let mut out = Vec::new();
        let subject = message.subject.as_str();
        if let Some(call) = subject.strip_prefix("$JS.API.") {
            self.call(call, message, now, &mut out);
        } else if let Some(origin) = subject.strip_prefix("$JS.ACK.") {
            self.acknowledge(origin, message, now, &mut out);
        } else if !self.publish(message, now, &mut out) {
            return None;
        }
        Some(self.advise(out, now))
    }

    /// What follows from the time alone.
    pub fn tick(&mut self, now: Ms) -> Vec<Out> {
        let mut out = Vec::new();
        for stream in self.streams.values_mut() {
            for seq in stream.expire(now) {
                republish(stream, seq, 0, &mut out);
            }
        }
        for ((stream, _), consumer) in &mut self.consumers {
            if let Some(stream) = self.streams.get_mut(stream)
                && consumer.next_time().is_some_and(|at| at <= now)
            {
                consumer.pump(stream, now, &mut out);
            }
        }
        self.advise(out, now)
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_time(&self) -> Option<Ms> {
        let streams = self.streams.values().filter_map(Stream::next_expiry);
        let consumers = self.consumers.values().filter_map(Consumer::next_time);
        streams.chain(consumers).min()
    }

    /// Stores the server's own notices where a stream takes them.
    fn advise(&mut self, out: Vec<Out>, now: Ms) -> Vec<Out> {
        let (notices, out): (Vec<Out>, Vec<Out>) = out
            .into_iter()
            .partition(|out| out.route.starts_with("$JS.EVENT."));
        for notice in notices {
            let mut taken = self.streams.values_mut();
            if let Some(stream) = taken.find(|stream| stream.takes(&notice.route)) {
                stream.publish(&notice.route, Vec::new(), notice.payload, now);
            }
        }
        out
    }

    fn publish(&mut self, message: &In, now: Ms, out: &mut Vec<Out>) -> bool {
        let mut takers = self.streams.values_mut();
        let Some(stream) = takers.find(|stream| stream.takes(&message.subject)) else {
            return false;
        };
        let before = stream.last_of(&message.subject).map_or(0, |last| last.seq);
        let (headers, payload) = (message.headers.clone(), message.payload.clone());
        let published = stream.publish(&message.subject, headers, payload, now);
        let name = stream.name.clone();
        let answer = match published {
            Published::Stored(seq) => format!(r#"{{"stream":"{name}","seq":{seq}}}"#),
            Published::Duplicate(seq) => {
                format!(r#"{{"stream":"{name}","seq":{seq},"duplicate":true}}"#)
            }
            Published::WrongLast(last) => {
                let text = format!("wrong last sequence: {last}");
                api::error(400, 10071, &text)
            }
            Published::Full => api::error(503, 10077, "maximum messages per subject exceeded"),
        };
        if let Some(reply) = &message.reply {
            out.push(Out::message(reply.clone(), answer));
        }
        if let Published::Stored(seq) = published {
            republish(stream, seq, before, out);
            let is_queue = stream.is_queue;
            let mine = |((on, _), consumer): &(&(String, String), &mut Consumer)| {
                *on == name && consumer.filter == message.subject
            };
            if is_queue && let Some((_, consumer)) = self.consumers.iter_mut().find(mine) {
                consumer.pump(stream, now, out);
            }
        }
        true
    }

    /// `<stream>.<consumer>.<delivered>.<seq>.…`
    fn acknowledge(&mut self, origin: &str, message: &In, now: Ms, out: &mut Vec<Out>) {
        let tokens: Vec<&str> = origin.split('.').collect();
        let (Some(stream), Some(name)) = (tokens.first(), tokens.get(1)) else {
            return;
        };
        let seq = tokens.get(3).and_then(|seq| seq.parse().ok()).unwrap_or(0);
        let key = ((*stream).to_owned(), (*name).to_owned());
        let (Some(stream), Some(consumer)) =
            (self.streams.get_mut(*stream), self.consumers.get_mut(&key))
        else {
            return;
        };
        let said = String::from_utf8_lossy(&message.payload);
        let ack = match said.as_ref() {
            "+WPI" => Ack::Progress,
            text if text.starts_with("-NAK") => {
                let json: Value = serde_json::from_str(text[4..].trim()).unwrap_or_default();
                Ack::Again(json["delay"].as_i64().map(|nanos| nanos / 1_000_000))
            }
            _ => Ack::Done,
        };
        consumer.ack(stream, seq, ack, now);
        if let Some(reply) = &message.reply {
            out.push(Out::message(reply.clone(), String::new()));
        }
        consumer.pump(stream, now, out);
    }
}

/// What a stream publishes of a change again.
fn republish(stream: &Stream, seq: u64, before: u64, out: &mut Vec<Out>) {
    let (Some((from, to)), Some(stored)) = (&stream.republish, stream.get(seq)) else {
        return;
    };
    let Some(rest) = stored.subject.strip_prefix(from.as_str()) else {
        return;
    };
    let subject = format!("{to}{rest}");
    let mut headers = direct::headers(stream, stored);
    headers.push(("Nats-Last-Sequence".to_owned(), before.to_string()));
    out.push(Out {
        route: subject.clone(),
        subject,
        reply: None,
        headers,
        status: None,
        payload: stored.payload.clone(),
    });
}

/// A time as the server prints it.
pub(crate) fn stamp(at: Ms) -> String {
    Timestamp::from_millis(at).to_string()
}

/// A header's value.
#[must_use]
pub fn header_of<'a>(out: &'a Out, name: &str) -> Option<&'a str> {
    header(&out.headers, name)
}
