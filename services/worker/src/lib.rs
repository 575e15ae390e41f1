//! The loop that every worker shares: it takes jobs strictly by priority, claims them by
//! compare-and-set, keeps their messages while they run, and writes how they ended.
//!
//! A service brings a [`Perform`]: what its tasks lock, do, clean up and put back. It never sees
//! a message, a record's revision or an acknowledgement.

mod ahead;
mod answer;
mod aside;
mod attempt;
mod binding;
mod claim;
mod config;
mod drain;
mod held;
mod intake;
mod keeper;
mod metrics;
pub mod perform;
mod poison;
mod prepare;
mod pressure;
pub mod process;
mod rate;
pub mod serve;
pub mod slots;
mod stop;
mod supervise;
mod worker;

pub use answer::{done, pong};
pub use config::WorkConfig;
pub use perform::{Assignment, Confirm, Confirmed, Done, Free, Look, Perform, Run, Stop};
pub use pressure::PressureConfig;
pub use serve::{Setup, expect_queues, serve};
pub use slots::SlotsConfig;
pub use stop::{StopSignal, Why};
pub use worker::ServeError;
