//! What goes wrong with a pool's files, and what a job is told of it.

use rustix::io::Errno;
use thiserror::Error;
use virtbus_wire::{Code, JobError};

/// A pool or one of its files that can't be used. The texts hold no path of the host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The pool's folder, or its mark, isn't there: it's perhaps not mounted.
    #[error("find the pool {pool}")]
    Away {
        /// The pool's name.
        pool: String,
        /// What the system said.
        #[source]
        source: Errno,
    },
    /// The folder carries the mark of another pool.
    #[error("find the pool {pool}: its folder belongs to {found:?}")]
    Foreign {
        /// The pool's name.
        pool: String,
        /// The name in the mark.
        found: String,
    },
    /// Something else than a plain file with one name has a file's name.
    #[error("open {name}: it isn't a plain file")]
    NotPlain {
        /// The file, beneath the pool's root.
        name: String,
    },
    /// The name a file should get is taken.
    #[error("name {name}: it's taken")]
    Taken {
        /// The file, beneath the pool's root.
        name: String,
    },
    /// Another program has the file open.
    #[error("use {name}: another program has it open")]
    InUse {
        /// The file, beneath the pool's root.
        name: String,
    },
    /// A packed file isn't what it should be.
    #[error("unpack {name}: it's damaged")]
    Damaged {
        /// The file, beneath the root of the pool's archive.
        name: String,
    },
    /// The system refused.
    #[error("{act} {name}")]
    Refused {
        /// What was tried, as a verb.
        act: &'static str,
        /// The file, beneath the pool's root.
        name: String,
        /// What the system said.
        #[source]
        source: Errno,
    },
}

impl PoolError {
    /// The code of a job that ends with it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Away { .. } | Self::Foreign { .. } => Code::PoolUnreachable,
            Self::NotPlain { .. } => Code::ImageUnsafeFeature,
            Self::Taken { .. } => Code::DiskExists,
            Self::InUse { .. } => Code::DiskBusy,
            Self::Damaged { .. } => Code::ImageCorrupt,
            Self::Refused { source, .. } => code_of(*source),
        }
    }
}

/// What an errno of a file system says about the pool.
fn code_of(errno: Errno) -> Code {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Code::PoolNoSpace,
        Errno::ACCESS
        | Errno::PERM
        | Errno::ROFS
        | Errno::STALE
        | Errno::IO
        | Errno::NODEV
        | Errno::NXIO
        | Errno::NOTCONN
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::TIMEDOUT => Code::PoolUnreachable,
        _ => Code::Internal,
    }
}

/// What people are told.
const TEXTS: [(Code, &str); 6] = [
    (
        Code::PoolUnreachable,
        "the pool can't be reached or written now",
    ),
    (Code::PoolNoSpace, "the pool has no room left"),
    (
        Code::DiskExists,
        "a file of that name is in the pool already",
    ),
    (Code::DiskBusy, "another program has the disk open"),
    (Code::ImageCorrupt, "the archived file is damaged"),
    (
        Code::ImageUnsafeFeature,
        "the disk's file isn't a plain file",
    ),
];

impl From<PoolError> for JobError {
    fn from(error: PoolError) -> Self {
        let code = error.code();
        let chain: &dyn std::error::Error = &error;
        tracing::warn!(error = chain, %code, "a pool's file can't be used");
        let text = TEXTS.iter().find(|(of, _)| *of == code);
        Self::new(
            code,
            text.map_or("a file of the pool can't be used", |(_, text)| text),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_tells_a_full_pool_from_one_that_is_away() {
        let refused = |source| PoolError::Refused {
            act: "write",
            name: "disks/d1.raw".to_owned(),
            source,
        };
        assert_eq!(refused(Errno::NOSPC).code(), Code::PoolNoSpace);
        assert_eq!(refused(Errno::STALE).code(), Code::PoolUnreachable);
        assert_eq!(refused(Errno::INVAL).code(), Code::Internal);
        let told = JobError::from(refused(Errno::STALE));
        assert!(!told.message.contains("d1"), "{}", told.message);
    }
}
