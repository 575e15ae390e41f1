//! What a server sends.

use crate::auth::Scope;
use crate::error::JobError;
use crate::id::{JobId, Tenant, User};
use crate::row::Row;
use crate::state::Progress;
use crate::task::value::Token;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "t", rename_all = "lowercase")]
pub enum ServerFrame {
    /// The answer to `hello`.
    Welcome(Welcome),
    /// Jobs as they are now: a snapshot and a change are the same.
    Jobs(Jobs),
    /// How far jobs came.
    Progress(ProgressFrame),
    /// An application's own message.
    Feedback(FeedbackFrame),
    /// The answer to `cmd` and `ping`.
    Reply(Reply),
    /// The connection lives; moves its cursor.
    Hb(Heartbeat),
    /// A subscription begins anew with a snapshot.
    Reset(Reset),
    /// The token ends soon.
    Expiring(Expiring),
    /// The connection ends.
    Bye(Bye),
}

/// The answer to `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Welcome {
    /// The version of the protocol.
    pub v: u32,
    /// The name of the sequence of changes.
    pub epoch: String,
    /// The place in it.
    pub seq: u64,
    /// Whether only what changed since the client's cursor is sent.
    pub resumed: bool,
    /// The server's time.
    pub now: Timestamp,
    /// Whom the token names.
    pub user: Who,
    /// What the connection may.
    pub limits: Limits,
}

/// Whom a token names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Who {
    /// The user.
    pub sub: User,
    /// The user's tenant.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// What the token allows.
    pub scopes: Vec<Scope>,
}

/// What a connection may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Subscriptions at once.
    pub subs: u32,
    /// Bytes of a frame.
    pub msg_bytes: u32,
}

/// Jobs as they are now. Each takes the place of the one held if its `seq` is larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Jobs {
    /// The subscription.
    pub sub: u32,
    /// The place in the sequence of changes.
    pub seq: u64,
    /// The jobs.
    pub jobs: Vec<Row>,
    /// Whether more of the snapshot comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Jobs that no longer match, or whose records are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<JobId>,
}

/// How far jobs came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressFrame {
    /// The subscription.
    pub sub: u32,
    /// The newest of each job.
    pub items: Vec<ProgressItem>,
}

/// How far one job came. To be passed over for a job that ended or has a later attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressItem {
    /// The job.
    pub id: JobId,
    /// The attempt.
    pub attempt: u32,
    /// How far it came.
    #[serde(flatten)]
    pub progress: Progress,
}

/// An application's own message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FeedbackFrame {
    /// What it's about.
    pub topic: Token,
    /// What the application has to say.
    pub payload: Value,
}

/// The answer to `cmd` and `ping`: a result or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reply {
    /// That of the question.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Whether it was accepted.
    pub ok: bool,
    /// The answer, as that of the control service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

impl Reply {
    /// The answer to a question.
    #[must_use]
    pub fn new(reference: String, answer: Result<Value, JobError>) -> Self {
        let (result, error) = match answer {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            reference,
            ok: error.is_none(),
            result,
            error,
        }
    }
}

/// The connection lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// The place in the sequence of changes.
    pub seq: u64,
    /// The server's time.
    pub now: Timestamp,
}

/// A subscription begins anew with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reset {
    /// The subscription.
    pub sub: u32,
    /// Why.
    pub reason: String,
}

/// The token ends soon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Expiring {
    /// When.
    pub at: Timestamp,
}

/// The connection ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bye {
    /// Why.
    pub reason: String,
    /// When to come back, in milliseconds.
    pub retry_after_ms: u64,
}

/// The names of all frames of a server.
const NAMES: [&str; 9] = [
    "welcome", "jobs", "progress", "feedback", "reply", "hb", "reset", "expiring", "bye",
];

/// Reads what a server sent; none for a frame of a later version, which a client passes over.
///
/// # Errors
/// What isn't JSON, or a frame that is known by name and can't be read.
pub fn decode_server(text: &str) -> Result<Option<ServerFrame>, serde_json::Error> {
    let frame: Value = serde_json::from_str(text)?;
    match frame.get("t").and_then(Value::as_str) {
        Some(name) if !NAMES.contains(&name) => Ok(None),
        Some(_) | None => serde_json::from_value(frame).map(Some),
    }
}
