//! The arguments that all commands share.

use crate::{command::Command, exit::EXIT_CODES};
use clap::Parser;
use std::path::PathBuf;

/// Jobs for virtualization platforms, over NATS
#[derive(Debug, Parser)]
#[command(name = "virtbus", version, after_long_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the messaging server is, and how to write.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Common {
    /// The messaging server [environment: VIRTBUS_NATS_URL] [default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) server: Option<String>,
    /// Credentials: a .creds file or an NKey seed [environment: VIRTBUS_NATS_CREDS]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) creds: Option<PathBuf>,
    /// The ready file (or the folder) of `virtbus up` [environment: VIRTBUS_CONTEXT]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) context: Option<PathBuf>,
    /// One JSON value, or JSON lines when watching; errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_help_says_the_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("130  interrupted"), "{help}");
    }

    #[test]
    fn shared_options_may_stand_after_the_command() {
        let cli = Cli::try_parse_from(["virtbus", "list", "--json", "--server", "nats://x:1"]);
        let common = cli.unwrap().common;
        assert_eq!(common.server.as_deref(), Some("nats://x:1"));
        assert!(common.json);
    }
}
