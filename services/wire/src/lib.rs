//! The words of virtbus: names, queues, jobs, records, states, errors.
//!
//! No input or output, no async: what other programs rely on, as types that can't hold anything
//! else. A message is parsed once, here; inside the system the type is the proof.

pub mod error;
pub mod id;
pub mod queue;
pub mod size;
pub mod time;

pub use error::{Code, JobError};
pub use id::{BootId, DiskId, DomainId, JobId, Label, MediaId, SnapshotId, Tenant, User, WorkerId};
pub use queue::{Class, Place, PoolPair, Priority, Queue};
pub use size::Size;
pub use time::Timestamp;
