//! What the black-box tests see and do: the whole system as `virtbus up` runs it, jobs as any
//! program publishes them, disks as they lie in the pool, a browser's websocket.
//!
//! An outsider: of virtbus it knows the words (`virtbus-wire`) and the programs, nothing else.
#![expect(
    clippy::unwrap_used,
    reason = "only tests use this, and a test fails by panicking"
)]

pub mod chaos;
pub mod chromium;
pub mod cli;
pub mod disk;
pub mod events;
pub mod http;
pub mod jobs;
pub mod process;
pub mod random;
pub mod ready;
pub mod recorder;
pub mod socket;
pub mod stack;
mod warden;

pub use events::{Change, Events};
pub use jobs::{Bus, code_of, field_of, is_final, state_of};
pub use ready::{Ready, Service};
pub use socket::Socket;
pub use stack::Stack;
