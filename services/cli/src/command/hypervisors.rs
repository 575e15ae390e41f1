//! `virtbus hypervisors`: the hosts; to let one start no more domains, and to say that one is off.

use super::control;
use crate::{
    exit::{Exit, Failure},
    output::{Cell, Output, Tone},
    screen,
};
use serde_json::{Value, json};
use virtbus_bus::Bus;
use virtbus_wire::{Label, control::Operation};

/// List the hosts, or drain or fence one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Let a host start no more domains; what it runs goes on
    Drain(OnHost),
    /// Let a drained host start domains again
    Undrain(OnHost),
    /// Give your word that a host is off: its domains are off then, and their disks free
    Fence(Fence),
}

#[derive(Debug, clap::Args)]
struct OnHost {
    /// The host
    hypervisor: Label,
    /// Why, for people
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Fence {
    /// The host
    hypervisor: Label,
    /// How you know, for people
    #[arg(long)]
    reason: String,
    /// Start elsewhere what should run
    #[arg(long)]
    restart: bool,
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    match &args.action {
        None => list(bus, output).await,
        Some(Action::Drain(on)) => drain(bus, output, Operation::HypervisorsDrain, on).await,
        Some(Action::Undrain(on)) => drain(bus, output, Operation::HypervisorsUndrain, on).await,
        Some(Action::Fence(asked)) => fence(bus, output, asked).await,
    }
}

async fn list(bus: &Bus, output: Output) -> Result<Exit, Failure> {
    let answer = control::ask(bus, Operation::HypervisorsList, &json!({})).await?;
    if output.json {
        output.value(&answer)?;
        return Ok(Exit::Done);
    }
    let hosts = answer.get("hypervisors").and_then(Value::as_array);
    let rows: Vec<Vec<Cell>> = hosts.into_iter().flatten().map(row).collect();
    output.table(
        &["HOST", "POOL", "STATE", "CPUS", "MEMORY", "BY", "REASON"],
        &rows,
    )?;
    Ok(Exit::Done)
}

fn row(host: &Value) -> Vec<Cell> {
    let text = |name: &str| screen::plain(host.get(name).unwrap_or(&Value::Null));
    let state = text("state");
    let tone = match state.as_str() {
        "up" => Tone::Plain,
        _ => Tone::Bad,
    };
    vec![
        text("hypervisor").into(),
        text("pool").into(),
        Cell::new(state, tone),
        text("cpus").into(),
        text("memory").into(),
        text("by").into(),
        text("reason").into(),
    ]
}

async fn drain(
    bus: &Bus,
    output: Output,
    operation: Operation,
    on: &OnHost,
) -> Result<Exit, Failure> {
    let request = json!({"hypervisor": on.hypervisor, "reason": on.reason});
    control::change(bus, output, operation, request, |answer| {
        let state = screen::plain(answer.get("state").unwrap_or(&Value::Null));
        format!("{}: {state}", on.hypervisor)
    })
    .await
}

async fn fence(bus: &Bus, output: Output, asked: &Fence) -> Result<Exit, Failure> {
    let Fence {
        hypervisor,
        reason,
        restart,
    } = asked;
    let request = json!({"hypervisor": hypervisor, "reason": reason, "restart": restart});
    control::change(
        bus,
        output,
        Operation::HypervisorsFence,
        request,
        |answer| {
            let (off, restarted) = (names(answer, "domains"), names(answer, "restarted"));
            format!("{hypervisor}: fenced\noff now: {off}\nstarted elsewhere: {restarted}")
        },
    )
    .await
}

/// A list of names in an answer, in words.
fn names(answer: &Value, field: &str) -> String {
    let names = answer.get(field).and_then(Value::as_array);
    let names: Vec<&str> = names
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}
