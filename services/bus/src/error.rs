//! What can go wrong between us and the server.

/// A call to the server that gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No answer in time, or no connection. The call may have had its effect.
    #[error("no answer from the messaging server to {call}: {reason}")]
    Unreachable {
        /// What was asked.
        call: String,
        /// What the client said.
        reason: String,
    },
    /// The server refused the call.
    #[error("the messaging server refused {call}: {reason}")]
    Refused {
        /// What was asked.
        call: String,
        /// What the server said.
        reason: String,
    },
    /// A record is larger than the server takes.
    #[error("the messaging server takes nothing as large as {call}: {reason}")]
    TooLarge {
        /// What was to be written.
        call: String,
        /// What the server said.
        reason: String,
    },
    /// A record can't be read.
    #[error("the record {key} of bucket {bucket} can't be read: {reason}")]
    Corrupt {
        /// The bucket.
        bucket: String,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A compare-and-set that wasn't done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else changed the record since it was read. Where the acknowledgement was lost our
    /// write may have been there in between: read again, and decide by what is there.
    #[error("the record {0} was changed by somebody else")]
    Conflict(String),
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl BusError {
    pub(crate) fn unreachable(call: impl Into<String>, reason: impl ToString) -> Self {
        Self::Unreachable {
            call: call.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn refused(call: impl Into<String>, reason: impl ToString) -> Self {
        Self::Refused {
            call: call.into(),
            reason: reason.to_string(),
        }
    }
}
