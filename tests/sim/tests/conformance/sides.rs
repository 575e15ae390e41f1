//! The two servers, and what matters of what they say.

use crate::Step;
use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use virtbus_bus::topology::{Mode, Wanted, apply};
use virtbus_sim::{
    broker::{Broker, In, Out, stream::Ms},
    net::BEGIN,
    process::queues,
};
use virtbus_testbed::{Server, until};

const ACK_WAIT: Ms = 30_000;

/// What matters of a message: for which step it came, and what it says.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    step: String,
    status: Option<u16>,
    headers: BTreeMap<String, String>,
    reply: Option<Vec<String>>,
    content: Value,
}

/// Headers that say something of when and where, and not what.
const PASSING: [&str; 6] = [
    "Nats-Time-Stamp",
    "Nats-Pending-Messages",
    "Nats-Pending-Bytes",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
    "Nats-TTL",
];

/// Fields of answers that the system looks at.
const FIELDS: [&str; 14] = [
    "seq",
    "duplicate",
    "err_code",
    "success",
    "message",
    "subject",
    "data",
    "num_pending",
    "num_ack_pending",
    "ack_floor",
    "stream_seq",
    "paused",
    "consumers",
    "name",
];

fn essence(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            if let Some(error) = fields.get("error") {
                return json!({"error": essence(error)});
            }
            let kept = fields.iter().filter(|(name, value)| {
                FIELDS.contains(&name.as_str()) && **value != Value::Bool(false)
            });
            let kept = kept.map(|(name, value)| (name.clone(), essence(value)));
            Value::Object(kept.collect())
        }
        Value::Array(all) => all.iter().map(essence).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn content(payload: &[u8]) -> Value {
    match serde_json::from_slice::<Value>(payload) {
        Ok(value @ Value::Object(_)) => essence(&value),
        Ok(_) | Err(_) => String::from_utf8_lossy(payload).into(),
    }
}

/// Delivered, sequence, and how many are left.
fn origin(reply: Option<&str>) -> Option<Vec<String>> {
    let tokens: Vec<&str> = reply?.split('.').collect();
    let wanted = [tokens.get(4)?, tokens.get(5)?, tokens.get(8)?];
    Some(wanted.map(ToString::to_string).to_vec())
}

fn step_of(route: &str) -> String {
    route.rsplit('.').next().unwrap_or_default().to_owned()
}

fn keep(headers: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    headers
        .filter(|(name, _)| !PASSING.contains(&name.as_str()))
        .collect()
}

/// The simulated server's side.
struct Simulated {
    broker: Broker,
    now: Ms,
    given: Vec<String>,
}

impl Simulated {
    fn take(&mut self, out: Vec<Out>) -> Vec<Seen> {
        let out = out.into_iter().filter(|out| out.route.starts_with("to."));
        out.map(|out| {
            self.given.extend(out.reply.clone());
            Seen {
                step: step_of(&out.route),
                status: out.status.as_ref().map(|(code, _)| *code),
                headers: keep(out.headers.into_iter()),
                reply: origin(out.reply.as_deref()),
                content: content(&out.payload),
            }
        })
        .collect()
    }

    fn step(&mut self, number: usize, step: &Step) -> Vec<Seen> {
        let message = match step {
            Step::Wait(long) => {
                let end = self.now + long;
                let mut seen = Vec::new();
                while let Some(at) = self.broker.next_time().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    let out = self.broker.tick(self.now);
                    seen.extend(self.take(out));
                }
                self.now = end;
                return seen;
            }
            Step::Say(nth, what) => In {
                subject: self.given[*nth].clone(),
                reply: Some(format!("to.{number}")),
                headers: Vec::new(),
                payload: (*what).into(),
                behind: 0,
            },
            Step::Send {
                subject,
                headers,
                payload,
            } => In {
                subject: subject.clone(),
                reply: Some(format!("to.{number}")),
                headers: headers
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), value.clone()))
                    .collect(),
                payload: payload.clone().into(),
                behind: 0,
            },
        };
        let out = self.broker.handle(&message, self.now);
        self.take(out.expect("somebody takes it"))
    }
}

