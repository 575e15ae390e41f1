//! The frames of the websocket protocol `jobs.v1`: JSON text, `t` names the frame. Fields that a
//! reader doesn't know are passed over.

mod server;
pub use server::{
    Bye, Expiring, FeedbackFrame, Heartbeat, Jobs, Limits, ProgressFrame, ProgressItem, Reply,
    Reset, ServerFrame, Welcome, Who, decode_server,
};

use crate::control::{Cancel, ChangePriority, OfJob, OnQueue, Submission};
use crate::error::JobError;
use crate::id::JobId;
use crate::json;
use crate::row::Outline;
use crate::state::StateName;
use crate::task::value::Bounded;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The websocket's subprotocol.
pub const SUBPROTOCOL: &str = "jobs.v1";
/// The version in `hello` and `welcome`.
pub const VERSION: u32 = 1;
/// The most entries of each list of a filter.
pub const FILTER_ENTRIES_MAX: usize = 256;
/// The most bytes of a `ref`.
pub const REF_BYTES_MAX: usize = 128;

/// Why a server closes a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// A frame that can't be read.
    BadMessage,
    /// No valid token.
    Token,
    /// Not allowed.
    Forbidden,
    /// Another version than [`VERSION`].
    Version,
    /// No `hello` in time.
    NoHello,
    /// A frame that is too large.
    TooLarge,
    /// Too slow, or too much.
    TooMany,
}

impl Close {
    /// The number in the close frame.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::BadMessage => 4400,
            Self::Token => 4401,
            Self::Forbidden => 4403,
            Self::Version => 4406,
            Self::NoHello => 4408,
            Self::TooLarge => 4413,
            Self::TooMany => 4429,
        }
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "t", rename_all = "lowercase")]
pub enum ClientFrame {
    /// First of all: who it is.
    Hello(Hello),
    /// Asks for jobs.
    Sub(Sub),
    /// Asks for them no more.
    Unsub(Unsub),
    /// Asks for something to be done.
    Cmd(Cmd),
    /// A newer token.
    Auth(Auth),
    /// Asks for an answer.
    Ping(PingFrame),
}

/// First of all: who the client is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The version of the protocol.
    pub v: u32,
    /// The token.
    pub token: String,
    /// Where an earlier connection ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Cursor>,
}

/// A place in the sequence of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cursor {
    /// The sequence's own name.
    pub epoch: String,
    /// The place.
    pub seq: u64,
}

/// Asks for jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sub {
    /// The subscription's number, of the client's choice.
    pub id: u32,
    /// Which jobs; all one may see when left out.
    #[serde(default)]
    pub filter: Filter,
    /// Whether those that are there come first.
    #[serde(default = "yes")]
    pub snapshot: bool,
    /// How often progress may come per second; 0 = never.
    #[serde(default = "four")]
    pub progress_hz: ProgressHz,
}

/// How often progress may come per second.
pub type ProgressHz = Bounded<0, 10>;

const fn yes() -> bool {
    true
}

const fn four() -> ProgressHz {
    ProgressHz::nearest(4)
}

/// Which jobs: those that fit every list that isn't empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filter {
    /// In one of these states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTER_ENTRIES_MAX))]
    pub state: Vec<StateName>,
    /// On one of these queues, or those that begin with these tokens (`storage.default`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTER_ENTRIES_MAX))]
    pub queue: Vec<String>,
    /// Of one of these tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTER_ENTRIES_MAX))]
    pub task: Vec<String>,
    /// About one of these objects (`disk.d7`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTER_ENTRIES_MAX))]
    pub object: Vec<String>,
    /// With all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = FILTER_ENTRIES_MAX))]
    pub labels: BTreeMap<String, String>,
    /// One of these jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTER_ENTRIES_MAX))]
    pub job: Vec<JobId>,
}

