//! Logs: to standard error, as text on a terminal and as JSON elsewhere.

use crate::{
    common::{Log, LogFormat},
    exit::Fatal,
};
use std::io::IsTerminal as _;
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt as _};

/// Sets up the process's logs, once.
///
/// # Errors
/// When the filter can't be read, or logs were set up before.
pub(crate) fn start(log: &Log) -> Result<(), Fatal> {
    let filter: EnvFilter = log
        .filter
        .parse()
        .map_err(|error| Fatal::config("log.filter", error))?;
    let on_terminal = std::io::stderr().is_terminal();
    let as_text = match log.format {
        LogFormat::Auto => on_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if as_text {
        lines.with_ansi(on_terminal).finish().try_init()
    } else {
        lines.json().flatten_event(true).finish().try_init()
    };
    started.map_err(|error| Fatal::Bug(error.to_string()))?;
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a defect ended a part of the service");
    }));
    Ok(())
}
