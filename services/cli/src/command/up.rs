//! `virtbus up`: all of virtbus on this machine, for a trial.

use crate::{
    exit::{Exit, Failure},
    output::Output,
    up::{self, Options},
};
use std::path::PathBuf;

/// Run all of virtbus on this machine, for a trial; Ctrl-C or SIGTERM stops all
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The folder keeps everything: configuration, logs, jobs, disks. It can be used again.
With `--context DIR` every other command finds its way there: virtbus list --context DIR")]
pub(crate) struct Args {
    /// The folder for everything
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where to write, once all is ready, what a program needs to know; DIR/ready.json too
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// The libvirt daemon; a session daemon of its own by default, test:///default without libvirt
    #[arg(long, value_name = "URI")]
    hypervisor_uri: Option<String>,
    /// With a key per role instead of open to everybody on this machine
    #[arg(long)]
    secure: bool,
}

pub(crate) async fn run(args: Args, output: Output) -> Result<Exit, Failure> {
    let options = Options {
        dir: args.dir,
        ready_file: args.ready_file,
        hypervisor_uri: args.hypervisor_uri,
        secure: args.secure,
    };
    up::run(options, output).await
}
