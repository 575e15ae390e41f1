//! One stream: messages by sequence, the newest of each subject, what was published twice, and
//! what leaves by itself.

use bytes::Bytes;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

/// Milliseconds of the simulated server's clock, since 1970.
pub type Ms = i64;

/// How far back an old replica's view can be made again.
const REPLICA_BEHIND_MAX: Ms = 5_000;

/// Header names and values.
pub type Headers = Vec<(String, String)>;

/// A stored message.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence.
    pub seq: u64,
    /// Its subject.
    pub subject: Arc<str>,
    /// The publisher's headers.
    pub headers: Headers,
    /// Its content.
    pub payload: Bytes,
    /// When it was taken.
    pub time: Ms,
    /// When it goes by itself.
    expires: Option<Ms>,
}

impl Stored {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// A header's value.
#[must_use]
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// What came of a publication.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// It's stored.
    Stored(u64),
    /// The same message id came before.
    Duplicate(u64),
    /// The last message of the subject is another than was expected.
    WrongLast(u64),
    /// The subject takes no more.
    Full,
}

/// One change, to be taken back for an old replica's view.
#[derive(Debug)]
enum Undo {
    Inserted(u64),
    Removed(Stored),
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    subject: String,
    pub(super) is_queue: bool,
    per_subject_max: Option<usize>,
    max_age: Option<Ms>,
    marker_ttl: Option<Ms>,
    window: Ms,
    /// Where changes are published again: prefix and its replacement.
    pub(super) republish: Option<(String, String)>,
    messages: BTreeMap<u64, Stored>,
    by_subject: BTreeMap<Arc<str>, BTreeSet<u64>>,
    /// The newest sequence.
    pub last: u64,
    ids: HashMap<String, (u64, Ms)>,
    expiry: BTreeSet<(Ms, u64)>,
    undo: VecDeque<(Ms, Undo)>,
}

fn millis(config: &Map<String, Value>, field: &str) -> Option<Ms> {
    let nanos = config.get(field).and_then(Value::as_i64)?;
    (nanos > 0).then_some(nanos / 1_000_000)
}