impl Filter {
    /// Whether a job fits.
    #[must_use]
    pub fn matches(&self, job: &Outline) -> bool {
        let queue = job.queue.to_string();
        let on_queue = |wanted: &String| {
            let rest = queue.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        (self.state.is_empty() || self.state.contains(&job.state))
            && (self.queue.is_empty() || self.queue.iter().any(on_queue))
            && (self.task.is_empty() || self.task.contains(&job.task))
            && (self.object.is_empty() || self.object.iter().any(|o| job.objects.contains(o)))
            && self
                .labels
                .iter()
                .all(|(name, value)| job.labels.get(name) == Some(value))
            && (self.job.is_empty() || self.job.contains(&job.id))
    }

    /// The longest of its lists.
    fn entries(&self) -> usize {
        let lengths = [
            self.state.len(),
            self.queue.len(),
            self.task.len(),
            self.object.len(),
            self.labels.len(),
            self.job.len(),
        ];
        lengths.into_iter().max().unwrap_or(0)
    }
}

/// Ends a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unsub {
    /// The subscription's number.
    pub id: u32,
}

/// Asks for something to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cmd {
    /// What the answer carries.
    #[serde(rename = "ref")]
    #[schemars(length(max = REF_BYTES_MAX))]
    pub reference: String,
    /// What is to be done: `cancel`, `priority`, `retry`, `pause`, `resume`, `submit`.
    pub op: String,
    /// Its fields, as in the control service.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// What a `cmd` asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// As `virtbus.jobs.cancel`.
    Cancel(Cancel),
    /// As `virtbus.jobs.priority`.
    Priority(ChangePriority),
    /// As `virtbus.jobs.retry`.
    Retry(OfJob),
    /// As `virtbus.queues.pause`.
    Pause(OnQueue),
    /// As `virtbus.queues.resume`.
    Resume(OnQueue),
    /// As `virtbus.jobs.submit`.
    Submit(Submission),
}

impl Cmd {
    /// The command itself. A wrong one is answered with `reply`; it closes nothing.
    ///
    /// # Errors
    /// `job.invalid_params`, naming the field; for `submit` also `job.malformed`.
    pub fn command(&self) -> Result<Command, JobError> {
        let fields = || Value::Object(self.fields.clone()).to_string().into_bytes();
        match self.op.as_str() {
            "cancel" => crate::control::decode(&fields()).map(Command::Cancel),
            "priority" => crate::control::decode(&fields()).map(Command::Priority),
            "retry" => crate::control::decode(&fields()).map(Command::Retry),
            "pause" => crate::control::decode(&fields()).map(Command::Pause),
            "resume" => crate::control::decode(&fields()).map(Command::Resume),
            "submit" => Submission::read(self.fields.clone()).map(Command::Submit),
            _ => Err(JobError::invalid_params("op", "is not a command")),
        }
    }
}

/// A newer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Auth {
    /// The token.
    pub token: String,
}

/// Asks for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PingFrame {
    /// What the answer carries.
    #[serde(rename = "ref")]
    #[schemars(length(max = REF_BYTES_MAX))]
    pub reference: String,
}

/// A frame that can't be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadFrame {
    /// What the server closes with.
    pub close: Close,
    /// Why, for people.
    pub reason: String,
}

impl BadFrame {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            close: Close::BadMessage,
            reason: reason.into(),
        }
    }
}

/// Reads what a client sent.
///
/// # Errors
/// What isn't a frame of [`ClientFrame`], or breaks a bound: the server closes with 4400.
pub fn decode_client(text: &str) -> Result<ClientFrame, BadFrame> {
    let frame: ClientFrame = json::read(text.as_bytes()).map_err(|wrong| {
        let field = wrong.field.map(|field| format!("{field}: "));
        BadFrame::new(field.unwrap_or_default() + &wrong.message)
    })?;
    let long = |reference: &String| reference.len() > REF_BYTES_MAX;
    match &frame {
        ClientFrame::Sub(sub) if sub.filter.entries() > FILTER_ENTRIES_MAX => Err(BadFrame::new(
            format!("filter: at most {FILTER_ENTRIES_MAX} entries of each kind"),
        )),
        ClientFrame::Cmd(Cmd { reference, .. }) | ClientFrame::Ping(PingFrame { reference })
            if long(reference) =>
        {
            Err(BadFrame::new(format!("ref: at most {REF_BYTES_MAX} bytes")))
        }
        ClientFrame::Sub(_) | ClientFrame::Cmd(_) | ClientFrame::Ping(_) => Ok(frame),
        ClientFrame::Hello(_) | ClientFrame::Unsub(_) | ClientFrame::Auth(_) => Ok(frame),
    }
}

#[cfg(test)]
mod tests;
