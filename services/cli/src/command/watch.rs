//! `virtbus watch`: jobs until they are over, also those that are.

use crate::{
    exit::{Exit, Failure},
    inputs,
    output::Output,
    screen::Screen,
    watch::{self, Followed, Limits},
};
use std::time::Duration;
use virtbus_bus::Bus;

/// Follow jobs until all are over; Ctrl-C leaves them alone
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
    /// Say only how they ended, by the exit code
    #[arg(short, long)]
    quiet: bool,
    /// Give up after so long (exit code 7); the jobs go on
    #[arg(long, value_name = "TIME", value_parser = inputs::duration)]
    wait_timeout: Option<Duration>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let ids = watch::find_ids(bus, &args.ids).await?;
    let limits = Limits {
        appears_in: Some(watch::APPEARS_IN),
        over_in: args.wait_timeout,
    };
    let mut screen = if args.quiet {
        Screen::silent(output)
    } else {
        Screen::new(output)
    };
    match watch::follow(bus, &ids, limits, &mut screen).await? {
        Followed::Over(records) => Ok(watch::exit_of(&records)),
        Followed::Detached => Ok(Exit::Interrupted),
    }
}
