//! How the program ends: exit codes, and errors with a hint for people and a code for programs.

use async_nats::jetstream::context::RequestErrorKind;
use serde_json::{Value, json};
use std::{io, process::ExitCode};
use virtbus_bus::{BusError, ConnectError, topology::TopologyError};
use virtbus_wire::{Code, JobError};

/// The table of exit codes, as `virtbus --help` shows it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong arguments, or a job that would be refused
    3  not found
    4  conflict: already finished, too late
    5  not allowed
    6  the messaging server or a service can't be reached
    7  not over within --wait-timeout (the job goes on)
   10  watch, submit --wait: a job failed
   11  watch, submit --wait: a job was cancelled
   12  watch, submit --wait: a job was lost or went to the dead letters
  130  interrupted (the jobs go on)

Environment:
  VIRTBUS_NATS_URL     the messaging server, as --server
  VIRTBUS_NATS_CREDS   credentials, as --creds
  VIRTBUS_CONTEXT      the ready file (or the folder) of `virtbus up`, as --context
  NO_COLOR             no colours, also on a terminal";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Done = 0,
    Failure = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Forbidden = 5,
    Unreachable = 6,
    TimedOut = 7,
    JobFailed = 10,
    JobCancelled = 11,
    JobLost = 12,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command didn't do what it was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The program's exit code.
    pub(crate) exit: Exit,
    /// For programs: a code of the contract (`queue.unknown`), or one of this program's own.
    pub(crate) code: String,
    /// For people.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let code = match exit {
            Exit::Done => "done",
            Exit::Failure => "failed",
            Exit::Usage => "usage",
            Exit::NotFound => "not_found",
            Exit::Conflict => "conflict",
            Exit::Forbidden => "forbidden",
            Exit::Unreachable => "unreachable",
            Exit::TimedOut => "timed_out",
            Exit::JobFailed => "job_failed",
            Exit::JobCancelled => "job_cancelled",
            Exit::JobLost => "job_lost",
            Exit::Interrupted => "interrupted",
        };
        Self {
            exit,
            code: code.to_owned(),
            message: message.into(),
            hint: None,
        }
    }

    /// A failure of the program itself or of this machine.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failure, message)
    }

    /// An argument that can't be used.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, message)
    }

    /// The same, with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// `{"error": {"code", "message", "hint"}}`
    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}})
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        match error {
            ConnectError::Secret { .. } => Self::failed(message),
            ConnectError::Refused { .. } => Self::unreachable(message)
                .hint("name the server with --server URL, or the ready file of `virtbus up` with --context FILE"),
        }
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        let message = error.to_string();
        match error {
            BusError::Unreachable { .. } => {
                Self::unreachable(message).hint("`virtbus doctor` looks at server and streams")
            }
            BusError::Refused { .. } | BusError::TooLarge { .. } | BusError::Corrupt { .. } => {
                Self::failed(message)
            }
        }
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        let message = chain(&error);
        match &error {
            TopologyError::Request { source, .. } => match source.kind() {
                RequestErrorKind::NoResponders => {
                    Self::unreachable(message).hint("does the server run with JetStream?")
                }
                RequestErrorKind::TimedOut => Self::unreachable(message)
                    .hint("a denied request looks like this too: is this the admin's key?"),
                RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                    Self::unreachable(message)
                }
            },
            TopologyError::Definition(_)
            | TopologyError::Answer { .. }
            | TopologyError::TooManyConsumers { .. }
            | _ => Self::failed(message),
        }
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        let mut failure = Self::new(exit_of(error.code), error.message);
        failure.code = error.code.to_string();
        failure
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read our output has read enough of it.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Done, error.to_string());
        }
        Self::failed(error.to_string())
    }
}

/// The exit code of a refusal by a service, or by the same checks done here.
fn exit_of(code: Code) -> Exit {
    let text = code.as_str();
    if text.ends_with(".not_found") {
        return Exit::NotFound;
    }
    match text {
        "job.malformed" | "job.invalid_params" | "job.unknown_task" | "queue.unknown" => {
            Exit::Usage
        }
        "conflict" => Exit::Conflict,
        "auth.required" | "auth.forbidden" => Exit::Forbidden,
        "queue.no_worker" => Exit::Unreachable,
        _ => Exit::Failure,
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_help() {
        for exit in [
            Exit::Done,
            Exit::Failure,
            Exit::Usage,
            Exit::NotFound,
            Exit::Conflict,
            Exit::Forbidden,
            Exit::Unreachable,
            Exit::TimedOut,
            Exit::JobFailed,
            Exit::JobCancelled,
            Exit::JobLost,
            Exit::Interrupted,
        ] {
            let line = format!("\n{:>5}  ", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_code_of_the_contract() {
        let failure = Failure::from(JobError::invalid_params("size", "must be above 0"));
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.to_json()["error"]["code"], "job.invalid_params");
        let gone = Failure::from(JobError::new(Code::JobNotFound, "no job x"));
        assert_eq!(gone.exit, Exit::NotFound);
    }
}
