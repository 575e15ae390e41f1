//! `virtbus-hypervisor`: speaks to one libvirt daemon, and takes the jobs for its domains.
//!
//! So far it registers its host and answers `ping`; the tasks for domains fail with
//! `domain.unsupported`.

mod alone;
mod config;
mod libvirt;
mod perform;
mod register;
mod service;

use std::process::ExitCode;

fn main() -> ExitCode {
    virtbus_daemon::run(service::SERVICE, service::serve)
}
