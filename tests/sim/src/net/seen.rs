//! What the checker gets to see of what went through the server.

use crate::broker::{Broker, In, stream::Ms};
use bytes::Bytes;
use std::{collections::HashMap, sync::Arc};
use virtbus_wire::protocol::delivery::GENERATION_HEADER;

/// The buckets of which the checker sees every version.
const KEPT: [(&str, &str); 3] = [
    ("KV_jobs", "$KV.jobs."),
    ("KV_locks", "$KV.locks."),
    ("KV_disks", "$KV.disks."),
];

/// A message that was published to a work queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// When.
    pub at: Ms,
    /// Where.
    pub subject: String,
    /// Its sequence.
    pub seq: u64,
    /// Which publication of its job it says that it is.
    pub generation: u64,
}

/// What was stored, published and given out.
#[derive(Debug, Default)]
pub struct Seen {
    /// What was stored: time, subject, sequence, content.
    pub stored: Vec<(Ms, Arc<str>, u64, Bytes)>,
    /// What was published to work queues, by sequence.
    pub queued: Vec<Queued>,
    /// What was given to workers: time, subject, sequence, start of a process.
    pub given: Vec<(Ms, String, u64, usize)>,
    known: HashMap<String, u64>,
}

impl Seen {
    /// Keeps what was stored under a subject that the checker looks at.
    pub(super) fn remember(&mut self, broker: &Broker, message: &In, now: Ms) {
        if message.subject.starts_with("storage.") {
            self.queue(broker, message, now);
        }
        for (bucket, prefix) in KEPT {
            if !message.subject.starts_with(prefix) {
                continue;
            }
            let stream = broker.stream(bucket);
            let last = stream.and_then(|stream| stream.last_of(&message.subject));
            let Some(last) = last else { continue };
            let (subject, seq, payload) = (last.subject.clone(), last.seq, last.payload.clone());
            let known = self.known.insert(message.subject.clone(), seq);
            if known != Some(seq) {
                self.stored.push((now, subject, seq, payload));
            }
        }
    }

    fn queue(&mut self, broker: &Broker, message: &In, now: Ms) {
        let seq = broker.stream("STORAGE").map_or(0, |stream| stream.last);
        // One that was published before, or had no room, isn't there anew.
        if self.queued.last().is_some_and(|last| last.seq >= seq) {
            return;
        }
        let mut headers = message.headers.iter();
        let generation = headers.find(|(name, _)| name == GENERATION_HEADER);
        let generation = generation.and_then(|(_, text)| text.parse().ok());
        self.queued.push(Queued {
            at: now,
            subject: message.subject.clone(),
            seq,
            generation: generation.unwrap_or(1),
        });
    }
}
