//! The command line that all services have.

use crate::run::Service;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;

/// What a service's command line says.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Configuration file (TOML); the environment (VIRTBUS__SECTION__KEY) goes before it
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Command {
    /// Look at the configuration, and start nothing
    Config {
        #[command(subcommand)]
        action: Look,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum Look {
    /// Say everything that is wrong with it; exit code 0 when nothing is, else 64
    Check,
    /// Print all settings in force, defaults included, secrets masked
    Show,
}

impl Args {
    /// Reads the process's command line.
    ///
    /// # Errors
    /// The message to print: an error, or the help or version that was asked for.
    pub(crate) fn read(service: &Service) -> Result<Self, clap::Error> {
        Self::read_from(service, std::env::args_os())
    }

    fn read_from<I, A>(service: &Service, args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = A>,
        A: Into<std::ffi::OsString> + Clone,
    {
        let command = Self::command()
            .name(service.name)
            .version(service.full_version());
        Self::from_arg_matches(&command.try_get_matches_from(args)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service {
        name: "virtbus-test",
        short: "test",
        version: "1.2.3",
    };

    #[test]
    fn the_file_may_stand_before_or_after_the_subcommand() {
        for line in [
            "x --config a.toml config check",
            "x config check --config a.toml",
        ] {
            let args = Args::read_from(&SERVICE, line.split(' ')).unwrap();
            assert_eq!(args.config, Some("a.toml".into()));
            let Some(Command::Config { action }) = args.command else {
                panic!("{args:?}");
            };
            assert_eq!(action, Look::Check);
        }
    }

    #[test]
    fn the_version_names_the_program() {
        let said = Args::read_from(&SERVICE, ["x", "--version"]).unwrap_err();
        assert!(said.to_string().contains("virtbus-test 1.2.3"), "{said}");
        assert!(!said.use_stderr());
    }
}
