//! What can go wrong with a job: a closed set of codes, each with a text for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $retryable:literal;)+) => {
        /// The code of an error. The set is closed; programs decide by it, never by the message.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code as it stands in messages.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// Whether the same job may succeed when it's run again.
            #[must_use]
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retryable),+ }
            }
        }
    };
}

codes! {
    /// Can't be decoded, or has an id that isn't a publisher's to choose.
    JobMalformed = "job.malformed", false;
    /// No task of this class has that name.
    JobUnknownTask = "job.unknown_task", false;
    /// A parameter is missing, unknown, ill-typed or out of bounds.
    JobInvalidParams = "job.invalid_params", false;
    /// No job has this id.
    JobNotFound = "job.not_found", false;
    /// `expires_at` came before the work began.
    JobExpired = "job.expired", false;
    /// The attempt took longer than its time-out.
    JobTimeout = "job.timeout", true;
    /// The work made no progress for too long.
    JobStalled = "job.stalled", true;
    /// A job named in `after` never came.
    JobDependencyMissing = "job.dependency_missing", false;
    /// A job named in `after` ended otherwise than asked for.
    JobDependencyUnmet = "job.dependency_unmet", false;
    /// The last attempt failed with a retryable error, which is in `detail.cause`.
    JobAttemptsExhausted = "job.attempts_exhausted", false;
    /// The worker of the last attempt died.
    WorkerLost = "worker.lost", true;
    /// The worker was stopped.
    WorkerShutdown = "worker.shutdown", true;
    /// The queue takes no more.
    QueueFull = "queue.full", true;
    /// No live worker serves the queue.
    QueueNoWorker = "queue.no_worker", true;
    /// Nobody registered what the queue names.
    QueueUnknown = "queue.unknown", false;
    /// No pool has this name.
    PoolNotFound = "pool.not_found", false;
    /// The pool has not enough room.
    PoolNoSpace = "pool.no_space", false;
    /// The pool can't be read or written now.
    PoolUnreachable = "pool.unreachable", true;
    /// The pool was disabled.
    PoolDisabled = "pool.disabled", false;
    /// The pool can't do this.
    PoolUnsupported = "pool.unsupported", false;
    /// No disk has this id.
    DiskNotFound = "disk.not_found", false;
    /// The id is taken.
    DiskExists = "disk.exists", false;
    /// A domain or a download uses the disk.
    DiskInUse = "disk.in_use", false;
    /// Another job or program works on the disk.
    DiskBusy = "disk.busy", true;
    /// Other disks depend on what this one holds.
    DiskHasChildren = "disk.has_children", false;
    /// The disk lies in another pool.
    DiskWrongPool = "disk.wrong_pool", false;
    /// The disk isn't in a state for this.
    DiskWrongState = "disk.wrong_state", false;
    /// No medium has this id.
    MediaNotFound = "media.not_found", false;
    /// The id is taken.
    MediaExists = "media.exists", false;
    /// A domain or a download uses the medium.
    MediaInUse = "media.in_use", false;
    /// The file's content isn't of the format it should have.
    ImageFormatMismatch = "image.format_mismatch", false;
    /// The file names a backing file that the catalogue doesn't.
    ImageBackingFile = "image.backing_file", false;
    /// The file names an external data file.
    ImageDataFile = "image.data_file", false;
    /// The file uses a feature that isn't allowed.
    ImageUnsafeFeature = "image.unsafe_feature", false;
    /// The file is damaged.
    ImageCorrupt = "image.corrupt", false;
    /// The disk or file is larger than allowed.
    ImageTooLarge = "image.too_large", false;
    /// The format can't be told, or is more than one.
    ImageUnknownFormat = "image.unknown_format", false;
    /// A tool ended with an error.
    ToolFailed = "tool.failed", true;
    /// A tool isn't installed.
    ToolMissing = "tool.missing", false;
    /// A tool took too long.
    ToolTimeout = "tool.timeout", true;
    /// No domain has this id.
    DomainNotFound = "domain.not_found", false;
    /// libvirt or the policy refused the XML.
    DomainInvalidXml = "domain.invalid_xml", false;
    /// The XML asks for a device that isn't allowed.
    DomainForbiddenDevice = "domain.forbidden_device", false;
    /// The domain isn't in a state for this.
    DomainWrongState = "domain.wrong_state", false;
    /// The host can't do this.
    DomainUnsupported = "domain.unsupported", false;
    /// No snapshot has this id.
    SnapshotNotFound = "snapshot.not_found", false;
    /// The id is taken.
    SnapshotExists = "snapshot.exists", false;
    /// The host doesn't answer.
    HypervisorUnreachable = "hypervisor.unreachable", true;
    /// No host has room.
    HypervisorNoCapacity = "hypervisor.no_capacity", true;
    /// The URL's time is over.
    TransferExpired = "transfer.expired", false;
    /// The bytes aren't those announced.
    TransferChecksumMismatch = "transfer.checksum_mismatch", false;
    /// More bytes than announced or allowed.
    TransferTooLarge = "transfer.too_large", false;
    /// A valid token is needed.
    AuthRequired = "auth.required", false;
    /// The token doesn't allow this.
    AuthForbidden = "auth.forbidden", false;
    /// The request contradicts the present state.
    Conflict = "conflict", false;
    /// A defect of ours.
    Internal = "internal", true;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a job failed, or a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{code}: {message}")]
pub struct JobError {
    /// For programs.
    pub code: Code,
    /// For people: no host paths, no command lines.
    pub message: String,
    /// Whether the same job may succeed when it's run again.
    pub retryable: bool,
    /// What the code is about, such as the field or the holder.
    #[serde(default)]
    pub detail: Map<String, Value>,
}

impl JobError {
    /// An error with this code, and a message for people.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = clipped(message.into());
        let retryable = code.is_retryable();
        Self {
            code,
            message,
            retryable,
            detail: Map::new(),
        }
    }

    /// The same with one more detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut value = value.into();
        if let Value::String(text) = value {
            value = Value::String(clipped(text));
        }
        self.detail.insert(key.to_owned(), value);
        self
    }

    /// A parameter that can't be accepted; `field` is its path.
    #[must_use]
    pub fn invalid_params(field: &str, message: impl fmt::Display) -> Self {
        Self::new(Code::JobInvalidParams, format!("{field}: {message}")).with("field", field)
    }

    /// A defect of ours, or of something that should not fail.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

/// The most bytes of a message, and of a text in `detail`: both may repeat what a publisher sent.
const TEXT_BYTES_MAX: usize = 512;

fn clipped(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_publisher_sent_makes_no_error_large() {
        let text = "ä".repeat(600_000);
        let error = JobError::invalid_params(&text, &text);
        assert!(serde_json::to_string(&error).unwrap().len() < 3 * TEXT_BYTES_MAX);
    }

    #[test]
    fn every_code_reads_back_from_its_text() {
        for code in Code::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("{:?}", code.as_str()));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
        }
    }
}
