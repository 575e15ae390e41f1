//! The service that speaks to one libvirt daemon, and takes the jobs for its domains.
//!
//! [`run`] is the program; [`run_watched`] is the same for those who want to hear of each step that
//! a job takes.

mod admit;
mod alone;
mod capacity;
mod catalog;
mod config;
mod domains;
mod files;
mod follow;
mod foreign;
mod leftover;
mod libvirt;
mod look;
mod observe;
mod overlay_file;
mod perform;
mod place;
mod probe;
mod register;
mod service;
mod task;
mod users;
mod watch;
mod xml;

pub use watch::{Moment, Step, Watch};

use std::process::ExitCode;

/// Runs the service, as its command line says.
#[must_use]
pub fn run() -> ExitCode {
    let serve = |daemon| service::serve(daemon, Watch::default());
    virtbus_daemon::run(service::SERVICE, serve)
}

/// Runs the service, as its environment says.
#[must_use]
pub fn run_watched(watch: Watch) -> ExitCode {
    let serve = |daemon| service::serve(daemon, watch);
    virtbus_daemon::run_by_environment(service::SERVICE, serve)
}
