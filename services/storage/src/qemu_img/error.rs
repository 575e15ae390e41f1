//! What goes wrong with qemu-img and its like, and what a job is told of it.

use thiserror::Error;
use virtbus_wire::{Code, JobError};
use virtbus_worker::process::{Ended, RunError};

/// A run of qemu-img without a good end.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It couldn't be run, or not to its end.
    #[error("run {command}")]
    Run {
        /// Its subcommand, or its name if it has none.
        command: String,
        /// Why.
        #[source]
        source: Box<RunError>,
    },
    /// It ended with a failing status.
    #[error("run {command}: it ended with {ended:?} and said {said:?}")]
    Failed {
        /// Its subcommand, or its name if it has none.
        command: String,
        /// How it ended.
        ended: Ended,
        /// What it said, paths and all: for the log only.
        said: String,
    },
    /// Its answer can't be read.
    #[error("read the answer of {command}")]
    Answer {
        /// Its subcommand, or its name if it has none.
        command: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ToolError {
    /// The code of a job that ends with it; none if the tool was stopped on request.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Run { source, .. } => match source.as_ref() {
                RunError::NotFound { .. } => Some(Code::ToolMissing),
                RunError::Deadline { .. } | RunError::Unkillable { .. } => Some(Code::ToolTimeout),
                RunError::Cancelled { .. } => None,
                RunError::Spawn { .. } | RunError::Cage { .. } | RunError::Follow { .. } => {
                    Some(Code::Internal)
                }
                RunError::OutputTooLarge { .. } => Some(Code::ToolFailed),
            },
            Self::Failed { said, .. } => Some(code_of(said)),
            Self::Answer { .. } => Some(Code::ToolFailed),
        }
    }

    fn command(&self) -> &str {
        match self {
            Self::Run { command, .. }
            | Self::Failed { command, .. }
            | Self::Answer { command, .. } => command,
        }
    }
}

/// Texts of qemu and of the C library (in the locale `C`), and what they mean for the job.
const TEXTS: [(&str, Code); 13] = [
    // Says the one that sets its limits, of the tool itself and not of a file.
    ("prlimit: failed to execute", Code::Internal),
    ("write\" lock", Code::DiskBusy),
    ("consistent read\" lock", Code::DiskBusy),
    ("another process using the image", Code::DiskBusy),
    ("No space left on device", Code::PoolNoSpace),
    ("Disk quota exceeded", Code::PoolNoSpace),
    ("File too large", Code::ImageTooLarge),
    ("Permission denied", Code::PoolUnreachable),
    ("Read-only file system", Code::PoolUnreachable),
    ("Stale file handle", Code::PoolUnreachable),
    ("Input/output error", Code::PoolUnreachable),
    ("Image is corrupt", Code::ImageCorrupt),
    ("is marked corrupt", Code::ImageCorrupt),
];

fn code_of(said: &str) -> Code {
    TEXTS
        .iter()
        .find(|(text, _)| said.contains(text))
        .map_or(Code::ToolFailed, |(_, code)| *code)
}

/// What people are told.
const TOLD: [(Code, &str); 7] = [
    (Code::ToolMissing, "a tool isn't installed on the worker"),
    (Code::ToolTimeout, "a tool took too long"),
    (Code::DiskBusy, "another program has the disk open"),
    (Code::PoolNoSpace, "the pool has no room left"),
    (
        Code::PoolUnreachable,
        "the pool can't be read or written now",
    ),
    (Code::ImageTooLarge, "the file became larger than measured"),
    (Code::ImageCorrupt, "the disk's file is damaged"),
];

/// For a tool that wasn't stopped on request.
impl From<&ToolError> for JobError {
    fn from(error: &ToolError) -> Self {
        let code = error.code().unwrap_or(Code::Internal);
        let chain: &dyn std::error::Error = error;
        tracing::warn!(error = chain, %code, "a tool failed");
        let text = TOLD.iter().find(|(of, _)| *of == code);
        let text = text.map_or("a tool failed", |(_, text)| text);
        Self::new(code, text).with("command", error.command())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(said: &str) -> ToolError {
        ToolError::Failed {
            command: "resize".to_owned(),
            ended: Ended::Code(1),
            said: said.to_owned(),
        }
    }

    #[test]
    fn the_tools_texts_become_codes() {
        for (said, code) in [
            (
                "qemu-img: Could not open '/p/x': Failed to get \"write\" lock",
                Code::DiskBusy,
            ),
            ("Failed to get shared \"write\" lock", Code::DiskBusy),
            (
                "qemu-img: error while writing: No space left on device",
                Code::PoolNoSpace,
            ),
            (
                "Could not open '/p/x': Stale file handle",
                Code::PoolUnreachable,
            ),
            (
                "prlimit: failed to execute /opt/qemu-img: Permission denied",
                Code::Internal,
            ),
            ("qemu-img: Invalid image size specified!", Code::ToolFailed),
        ] {
            assert_eq!(failed(said).code(), Some(code), "{said}");
        }
    }

    #[test]
    fn a_job_is_told_no_path_and_no_argument() {
        let told = JobError::from(&failed("Could not open '/srv/p/disks/d1.raw'"));
        let text = serde_json::to_string(&told).unwrap();
        assert!(!text.contains("/srv") && !text.contains("d1"), "{text}");
        assert_eq!(told.detail["command"], "resize");
    }

    #[test]
    fn a_tool_that_was_stopped_has_no_code() {
        let stopped = ToolError::Run {
            command: "convert".to_owned(),
            source: Box::new(RunError::Cancelled {
                program: "qemu-img".to_owned(),
            }),
        };
        assert_eq!(stopped.code(), None);
    }
}
