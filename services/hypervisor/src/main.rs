//! `virtbus-hypervisor`: speaks to one libvirt daemon, and takes the jobs for its domains.

mod alone;
mod capacity;
mod catalog;
mod config;
mod domains;
mod files;
mod follow;
mod foreign;
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
mod xml;

use std::process::ExitCode;

fn main() -> ExitCode {
    virtbus_daemon::run(service::SERVICE, service::serve)
}
