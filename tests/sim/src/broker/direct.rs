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
        let found = match message.behind {
            0 => stream.last_of(subject).cloned(),
            behind => {
                let mut view = stream.view(1, behind, now).into_iter();
                view.rfind(|stored| *stored.subject == *subject)
            }
        };
        out.push(found.map_or_else(absent, |stored| answer(reply, stream, &stored, Vec::new())));
    }

    fn batch(&self, stream: &Stream, message: &In, now: Ms, out: &mut Vec<Out>) {
        let Some(reply) = &message.reply else { return };
        let asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let count = asked["batch"].as_u64().unwrap_or(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let found = wanted(stream, &asked, message.behind, now);
        if found.is_empty() {
            return out.push(Out::status(reply.clone(), 404, "Message Not Found"));
        }
        let all = found.len();
        let mut before = 0;
        for (place, stored) in found.iter().take(count).enumerate() {
            let place = place_of(all - place - 1, before);
            out.push(answer(reply, stream, stored, place));
            before = stored.seq;
        }
        let mut end = Out::status(reply.clone(), 204, "EOB");
        end.headers = place_of(all.saturating_sub(count), before);
        out.push(end);
    }
}

fn wanted(stream: &Stream, asked: &Value, behind: Ms, now: Ms) -> Vec<Stored> {
    if let Some(subjects) = asked["multi_last"].as_array() {
        let subjects = subjects.iter().filter_map(Value::as_str);
        let mut found: Vec<Stored> = match behind {
            0 => subjects
                .filter_map(|subject| stream.last_of(subject).cloned())
                .collect(),
            behind => {
                let view = stream.view(1, behind, now);
                let last = |subject: &str| view.iter().rfind(|m| *m.subject == *subject).cloned();
                subjects.filter_map(last).collect()
            }
        };
        found.sort_by_key(|stored| stored.seq);
        return found;
    }
    let from = asked["seq"].as_u64().unwrap_or(1);
    let filter = asked["next_by_subj"].as_str().unwrap_or(">");
    let since = asked["start_time"].as_str();
    let since = since.and_then(|text| text.parse::<Timestamp>().ok());
    let since = since.map_or(Ms::MIN, Timestamp::as_millis);
    let mut found = stream.view(from, behind, now);
    let everything = filter == ">";
    found.retain(|m| (everything || matches(filter, &m.subject)) && m.time >= since);
    found
}
