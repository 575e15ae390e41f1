//! The tasks of class `hypervisor`: parameters and results.

pub mod disk;
pub mod domain;
pub mod network;
pub mod snapshot;
pub mod template;

pub use super::ping::{Ping, Pong};
pub use disk::{Commit, Committed, Resize, Resized};
pub use domain::{
    CheckDomain, CheckedDomain, Definition, DeleteDomain, DomainState, Graphics, GraphicsKind,
    InState, ResetDomain, ResumeDomain, StartDomain, Started, StopDomain, StopMode,
};
pub use snapshot::{CreateSnapshot, DeleteSnapshot, NewSnapshot, OfSnapshot, RevertSnapshot};
pub use template::Template;
