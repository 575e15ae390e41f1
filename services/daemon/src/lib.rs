//! What every service process shares: configuration, logs, signals, exit codes, health, identity.
//!
//! A service's `main` is one call of [`run`]. It reads the command line, loads and checks the
//! configuration, sets up logs, and gives the service a [`Daemon`]: its settings, who it is, a
//! token that is cancelled when it's asked to stop, and handles for health and metrics.
//!
//! ```no_run
//! # use serde::{Deserialize, Serialize};
//! # use std::process::ExitCode;
//! use virtbus_daemon::{Daemon, Fatal, Service, Settings};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Own {
//!     greeting: String,
//! }
//!
//! impl Settings for Own {}
//!
//! const SERVICE: Service = Service { name: "virtbus-example", short: "example", version: "1.0.0" };
//!
//! fn main() -> ExitCode {
//!     virtbus_daemon::run(SERVICE, serve)
//! }
//!
//! async fn serve(daemon: Daemon<Own>) -> Result<(), Fatal> {
//!     let bus = daemon.connect().await?;
//!     daemon.listen(daemon.router()).await?;
//!     daemon.stop.cancelled().await;
//!     bus.close().await;
//!     Ok(())
//! }
//! ```

mod args;
pub mod auth;
mod beat;
pub mod common;
pub mod config;
mod connection;
mod exit;
pub mod health;
mod identity;
mod log;
mod mask;
mod run;

pub use beat::Beat;
pub use common::Common;
pub use config::{ConfigError, Problem, Settings};
pub use exit::{Exit, Fatal};
pub use health::{Metrics, Readiness};
pub use identity::Identity;
pub use run::{Daemon, Service, run, run_by_environment};
