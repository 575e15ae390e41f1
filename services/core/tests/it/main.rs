//! The core service, as a process, against a real nats-server.

#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml lets tests unwrap, but doesn't see that their helpers here are tests"
)]

mod asking;
mod bad_input;
mod bursts;
mod catalogue;
mod changing;
mod control;
mod dependencies;
mod draining;
mod election;
mod explaining;
mod fencing;
mod http;
mod lines;
mod mending;
mod pausing;
mod registering;
mod retention;
mod stack;
mod storms;
mod submitting;
mod waits;
mod worker;
