//! Why a run gave no [`Exit`](super::Exit).

use std::{io, time::Duration};

use thiserror::Error;

use super::output::Excerpt;

/// A run that didn't come to its own end. A tool that ended with a failing status is *not* one.
///
/// The texts name programs by their file name only: they may reach people.
#[derive(Debug, Error)]
pub enum RunError {
    /// The program, or one that the runner needs in front of it, isn't installed (`tool.missing`).
    #[error("find the program {program}")]
    NotFound {
        /// The program's file name.
        program: String,
    },
    /// The process couldn't be started.
    #[error("start {program}")]
    Spawn {
        /// The program's file name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The tool's cage couldn't be closed: what it's to work with can't be opened, or the kernel
    /// doesn't offer what is required. It wasn't started.
    #[error("close the cage of {program}")]
    Cage {
        /// The program's file name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The running process couldn't be followed; it has been killed.
    #[error("follow {program}")]
    Follow {
        /// The program's file name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The wall clock limit passed, the whole group is gone (`tool.timeout`).
    #[error("finish {program} within {limit:?}")]
    Deadline {
        /// The program's file name.
        program: String,
        /// The limit that passed.
        limit: Duration,
        /// What the tool had said until then.
        stderr: Excerpt,
    },
    /// Stopped on request, the whole group is gone.
    #[error("finish {program}: it was cancelled")]
    Cancelled {
        /// The program's file name.
        program: String,
    },
    /// More output than the caller wanted to hold; the whole group is gone.
    #[error("hold the output of {program}: more than {bytes_max} bytes")]
    OutputTooLarge {
        /// The program's file name.
        program: String,
        /// The caller's limit.
        bytes_max: usize,
    },
    /// Killed, but still there: a process of the group hangs in the kernel, as on a dead NFS
    /// server. Its effects may still come, so nothing it could touch may be given away.
    #[error("kill {program}: a process of it hangs in the kernel")]
    Unkillable {
        /// The program's file name.
        program: String,
        /// The process group.
        group: i32,
    },
}
