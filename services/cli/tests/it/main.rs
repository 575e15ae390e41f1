//! Black box: the program itself against a real nats-server, jobs moved on as services would.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;
mod follow;
mod program;
mod setup;
mod steering;
mod submit;
mod up;
