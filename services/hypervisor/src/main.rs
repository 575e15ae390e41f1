//! `virtbus-hypervisor`: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    virtbus_hypervisor::run()
}
