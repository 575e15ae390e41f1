//! Black box: the whole system as `virtbus up` runs it, seen from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod bad_params;
mod cancels;
mod cli;
mod crash;
mod demo;
mod domains;
mod feedback;
mod life;
mod main_job;
mod order;
mod readiness;
mod readme;
mod secure;
mod services;
mod tasks;
mod thousand;
mod tools;

use tokio::sync::OnceCell;
use virtbus_tests::stack::{Options, Shared, Stack};

/// The stack of all tests that disturb nobody: each has disks and jobs of its own there.
async fn shared() -> Shared {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    let options = Options {
        record_tools: true,
        ..Options::default()
    };
    Stack::shared(&STACK, options).await
}
