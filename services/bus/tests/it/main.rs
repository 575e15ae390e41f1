//! The JetStream edge against a real nats-server. One binary, to link once.

#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml lets tests unwrap, but doesn't see that their helpers here are tests"
)]

mod cluster;
mod configs;
mod deliveries;
mod permissions;
mod person;
mod promises;
mod roles;
mod topology;
