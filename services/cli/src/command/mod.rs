//! The commands, one file each: arguments, what is done, what is printed.

mod cancel;
mod completion;
pub(crate) mod control;
mod dlq;
pub(crate) mod doctor;
mod each;
mod explain;
mod hypervisors;
mod list;
pub(crate) mod pools;
mod priority;
mod queues;
mod retry;
mod setup;
mod show;
mod submit;
mod token;
mod up;
mod wait;
mod watch;
mod workers;

use crate::{
    args::{Cli, Common},
    context::Context,
    exit::{Exit, Failure},
    output::Output,
};
use virtbus_bus::Bus;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Setup(setup::Args),
    Up(up::Args),
    Token(token::Args),
    Submit(Box<submit::Args>),
    List(list::Args),
    Show(show::Args),
    Watch(watch::Args),
    Cancel(cancel::Args),
    Priority(priority::Args),
    Retry(retry::Args),
    Wait(wait::Args),
    Explain(explain::Args),
    Dlq(dlq::Args),
    Queues(queues::Args),
    Workers(workers::Args),
    Hypervisors(hypervisors::Args),
    Pools(pools::Args),
    Doctor(doctor::Args),
    Completion(completion::Args),
}

/// Runs a command.
///
/// # Errors
/// Why it couldn't do what it was asked for.
pub(crate) async fn run(cli: Cli) -> Result<Exit, Failure> {
    let common = &cli.common;
    let output = Output::new(common.json);
    match cli.command {
        Command::Up(args) => up::run(args, output).await,
        Command::Completion(args) => completion::run(&args, output),
        Command::Token(args) => token::run(&args, common, output),
        Command::Setup(args) => setup::run(&args, &bus(common).await?, output).await,
        Command::Submit(args) => {
            let context = Context::new(common)?;
            let bus = context.connect().await?;
            submit::run(&args, &context, &bus, output).await
        }
        Command::List(args) => list::run(&args, &bus(common).await?, output).await,
        Command::Show(args) => show::run(&args, &bus(common).await?, output).await,
        Command::Watch(args) => watch::run(&args, &bus(common).await?, output).await,
        Command::Cancel(args) => cancel::run(&args, &bus(common).await?, output).await,
        Command::Priority(args) => priority::run(&args, &bus(common).await?, output).await,
        Command::Retry(args) => retry::run(&args, &bus(common).await?, output).await,
        Command::Wait(args) => wait::run(&args, &bus(common).await?, output).await,
        Command::Explain(args) => explain::run(&args, &bus(common).await?, output).await,
        Command::Dlq(args) => dlq::run(&args, &bus(common).await?, output).await,
        Command::Queues(args) => queues::run(&args, &bus(common).await?, output).await,
        Command::Hypervisors(args) => hypervisors::run(&args, &bus(common).await?, output).await,
        Command::Workers(args) => workers::run(&args, &bus(common).await?, output).await,
        Command::Pools(args) => pools::run(&args, &bus(common).await?, output).await,
        Command::Doctor(args) => doctor::run(&args, common, output).await,
    }
}

async fn bus(common: &Common) -> Result<Bus, Failure> {
    Context::new(common)?.connect().await
}
