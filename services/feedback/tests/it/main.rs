//! The feedback service as a program, between a real nats-server and real websockets. One binary,
//! to link once.

#![recursion_limit = "256"]
#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml lets tests unwrap, but doesn't see that their helpers here are tests"
)]

mod browser;
mod bus;
mod http;
mod load;
mod process;
mod service;

mod socket;
mod websocket;
