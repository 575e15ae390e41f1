//! Messages as the client of the server has them.

use crate::broker::{Out, stream::Headers};
use async_nats::{HeaderMap, Message, StatusCode};

/// A message as it comes to a client.
pub(super) fn to_message(out: Out) -> Message {
    let status = out.status.as_ref();
    Message {
        subject: out.subject.into(),
        reply: out.reply.map(Into::into),
        length: out.payload.len(),
        payload: out.payload,
        headers: (!out.headers.is_empty()).then(|| to_map(&out.headers)),
        status: status.and_then(|(code, _)| StatusCode::from_u16(*code).ok()),
        description: out.status.map(|(_, text)| text),
    }
}

fn to_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(name.as_str(), value.as_str());
    }
    map
}

/// The headers of a map, in an order of their own.
pub(crate) fn from_map(map: &HeaderMap) -> Headers {
    let mut headers: Headers = map
        .iter()
        .flat_map(|(name, values)| {
            let value = values.first().map(ToString::to_string);
            value.map(|value| (name.to_string(), value))
        })
        .collect();
    headers.sort_unstable();
    headers
}
