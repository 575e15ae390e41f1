//! `virtbus wait`: says nothing until jobs are over, then how each ended.

use crate::{
    exit::{Exit, Failure},
    inputs,
    output::Output,
    screen::{self, Screen},
    watch::{self, Followed, Limits},
};
use std::time::Duration;
use virtbus_bus::Bus;

/// Wait until jobs are over; the exit code says how they ended
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The jobs: ids, at least 8 characters of a beginning or end, or `last`
    #[arg(required = true)]
    ids: Vec<String>,
    /// Give up after so long (exit code 7); the jobs go on
    #[arg(long, value_name = "TIME", value_parser = inputs::duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let ids = watch::find_ids(bus, &args.ids).await?;
    let limits = Limits {
        appears_in: Some(watch::APPEARS_IN),
        over_in: args.timeout,
    };
    let mut screen = Screen::silent(output);
    let records = match watch::follow(bus, &ids, limits, &mut screen).await? {
        Followed::Over(records) => records,
        Followed::Detached => return Ok(Exit::Interrupted),
    };
    for record in &records {
        if output.json {
            output.json_line(record)?;
        } else {
            output.text(&screen::describe(record))?;
        }
    }
    Ok(watch::exit_of(&records))
}
