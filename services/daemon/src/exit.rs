//! How a service process ends, and what its exit code says.

use std::process::ExitCode;
use virtbus_bus::ConnectError;

/// The exit codes of every service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Stopped on request, or did what the command line asked.
    Stopped,
    /// The command line or the configuration is wrong.
    Config,
    /// The messaging server, or libvirt, can't be reached at start.
    Unreachable,
    /// A defect of ours.
    Bug,
}

impl Exit {
    /// The number the process ends with.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Config => 64,
            Self::Unreachable => 69,
            Self::Bug => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a service can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A setting can't be used; `field` is its path.
    #[error("{field}: {reason}")]
    Config {
        /// The setting, such as `http.listen`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something outside that is needed to start doesn't answer.
    #[error("{0}")]
    Unreachable(String),
    /// A defect of ours.
    #[error("{0}")]
    Bug(String),
}

impl Fatal {
    /// A setting that can't be used.
    #[must_use]
    pub fn config(field: impl Into<String>, reason: impl ToString) -> Self {
        Self::Config {
            field: field.into(),
            reason: reason.to_string(),
        }
    }

    /// How the process ends for this reason.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config { .. } => Exit::Config,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::Bug(_) => Exit::Bug,
        }
    }
}

impl From<ConnectError> for Fatal {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Secret { what, reason } => Self::config(what, reason),
            refused @ ConnectError::Refused { .. } => Self::Unreachable(refused.to_string()),
        }
    }
}