/// The real server's side.
struct Real {
    client: Client,
    inbox: String,
    answers: Subscriber,
    given: Vec<String>,
}

impl Real {
    async fn step(&mut self, number: usize, step: &Step, expected: usize) -> Vec<Seen> {
        let reply = format!("{}.{number}", self.inbox);
        match step {
            Step::Wait(long) => {
                // What is due by then comes; nothing else is waited for.
                let long = Duration::from_millis(u64::try_from(*long).expect("a time"));
                let mut seen = Vec::new();
                let end = tokio::time::Instant::now() + long;
                while let Ok(message) = tokio::time::timeout_at(end, self.answers.next()).await {
                    seen.push(self.see(message.expect("a connection")));
                }
                return seen;
            }
            Step::Say(nth, what) => {
                let subject = self.given[*nth].clone();
                let sent = self
                    .client
                    .publish_with_reply(subject, reply, (*what).into());
                sent.await.expect("sent");
            }
            Step::Send {
                subject,
                headers,
                payload,
            } => {
                let mut map = HeaderMap::new();
                for (name, value) in headers {
                    map.insert(*name, value.as_str());
                }
                let (subject, payload) = (subject.clone(), payload.clone().into());
                let client = &self.client;
                let sent = client.publish_with_reply_and_headers(subject, reply, map, payload);
                sent.await.expect("sent");
            }
        }
        let mut seen = Vec::new();
        until("the answers", async || {
            while seen.len() < expected {
                let next = self.answers.next().await.expect("a connection");
                let next = self.see(next);
                seen.push(next);
            }
            Ok::<(), String>(())
        })
        .await;
        seen
    }

    fn see(&mut self, message: Message) -> Seen {
        let reply = message.reply.as_ref().map(ToString::to_string);
        let of_delivery = reply
            .as_deref()
            .filter(|reply| reply.starts_with("$JS.ACK"));
        self.given.extend(of_delivery.map(str::to_owned));
        let headers = message.headers.iter().flat_map(HeaderMap::iter);
        let headers = headers
            .filter_map(|(name, values)| Some((name.to_string(), values.first()?.to_string())));
        Seen {
            // A delivery's subject is the queue's own.
            step: match of_delivery {
                Some(_) => String::new(),
                None => step_of(&message.subject),
            },
            status: message.status.map(|status| status.as_u16()),
            headers: keep(headers),
            reply: origin(of_delivery),
            content: content(&message.payload),
        }
    }
}

/// Runs a script against both, step by step.
pub(crate) async fn same_on_both(script: Vec<Step>) {
    let server = Server::dev().await;
    let wanted = Wanted {
        replicas: None,
        queues: queues(),
    };
    let jetstream = server.jetstream().await;
    apply(&jetstream, &wanted, Mode::Apply)
        .await
        .expect("set up");
    let client = server.client().await;
    let inbox = client.new_inbox();
    let answers = client
        .subscribe(format!("{inbox}.*"))
        .await
        .expect("subscribed");
    let mut real = Real {
        client,
        inbox,
        answers,
        given: Vec::new(),
    };
    let mut simulated = Simulated {
        broker: Broker::new(&queues(), ACK_WAIT),
        now: BEGIN,
        given: Vec::new(),
    };
    for (number, step) in script.iter().enumerate() {
        let mut expected = simulated.step(number, step);
        for seen in &mut expected {
            if seen.reply.is_some() {
                seen.step = String::new();
            }
        }
        let mut seen = real.step(number, step, expected.len()).await;
        // An answer and what follows from the request come from different parts of the server.
        seen.sort_by_key(|seen| seen.step.clone());
        expected.sort_by_key(|seen| seen.step.clone());
        assert_eq!(
            seen, expected,
            "step {number}; left: real, right: simulated"
        );
    }
}
