//! `virtbus token`: mints a token with the key that the feedback service checks with.

use crate::{
    args::Common,
    context::Context,
    exit::{Exit, Failure},
    inputs,
    output::Output,
    up::token::{self, Key},
};
use serde_json::json;
use std::{path::PathBuf, time::Duration};
use virtbus_wire::{
    Tenant, User,
    auth::{Scope, Scopes},
};

/// How long a token is good for when nothing is said.
const TTL: &str = "12h";

/// Mint a token for the console, the websocket and HTTP
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Whose
    #[arg(long)]
    user: User,
    /// The user's tenant
    #[arg(long)]
    tenant: Option<Tenant>,
    /// What it allows; jobs:read:own when left out
    #[arg(long, value_name = "SCOPE", value_parser = scope)]
    scope: Vec<Scope>,
    /// How long it's good for
    #[arg(long, value_name = "TIME", default_value = TTL, value_parser = inputs::duration)]
    ttl: Duration,
    /// The key's file [environment: VIRTBUS_TOKEN_KEY]
    #[arg(long, value_name = "FILE", env = "VIRTBUS_TOKEN_KEY", hide_env = true)]
    key: Option<PathBuf>,
    /// The feedback service's configuration, which names the key; that of the context by default
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    config: Option<PathBuf>,
}

fn scope(text: &str) -> Result<Scope, String> {
    text.parse().map_err(|_| {
        let known = Scope::ALL.map(Scope::as_str);
        format!("is not a scope; there are {}", known.join(", "))
    })
}

pub(crate) fn run(args: &Args, common: &Common, output: Output) -> Result<Exit, Failure> {
    let key = key(args, common)?;
    let scopes: Scopes = if args.scope.is_empty() {
        Scopes::from_iter([Scope::JobsReadOwn])
    } else {
        args.scope.iter().copied().collect()
    };
    let claims = token::claims(&args.user, args.tenant.as_ref(), scopes, args.ttl);
    let token = key.mint(&claims)?;
    if output.json {
        output.value(&json!({"token": token, "claims": claims}))?;
    } else {
        output.text(&token)?;
    }
    Ok(Exit::Done)
}

fn key(args: &Args, common: &Common) -> Result<Key, Failure> {
    if let Some(path) = &args.key {
        return Key::read(path);
    }
    let config = match &args.config {
        Some(path) => Some(path.clone()),
        None => {
            let ready = Context::new(common)?.ready;
            ready.and_then(|ready| ready.config.get("feedback").cloned())
        }
    };
    let config = config.ok_or_else(|| {
        Failure::usage("with which key?").hint(
            "say --key FILE, --config FILE (of the feedback service), or --context FILE (of `virtbus up`)",
        )
    })?;
    token::configured(&config)
}
