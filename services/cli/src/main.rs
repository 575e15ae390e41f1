//! `virtbus`: the command line. It needs the messaging server alone: jobs are published to their
//! queues, records are read from their bucket, and every change of a record is an event.
//!
//! A command returns how it ended; errors are printed here, once.

mod args;
mod command;
mod context;
mod exit;
mod inputs;
mod jobs;
mod output;
mod place;
mod publish;
mod scan;
mod screen;
mod up;
mod watch;

use args::Cli;
use clap::{Parser, error::ErrorKind};
use exit::{Exit, Failure};
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error).into(),
    };
    let json = cli.common.json;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(command::run(cli)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            report(&failure, json);
            failure.exit.into()
        }
    }
}

/// Help and version are answers; what is left is told in the form that was asked for.
fn refuse_arguments(error: &clap::Error) -> Exit {
    let is_answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if wants_json && !is_answer {
        let text = error.to_string();
        let message = text.trim().trim_start_matches("error: ");
        report(&Failure::usage(message), true);
        return Exit::Usage;
    }
    // With the output closed nobody is there to be told.
    drop(error.print());
    if is_answer { Exit::Done } else { Exit::Usage }
}

fn report(failure: &Failure, json: bool) {
    if failure.exit == Exit::Done {
        return;
    }
    let mut out = std::io::stderr().lock();
    let text = if json {
        failure.to_json().to_string()
    } else {
        let hint = failure.hint.as_ref().map(|hint| format!("\nhint: {hint}"));
        format!("error: {}{}", failure.message, hint.unwrap_or_default())
    };
    // With standard error closed the exit code has to do.
    drop(writeln!(out, "{text}"));
}
