//! Acting: ask, compare, create or update, report.

use super::{
    Asset, Change, ConsumerDefinition, Effect, Item, Outcome, Report, StreamDefinition,
    TopologyError, consumer, consumers, diff, streams,
};
use crate::{client::Bus, transport::RequestFailed};
use async_nats::jetstream::{
    self, Context, ErrorCode,
    context::{RequestError, RequestErrorKind},
    response::Response,
};
use diff::Rules;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_wire::Queue;

/// What should be there, beside all streams and buckets.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Copies of each stream and bucket in a cluster (1, 3 or 5). `None`: 1 for what is made,
    /// and no change of what exists.
    pub replicas: Option<u8>,
    /// Whose consumers to make. `core` is always one of them.
    pub queues: Vec<Queue>,
}

/// Whether to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Create and update.
    Apply,
    /// Only look.
    DryRun,
}

/// What to do about one asset. Pure data: decided before anything is sent.
#[derive(Debug)]
pub(super) enum Plan {
    Leave(Vec<Change>),
    Create(Map<String, Value>),
    Update(Vec<Change>, Map<String, Value>),
    Refuse(Vec<Change>),
}

impl Plan {
    pub(super) fn new(
        rules: Rules,
        wanted: &Map<String, Value>,
        found: Option<&Map<String, Value>>,
    ) -> Self {
        let Some(found) = found else {
            return Self::Create(wanted.clone());
        };
        let changes = diff::changes(rules, wanted, found);
        if changes.iter().any(|change| change.effect == Effect::Fixed) {
            Self::Refuse(changes)
        } else if changes.iter().all(|change| change.effect == Effect::Kept) {
            Self::Leave(changes)
        } else {
            let config = diff::update(rules, wanted, found, &changes);
            Self::Update(changes, config)
        }
    }
}

/// Whether a request makes something or changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Update,
}

#[derive(Deserialize)]
struct StreamInfo {
    config: Map<String, Value>,
}

/// Compares the server with the files and `wanted`, and creates or updates what differs. Doing it
/// again changes nothing. Nothing is ever removed.
///
/// # Errors
/// [`TopologyError`] when the server doesn't answer. What it refuses is no error, but an
/// [`Outcome::Refused`] of the report; the other assets are still seen to.
pub async fn apply(js: &Context, wanted: &Wanted, mode: Mode) -> Result<Report, TopologyError> {
    let mut items = Vec::new();
    let mut absent = BTreeSet::new();
    for definition in streams()? {
        let (item, exists) = stream(js, &definition, wanted.replicas, mode).await?;
        if !exists {
            absent.insert(definition.stream());
        }
        items.push(item);
    }

    let queues: BTreeSet<&Queue> = wanted.queues.iter().chain([&Queue::Core]).collect();
    let mut found: BTreeMap<&str, BTreeMap<String, Map<String, Value>>> = BTreeMap::new();
    for queue in queues {
        let on = queue.stream();
        if !found.contains_key(on) {
            let configs = if absent.contains(on) {
                BTreeMap::new()
            } else {
                consumers::list(js, on).await?
            };
            found.insert(on, configs);
        }
        let definition = consumer(queue)?;
        let config = found.get(on).and_then(|on| on.get(&definition.name));
        items.push(consumer_item(js, definition, config, mode).await?);
    }
    Ok(Report {
        dry_run: mode == Mode::DryRun,
        items,
    })
}

/// The item of a stream, and whether the stream is there afterwards.
async fn stream(
    js: &Context,
    definition: &StreamDefinition,
    replicas: Option<u8>,
    mode: Mode,
) -> Result<(Item, bool), TopologyError> {
    let name = definition.stream();
    let asset = &definition.asset;
    let subject = format!("STREAM.INFO.{name}");
    let found = match request::<StreamInfo>(js, asset, &subject, &Value::Null).await? {
        Ok(info) => Some(info.config),
        Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => None,
        Err(source) => {
            let asset = asset.clone();
            return Err(TopologyError::Answer { asset, source });
        }
    };
    let mut config = definition.config.clone();
    if let Some(replicas) = replicas {
        config.insert("num_replicas".to_owned(), Value::from(replicas));
    }
    let rules = Rules::Stream {
        replicas_asked_for: replicas.is_some(),
    };
    let plan = Plan::new(rules, &config, found.as_ref());
    let item = carry_out(js, asset, plan, mode, |verb, config| {
        let subject = match verb {
            Verb::Create => format!("STREAM.CREATE.{name}"),
            Verb::Update => format!("STREAM.UPDATE.{name}"),
        };
        (subject, Value::Object(config))
    })
    .await?;
    let exists = found.is_some() || (item.outcome == Outcome::Created && mode == Mode::Apply);
    Ok((item, exists))
}

