//! `virtbus pools`: register pools, and see those there are.

use super::control;
use crate::{
    exit::{Exit, Failure},
    output::Output,
    scan, screen,
};
use async_nats::jetstream::context::GetStreamErrorKind;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, ops::ControlFlow};
use virtbus_bus::Bus;
use virtbus_wire::{Label, Size, control::Operation, span::Span};

const BUCKET: &str = "pools";

/// Register pools, and see those there are
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Register a pool, or change it; what isn't said has its default
    Register(Box<Register>),
    /// The registered pools
    List,
}

#[derive(Debug, clap::Args)]
struct Register {
    /// Its name
    pool: Label,
    /// How much of what is new it gets, compared to others
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// A kind of disk it's for
    #[arg(long, value_name = "NAME")]
    flavour: Vec<String>,
    /// Something it can do
    #[arg(long, value_name = "NAME")]
    capability: Vec<String>,
    /// Whether it takes jobs
    #[arg(long, value_parser = ["enabled", "draining", "disabled"])]
    state: Option<String>,
    /// Take it when nobody says which
    #[arg(long)]
    default: bool,
    /// The address that transfers of its disks go to
    #[arg(long, value_name = "URL")]
    transfer_url: Option<String>,
    /// How long a deleted disk stays in the trash, such as 7d
    #[arg(long, value_name = "TIME")]
    trash_keep: Option<Span>,
    /// The largest virtual size of a disk, such as 2TiB
    #[arg(long, value_name = "SIZE")]
    size_max: Option<Size>,
}

impl Register {
    fn request(&self) -> Value {
        let mut request = Map::new();
        let mut set = |name: &str, value: Value| request.insert(name.to_owned(), value);
        set("pool", json!(self.pool));
        if let Some(weight) = self.weight {
            set("weight", json!(weight));
        }
        if !self.flavour.is_empty() {
            set("flavours", json!(self.flavour));
        }
        if !self.capability.is_empty() {
            set("capabilities", json!(self.capability));
        }
        if let Some(state) = &self.state {
            set("state", json!(state));
        }
        if self.default {
            set("default", json!(true));
        }
        if let Some(url) = &self.transfer_url {
            set("transfer_url", json!(url));
        }
        if let Some(keep) = self.trash_keep {
            set("trash_keep", json!(keep.to_string()));
        }
        if let Some(size) = self.size_max {
            set("size_max", json!(size));
        }
        Value::Object(request)
    }
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    match &args.action {
        Action::Register(register) => {
            let answer = control::ask(bus, Operation::PoolsRegister, &register.request()).await?;
            if output.json {
                output.value(&answer)?;
            } else {
                output.text(&format!("pool {} is registered", register.pool))?;
            }
        }
        Action::List => list(bus, output).await?,
    }
    Ok(Exit::Done)
}

async fn list(bus: &Bus, output: Output) -> Result<(), Failure> {
    let pools = registered(bus).await?;
    if output.json {
        let pools: Vec<&Value> = pools.values().collect();
        return output.value(&json!({"pools": pools}));
    }
    let rows: Vec<_> = pools
        .iter()
        .map(|(name, pool)| {
            let text = |field: &str| screen::plain(pool.get(field).unwrap_or(&Value::Null));
            let default = if text("default") == "true" { "yes" } else { "" };
            vec![
                name.as_str().into(),
                text("state").into(),
                default.into(),
                text("weight").into(),
                text("trash_keep").into(),
                text("transfer_url").into(),
            ]
        })
        .collect();
    output.table(
        &["POOL", "STATE", "DEFAULT", "WEIGHT", "TRASH", "TRANSFERS"],
        &rows,
    )
}

/// The registered pools by name. Read from the bucket: core needn't be there.
///
/// # Errors
/// When the bucket can't be read.
pub(crate) async fn registered(bus: &Bus) -> Result<BTreeMap<String, Value>, Failure> {
    let mut pools = BTreeMap::new();
    scan::newest_first(bus, BUCKET, |stored| {
        // `_limits` and the like are settings, not pools.
        if stored.key.parse::<Label>().is_ok()
            && let Ok(pool) = serde_json::from_slice(&stored.payload)
        {
            pools.insert(stored.key, pool);
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(pools)
}

/// The names in a bucket of the catalogue; none where there is no such bucket yet.
///
/// # Errors
/// When the server doesn't answer.
pub(crate) async fn names(bus: &Bus, bucket: &str) -> Result<Vec<Label>, Failure> {
    let stream = bus.jetstream().get_stream(format!("KV_{bucket}")).await;
    if let Err(error) = stream {
        return match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(Vec::new()),
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => Err(Failure::unreachable(format!(
                "the bucket {bucket} can't be read: {error}"
            ))),
        };
    }
    let mut names = Vec::new();
    scan::newest_first(bus, bucket, |stored| {
        names.extend(stored.key.parse::<Label>());
        ControlFlow::Continue(())
    })
    .await?;
    names.sort();
    Ok(names)
}