impl Stream {
    /// As the server's own definition says.
    #[must_use]
    pub fn new(config: &Map<String, Value>) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let count = |field: &str| config.get(field).and_then(Value::as_u64);
        let republish = config.get("republish").map(|rule| {
            let (src, dest) = (text(&rule["src"]), text(&rule["dest"]));
            let fixed = |pattern: &str| pattern.split(['*', '{', '>']).next().map(str::to_owned);
            (
                fixed(&src).unwrap_or_default(),
                fixed(&dest).unwrap_or_default(),
            )
        });
        let per_subject_max = count("max_msgs_per_subject");
        Self {
            name: text(&config["name"]),
            subject: text(&config["subjects"][0]),
            is_queue: config["retention"] == "workqueue",
            per_subject_max: per_subject_max.and_then(|count| usize::try_from(count).ok()),
            max_age: millis(config, "max_age"),
            marker_ttl: millis(config, "subject_delete_marker_ttl"),
            window: millis(config, "duplicate_window").unwrap_or(120_000),
            republish,
            messages: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            last: 0,
            ids: HashMap::new(),
            expiry: BTreeSet::new(),
            undo: VecDeque::new(),
        }
    }

    /// How many messages one subject takes.
    pub fn limit(&mut self, per_subject: usize) {
        self.per_subject_max = Some(per_subject);
    }

    /// Whether a subject is one of its own.
    #[must_use]
    pub fn takes(&self, subject: &str) -> bool {
        matches(&self.subject, subject)
    }

    /// Stores a message.
    pub fn publish(
        &mut self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        now: Ms,
    ) -> Published {
        let id = header(&headers, "Nats-Msg-Id").map(str::to_owned);
        if let Some(id) = &id
            && let Some((seq, time)) = self.ids.get(id)
            && now - time < self.window
        {
            return Published::Duplicate(*seq);
        }
        let last = self.last_of(subject).map_or(0, |stored| stored.seq);
        let expected = header(&headers, "Nats-Expected-Last-Subject-Sequence");
        if expected.is_some_and(|expected| expected.parse() != Ok(last)) {
            return Published::WrongLast(last);
        }
        if self.is_queue {
            let lying = self.by_subject.get(subject).map_or(0, BTreeSet::len);
            if self.per_subject_max.is_some_and(|max| lying >= max) {
                return Published::Full;
            }
        }
        let seq = self.insert(subject, headers, payload, now);
        if let Some(id) = id {
            self.ids.insert(id, (seq, now));
        }
        Published::Stored(seq)
    }

    fn insert(&mut self, subject: &str, headers: Headers, payload: Bytes, now: Ms) -> u64 {
        self.last += 1;
        let seq = self.last;
        let ttl =
            header(&headers, "Nats-TTL").and_then(|ttl| ttl.trim_end_matches('s').parse().ok());
        let ttl = ttl.map(|seconds: Ms| seconds * 1_000);
        let ages = [ttl, self.max_age];
        let expires = ages.into_iter().flatten().min().map(|age| now + age);
        let subject: Arc<str> = subject.into();
        let seqs = self.by_subject.entry(Arc::clone(&subject)).or_default();
        seqs.insert(seq);
        let replaced = match (self.is_queue, self.per_subject_max) {
            (false, Some(max)) if seqs.len() > max => seqs.first().copied(),
            _ => None,
        };
        self.expiry.extend(expires.map(|at| (at, seq)));
        self.note(now, Undo::Inserted(seq));
        self.messages.insert(
            seq,
            Stored {
                seq,
                subject,
                headers,
                payload,
                time: now,
                expires,
            },
        );
        if let Some(old) = replaced {
            self.remove(old, now);
        }
        seq
    }

    /// Removes a message; false when there is none of this sequence.
    pub fn remove(&mut self, seq: u64, now: Ms) -> bool {
        let Some(stored) = self.messages.remove(&seq) else {
            return false;
        };
        if let Some(at) = stored.expires {
            self.expiry.remove(&(at, seq));
        }
        if let Some(seqs) = self.by_subject.get_mut(&stored.subject) {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.by_subject.remove(&stored.subject);
            }
        }
        self.note(now, Undo::Removed(stored));
        true
    }

    fn note(&mut self, now: Ms, undo: Undo) {
        self.undo.push_back((now, undo));
        while let Some((time, _)) = self.undo.front() {
            if now - time <= REPLICA_BEHIND_MAX {
                break;
            }
            self.undo.pop_front();
        }
    }

    /// Removes what is too old, and returns the marks left in place of it.
    pub fn expire(&mut self, now: Ms) -> Vec<u64> {
        let mut marks = Vec::new();
        while let Some((at, seq)) = self.expiry.first().copied() {
            if at > now {
                break;
            }
            let Some(stored) = self.messages.get(&seq).cloned() else {
                self.expiry.remove(&(at, seq));
                continue;
            };
            self.remove(seq, now);
            let is_mark = stored.header("Nats-Marker-Reason").is_some();
            let is_last = self.last_of(&stored.subject).is_none();
            if let (Some(ttl), false, true) = (self.marker_ttl, is_mark, is_last) {
                let headers = vec![
                    ("Nats-Marker-Reason".to_owned(), "MaxAge".to_owned()),
                    ("Nats-TTL".to_owned(), format!("{}s", ttl / 1_000)),
                ];
                marks.push(self.insert(&stored.subject, headers, Bytes::new(), now));
            }
        }
        marks
    }

    /// When the next message goes by itself.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Ms> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// A message.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&Stored> {
        self.messages.get(&seq)
    }

    /// The newest message of a subject.
    #[must_use]
    pub fn last_of(&self, subject: &str) -> Option<&Stored> {
        let seq = self.by_subject.get(subject)?.last()?;
        self.messages.get(seq)
    }

    /// The first message of one subject from a sequence on.
    #[must_use]
    pub fn first_of(&self, subject: &str, from: u64) -> Option<u64> {
        self.by_subject.get(subject)?.range(from..).next().copied()
    }

    /// How many messages of one subject there are from a sequence on.
    #[must_use]
    pub fn count_of(&self, subject: &str, from: u64) -> usize {
        let seqs = self.by_subject.get(subject);
        seqs.map_or(0, |seqs| seqs.range(from..).count())
    }

    /// All messages, by sequence.
    pub fn messages(&self) -> impl Iterator<Item = &Stored> {
        self.messages.values()
    }

    /// Looks at the messages from a sequence on, as they were so long ago.
    pub fn look(&self, from: u64, behind: Ms, now: Ms, mut at: impl FnMut(&Stored)) {
        let is_newer = |time: &Ms| *time > now - behind;
        if behind == 0 || !self.undo.back().is_some_and(|(time, _)| is_newer(time)) {
            return self.messages.range(from..).for_each(|(_, m)| at(m));
        }
        let mut old: BTreeMap<u64, &Stored> =
            self.messages.iter().map(|(seq, m)| (*seq, m)).collect();
        for (time, undo) in self.undo.iter().rev() {
            if !is_newer(time) {
                break;
            }
            match undo {
                Undo::Inserted(seq) => {
                    old.remove(seq);
                }
                Undo::Removed(stored) => {
                    old.insert(stored.seq, stored);
                }
            }
        }
        old.range(from..).for_each(|(_, m)| at(m));
    }

    /// The newest message of a subject, as it was so long ago.
    #[must_use]
    pub fn last_of_old(&self, subject: &str, behind: Ms, now: Ms) -> Option<Stored> {
        if behind == 0 {
            return self.last_of(subject).cloned();
        }
        let mut last = None;
        self.look(1, behind, now, |stored| {
            if *stored.subject == *subject {
                last = Some(stored.clone());
            }
        });
        last
    }
}

/// Whether a subject matches a pattern.
#[must_use]
pub fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}
