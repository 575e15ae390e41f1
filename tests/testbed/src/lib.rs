//! What tests of several members share: a real nats-server each, and waiting for a level.
#![expect(
    clippy::unwrap_used,
    reason = "only tests use this, and a test fails by panicking"
)]

pub mod libvirt;
pub mod port;
pub mod server;
pub mod watch;

pub use libvirt::Libvirt;
pub use server::Server;
pub use watch::{until, within};
