//! The worker's loop against a real server, with work that only notes what happened.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cancels;
mod claims;
mod drains;
mod leases;
mod lines;
mod order;
mod poison;
mod probe;
mod site;
mod takeovers;
mod waits;
