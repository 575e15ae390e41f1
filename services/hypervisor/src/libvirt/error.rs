//! What libvirt says when it says no, as codes.

use virt::error::{Error, ErrorNumber};
use virtbus_wire::{Code, JobError};

/// A call without the answer that was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LibvirtError {
    /// libvirt said no.
    #[error("libvirt: {message}")]
    Said {
        /// What kind of no.
        number: ErrorNumber,
        /// Its words, which may hold host paths: for the log.
        message: String,
    },
    /// No answer in time.
    #[error("libvirt does not answer")]
    Silent,
    /// The connection broke; another one is made with the next call.
    #[error("the connection to libvirt broke: {0}")]
    Broken(String),
    /// A call was given a text that libvirt can't take.
    #[error("a text with a NUL was meant for libvirt")]
    Nul,
    /// An answer that makes no sense.
    #[error("libvirt answered what can't be read: {0}")]
    Unreadable(&'static str),
}

impl LibvirtError {
    fn is(&self, wanted: ErrorNumber) -> bool {
        match self {
            Self::Said { number, .. } => *number == wanted,
            Self::Silent | Self::Broken(_) | Self::Nul | Self::Unreadable(_) => false,
        }
    }

    /// Whether there is no such domain.
    pub(crate) fn is_no_domain(&self) -> bool {
        self.is(ErrorNumber::NoDomain)
    }

    /// Whether there is no such snapshot.
    pub(crate) fn is_no_snapshot(&self) -> bool {
        self.is(ErrorNumber::NoDomainSnapshot)
    }

    /// Whether libvirt's driver can't do it at all.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.is(ErrorNumber::NoSupport)
    }

    /// Whether it may have been done all the same: nobody said that it wasn't.
    pub(crate) fn is_in_doubt(&self) -> bool {
        match self {
            Self::Silent | Self::Broken(_) => true,
            Self::Said { .. } | Self::Nul | Self::Unreadable(_) => false,
        }
    }
}

impl From<Error> for LibvirtError {
    fn from(error: Error) -> Self {
        Self::Said {
            number: error.code(),
            message: error.message().to_owned(),
        }
    }
}

impl From<LibvirtError> for JobError {
    fn from(error: LibvirtError) -> Self {
        // What libvirt says may hold host paths: the whole of it goes to the log only.
        tracing::warn!(%error, "libvirt");
        match error {
            LibvirtError::Silent | LibvirtError::Broken(_) => Self::new(
                Code::HypervisorUnreachable,
                "the host's libvirt does not answer",
            ),
            LibvirtError::Nul => Self::internal("a text with a NUL was meant for libvirt"),
            LibvirtError::Unreadable(what) => Self::internal(what),
            LibvirtError::Said { number, message } => Self::new(
                code(number),
                format!("libvirt: {}", without_paths(&message)),
            ),
        }
    }
}

/// The code of libvirt's own number.
fn code(number: ErrorNumber) -> Code {
    if let ErrorNumber::NoDomain = number {
        return Code::DomainNotFound;
    }
    if let ErrorNumber::NoDomainSnapshot = number {
        return Code::SnapshotNotFound;
    }
    const BAD_XML: [ErrorNumber; 4] = [
        ErrorNumber::XmlError,
        ErrorNumber::XmlDetail,
        ErrorNumber::XmlInvalidSchema,
        ErrorNumber::OsType,
    ];
    // The last: nobody in the guest answers. Most guests have no agent at all, so it isn't asked
    // again and again.
    const CAN_NOT: [ErrorNumber; 5] = [
        ErrorNumber::NoSupport,
        ErrorNumber::ConfigUnsupported,
        ErrorNumber::OperationUnsupported,
        ErrorNumber::ArgumentUnsupported,
        ErrorNumber::AgentUnresponsive,
    ];
    const AWAY: [ErrorNumber; 4] = [
        ErrorNumber::NoConnect,
        ErrorNumber::Rpc,
        ErrorNumber::OperationTimeout,
        ErrorNumber::AuthFailed,
    ];
    if BAD_XML.contains(&number) {
        Code::DomainInvalidXml
    } else if CAN_NOT.contains(&number) {
        Code::DomainUnsupported
    } else if AWAY.contains(&number) {
        Code::HypervisorUnreachable
    } else if number == ErrorNumber::OperationInvalid {
        Code::DomainWrongState
    } else {
        Code::ToolFailed
    }
}

/// The longest text for people, in characters.
const SHOWN_CHARS_MAX: usize = 400;

/// A text for people: without the host's paths, on one line, bounded.
fn without_paths(text: &str) -> String {
    let words = text.split_whitespace();
    let words = words.map(|word| if word.contains('/') { "…" } else { word });
    let joined = words.collect::<Vec<_>>().join(" ");
    joined.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libvirt_says_reaches_people_without_paths() {
        let error = LibvirtError::Said {
            number: ErrorNumber::SystemError,
            message: "Cannot access storage file '/pool/disks/d7.qcow2': No such file".to_owned(),
        };
        let error = JobError::from(error);
        assert_eq!(error.code, Code::ToolFailed);
        assert_eq!(
            error.message,
            "libvirt: Cannot access storage file … No such file"
        );
    }

    #[test]
    fn each_kind_of_no_has_its_code() {
        for (number, wanted) in [
            (ErrorNumber::NoDomain, Code::DomainNotFound),
            (ErrorNumber::NoDomainSnapshot, Code::SnapshotNotFound),
            (ErrorNumber::XmlInvalidSchema, Code::DomainInvalidXml),
            (ErrorNumber::ConfigUnsupported, Code::DomainUnsupported),
            (ErrorNumber::AgentUnresponsive, Code::DomainUnsupported),
            (ErrorNumber::OperationInvalid, Code::DomainWrongState),
            (ErrorNumber::InternalError, Code::ToolFailed),
        ] {
            assert_eq!(code(number), wanted, "{number:?}");
        }
    }
}
