//! Direct reads, which any replica answers.

use super::{
    Broker, In, Out, stamp,
    stream::{Headers, Ms, Stored, Stream, matches},
};
use serde_json::Value;
use virtbus_wire::Timestamp;

/// A message's headers with those the server adds.
pub(super) fn headers(stream: &Stream, stored: &Stored) -> Headers {
    let mut headers = stored.headers.clone();
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
    add("Nats-Stream", stream.name.clone());
    add("Nats-Subject", stored.subject.to_string());
    add("Nats-Sequence", stored.seq.to_string());
    add("Nats-Time-Stamp", stamp(stored.time));
    headers
}

fn answer(reply: &str, stream: &Stream, stored: &Stored, place: Vec<(String, String)>) -> Out {
    let mut headers = headers(stream, stored);
    headers.extend(place);
    Out {
        route: reply.to_owned(),
        subject: reply.to_owned(),
        reply: None,
        headers,
        status: None,
        payload: stored.payload.clone(),
    }
}

/// What says where in a batch a message is: how many come after, and the sequence before.
fn place_of(pending: usize, before: u64) -> Vec<(String, String)> {
    vec![
        ("Nats-Num-Pending".to_owned(), pending.to_string()),
        ("Nats-Last-Sequence".to_owned(), before.to_string()),
    ]
}

impl Broker {
    /// `<stream>` with what is wanted in the payload, or `<stream>.<subject>`.
    pub(super) fn direct(&self, place: &str, message: &In, now: Ms, out: &mut Vec<Out>) {
        let Some(reply) = &message.reply else { return };
        let (name, subject) = match place.split_once('.') {
            Some((name, subject)) => (name, Some(subject)),
            None => (place, None),
        };
        let Some(stream) = self.streams.get(name) else {
            return;
        };
        let absent = || Out::status(reply.clone(), 404, "Message Not Found");
        let Some(subject) = subject else {
            return self.batch(stream, message, now, out);
        };
        let found = stream.last_of_old(subject, message.behind, now);
        out.push(found.map_or_else(absent, |stored| answer(reply, stream, &stored, Vec::new())));
    }

    fn batch(&self, stream: &Stream, message: &In, now: Ms, out: &mut Vec<Out>) {
        let Some(reply) = &message.reply else { return };
        let asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let count = asked["batch"].as_u64().unwrap_or(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (found, all) = wanted(stream, &asked, count, message.behind, now);
        if found.is_empty() {
            return out.push(Out::status(reply.clone(), 404, "Message Not Found"));
        }
        let mut before = 0;
        for (place, stored) in found.iter().enumerate() {
            let place = place_of(all - place - 1, before);
            out.push(answer(reply, stream, stored, place));
            before = stored.seq;
        }
        let mut end = Out::status(reply.clone(), 204, "EOB");
        end.headers = place_of(all.saturating_sub(count), before);
        out.push(end);
    }
}

/// The first of what is wanted, and how many there are in all.
fn wanted(
    stream: &Stream,
    asked: &Value,
    count: usize,
    behind: Ms,
    now: Ms,
) -> (Vec<Stored>, usize) {
    if let Some(subjects) = asked["multi_last"].as_array() {
        let subjects = subjects.iter().filter_map(Value::as_str);
        let last = subjects.filter_map(|subject| stream.last_of_old(subject, behind, now));
        let mut found: Vec<Stored> = last.collect();
        found.sort_by_key(|stored| stored.seq);
        let all = found.len();
        found.truncate(count);
        return (found, all);
    }
    let from = asked["seq"].as_u64().unwrap_or(1);
    let filter = asked["next_by_subj"].as_str().unwrap_or(">");
    let since = asked["start_time"].as_str();
    let since = since.and_then(|text| text.parse::<Timestamp>().ok());
    let since = since.map_or(Ms::MIN, Timestamp::as_millis);
    let everything = filter == ">";
    let (mut found, mut all) = (Vec::new(), 0);
    stream.look(from, behind, now, |stored| {
        if stored.time >= since && (everything || matches(filter, &stored.subject)) {
            all += 1;
            if all <= count {
                found.push(stored.clone());
            }
        }
    });
    (found, all)
}
