//! `virtbus-core`: see the library of the same name.

use std::process::ExitCode;
use virtbus_core::service;

fn main() -> ExitCode {
    virtbus_daemon::run(service::SERVICE, service::serve)
}
