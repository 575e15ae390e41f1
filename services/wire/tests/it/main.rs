//! The rules of the wire, seen from outside the crate.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arrivals;
mod delivery;
mod jobs;
mod locks;
mod mending;
mod orders;
mod poison;
mod schemas;
mod states;
mod tasks;
mod transitions;
