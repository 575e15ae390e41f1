//! The requests `$JS.API.>`.

use super::{
    Broker, Consumer, In, Out, stamp,
    stream::{Ms, Stored},
};
use serde_json::{Value, json};

/// An answer that says what went wrong.
pub(super) fn error(status: u16, code: u16, text: &str) -> String {
    json!({"error": {"code": status, "err_code": code, "description": text}}).to_string()
}

fn no_stream() -> String {
    error(404, 10059, "stream not found")
}

fn no_consumer() -> String {
    error(404, 10014, "consumer not found")
}

impl Broker {
    pub(super) fn call(&mut self, call: &str, message: &In, now: Ms, out: &mut Vec<Out>) {
        if let Some(rest) = call.strip_prefix("DIRECT.GET.") {
            return self.direct(rest, message, now, out);
        }
        if let Some(rest) = call.strip_prefix("CONSUMER.MSG.NEXT.") {
            return self.next(rest, message, now, out);
        }
        let asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let answer = if let Some(stream) = call.strip_prefix("STREAM.MSG.GET.") {
            self.read(stream, &asked)
        } else if let Some(stream) = call.strip_prefix("STREAM.MSG.DELETE.") {
            self.delete(stream, &asked, now)
        } else if let Some(rest) = call.strip_prefix("CONSUMER.") {
            self.consumer_call(rest, &asked)
        } else {
            error(400, 10021, "not simulated")
        };
        if let Some(reply) = &message.reply {
            out.push(Out::message(reply.clone(), answer));
        }
    }

    fn next(&mut self, place: &str, message: &In, now: Ms, out: &mut Vec<Out>) {
        let (Some(reply), Some((stream, consumer))) = (&message.reply, place.split_once('.'))
        else {
            return;
        };
        let key = (stream.to_owned(), consumer.to_owned());
        if let (Some(stream), Some(consumer)) =
            (self.streams.get_mut(stream), self.consumers.get_mut(&key))
        {
            let asked: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            consumer.pull(reply.clone(), &asked, now);
            consumer.pump(stream, now, out);
        }
    }

    fn read(&self, stream: &str, asked: &Value) -> String {
        let Some(stream) = self.streams.get(stream) else {
            return no_stream();
        };
        let found = match (asked["last_by_subj"].as_str(), asked["seq"].as_u64()) {
            (Some(subject), _) => stream.last_of(subject),
            (None, Some(seq)) => stream.get(seq),
            (None, None) => None,
        };
        found.map_or_else(|| error(404, 10037, "no message found"), raw)
    }

    fn delete(&mut self, stream: &str, asked: &Value, now: Ms) -> String {
        let Some(stream) = self.streams.get_mut(stream) else {
            return no_stream();
        };
        let seq = asked["seq"].as_u64().unwrap_or(0);
        match stream.remove(seq, now) {
            true => json!({"success": true}).to_string(),
            false => error(500, 10057, "no message found"),
        }
    }

    fn consumer_call(&mut self, call: &str, asked: &Value) -> String {
        let tokens: Vec<&str> = call.splitn(4, '.').collect();
        let [verb, stream, ..] = tokens[..] else {
            return error(400, 10021, "not simulated");
        };
        if !self.streams.contains_key(stream) {
            return no_stream();
        }
        let key = |name: &str| (stream.to_owned(), name.to_owned());
        match (verb, tokens.get(2)) {
            ("LIST" | "NAMES", _) => self.list(stream, verb == "NAMES", asked),
            ("INFO", Some(name)) => {
                let info = self.consumers.get(&key(name));
                let info = info.map(|consumer| consumer.info(&self.streams[stream]).to_string());
                info.unwrap_or_else(no_consumer)
            }
            ("DELETE", Some(name)) => match self.consumers.remove(&key(name)) {
                Some(_) => json!({"success": true}).to_string(),
                None => no_consumer(),
            },
            ("CREATE", Some(name)) => {
                let config = asked["config"].as_object().cloned().unwrap_or_default();
                let consumer = Consumer::new(&config);
                let consumer = self.consumers.entry(key(name)).or_insert(consumer);
                consumer.info(&self.streams[stream]).to_string()
            }
            ("PAUSE", Some(name)) => {
                let Some(consumer) = self.consumers.get_mut(&key(name)) else {
                    return no_consumer();
                };
                let until = &asked["pause_until"];
                // A real one doesn't look at the requests that wait when a pause ends either.
                consumer.pause(until.is_string());
                json!({"paused": until.is_string(), "pause_until": until}).to_string()
            }
            _ => error(400, 10021, "not simulated"),
        }
    }

    fn list(&self, stream: &str, names: bool, asked: &Value) -> String {
        let on = &self.streams[stream];
        let consumers = self.consumers.iter().filter(|((of, _), _)| of == stream);
        let all: Vec<Value> = consumers
            .map(|(_, consumer)| match names {
                true => json!(consumer.name),
                false => consumer.info(on),
            })
            .collect();
        let offset = asked["offset"].as_u64().unwrap_or(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        let shown = &all[offset..];
        json!({"total": all.len(), "offset": offset, "limit": 256, "consumers": shown}).to_string()
    }
}

/// A message as the leader gives it.
pub(crate) fn raw(stored: &Stored) -> String {
    let mut text = format!(
        r#"{{"message":{{"subject":"{}","seq":{},"time":"{}","data":""#,
        stored.subject,
        stored.seq,
        stamp(stored.time)
    );
    base64(&stored.payload, &mut text);
    if !stored.headers.is_empty() {
        let mut lines = "NATS/1.0\r\n".to_owned();
        for (name, value) in &stored.headers {
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        lines.push_str("\r\n");
        text.push_str(r#"","hdrs":""#);
        base64(lines.as_bytes(), &mut text);
    }
    text.push_str("\"}}");
    text
}

fn base64(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let part = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for digit in 0..4 {
            let is_filled = digit <= chunk.len();
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(match is_filled {
                true => char::from(DIGITS[index as usize]),
                false => '=',
            });
        }
    }
}
