//! The words of virtbus: names, queues, jobs, records, states, errors.
//!
//! No input or output, no async: what other programs rely on, as types that can't hold anything
//! else. A message is parsed once, here; inside the system the type is the proof.

pub mod auth;
pub mod catalog;
pub mod control;
pub mod envelope;
pub mod error;
mod flat;
pub mod frame;
pub mod id;
mod json;
pub mod protocol;
pub mod queue;
pub mod record;
pub mod row;
pub mod size;
pub mod span;
pub mod state;
pub mod task;
pub mod time;
mod transition;

pub use envelope::Envelope;
pub use error::{Code, JobError};
pub use id::{BootId, DiskId, DomainId, JobId, Label, MediaId, SnapshotId, Tenant, User, WorkerId};
pub use queue::{Class, Place, PoolPair, Priority, Queue};
pub use record::Record;
pub use row::Row;
pub use size::Size;
pub use span::Span;
pub use state::{Event, JobState, StateName};
pub use task::{Object, Task};
pub use time::Timestamp;