async fn consumer_item(
    js: &Context,
    definition: ConsumerDefinition,
    found: Option<&Map<String, Value>>,
    mode: Mode,
) -> Result<Item, TopologyError> {
    let plan = Plan::new(Rules::Consumer, &definition.config, found);
    carry_out(js, &definition.asset, plan, mode, |verb, config| {
        consumers::request_of(&definition, verb, config)
    })
    .await
}

async fn carry_out(
    js: &Context,
    asset: &Asset,
    plan: Plan,
    mode: Mode,
    request_of: impl Fn(Verb, Map<String, Value>) -> (String, Value),
) -> Result<Item, TopologyError> {
    let (verb, done, changes, config) = match plan {
        Plan::Leave(changes) => return Ok(item(asset, Outcome::Same, changes)),
        Plan::Refuse(changes) => {
            let reason = refusal(&changes);
            return Ok(item(asset, Outcome::Refused { reason }, changes));
        }
        Plan::Create(config) => (Verb::Create, Outcome::Created, Vec::new(), config),
        Plan::Update(changes, config) => (Verb::Update, Outcome::Updated, changes, config),
    };
    if mode == Mode::DryRun {
        return Ok(item(asset, done, changes));
    }
    let (subject, payload) = request_of(verb, config);
    let outcome = match request::<Value>(js, asset, &subject, &payload).await? {
        Ok(_) => done,
        Err(error) => Outcome::Refused {
            reason: error.to_string(),
        },
    };
    Ok(item(asset, outcome, changes))
}

fn item(asset: &Asset, outcome: Outcome, changes: Vec<Change>) -> Item {
    Item {
        asset: asset.clone(),
        outcome,
        changes,
    }
}

/// The fields that stand in the way, named.
fn refusal(changes: &[Change]) -> String {
    let fields: Vec<&str> = changes
        .iter()
        .filter(|change| change.effect == Effect::Fixed)
        .map(|change| change.field.as_str())
        .collect();
    format!("{} can't be changed on an existing one", fields.join(", "))
}

/// Who asks the server: the client's streams, or a service's connection.
pub trait Api: Sync {
    /// One request `$JS.API.<subject>`, and the answer's payload.
    #[doc(hidden)]
    fn ask_api(
        &self,
        subject: &str,
        payload: &Value,
    ) -> impl Future<Output = Result<Value, RequestError>> + Send;
}

impl Api for Context {
    async fn ask_api(&self, subject: &str, payload: &Value) -> Result<Value, RequestError> {
        self.request(subject.to_owned(), payload).await
    }
}

impl Api for Bus {
    async fn ask_api(&self, subject: &str, payload: &Value) -> Result<Value, RequestError> {
        let subject = format!("$JS.API.{subject}");
        let answer = self.ask(subject, None, payload.to_string().into()).await;
        let answer = answer.map_err(|failed| match failed {
            RequestFailed::NoResponders => RequestError::new(RequestErrorKind::NoResponders),
            RequestFailed::Refused(_) | RequestFailed::InDoubt(_) => {
                RequestError::with_source(RequestErrorKind::Other, failed)
            }
        })?;
        let unreadable = |error| RequestError::with_source(RequestErrorKind::Other, error);
        serde_json::from_slice(&answer.payload).map_err(unreadable)
    }
}

/// One JetStream API request: the outer error is the way there, the inner the server's word.
pub(super) async fn request<T: serde::de::DeserializeOwned>(
    api: &impl Api,
    asset: &Asset,
    subject: &str,
    payload: &Value,
) -> Result<Result<T, jetstream::Error>, TopologyError> {
    let failed = |source| TopologyError::Request {
        asset: asset.clone(),
        source,
    };
    let answer = api.ask_api(subject, payload).await.map_err(failed)?;
    let unreadable = |error| failed(RequestError::with_source(RequestErrorKind::Other, error));
    match serde_json::from_value(answer).map_err(unreadable)? {
        Response::Ok(answer) => Ok(Ok(answer)),
        Response::Err { error } => Ok(Err(error)),
    }
}
