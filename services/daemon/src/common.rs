//! The sections of the configuration that all services have.

use crate::{auth::Algorithm, config::Problem};
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use tracing_subscriber::EnvFilter;
use virtbus_bus::ConnectConfig;
use virtbus_wire::WorkerId;

/// The keys of [`Common`] at the top of the tree.
pub(crate) const KEYS: [&str; 7] = [
    "nats",
    "http",
    "auth",
    "log",
    "worker",
    "state_dir",
    "pid_file",
];

/// What all services are told.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Common {
    /// How to reach the messaging server.
    pub nats: ConnectConfig,
    /// The HTTP listener: health and metrics, and what the service offers besides.
    pub http: Http,
    /// Whose tokens are believed.
    pub auth: Auth,
    /// What is logged, and how.
    pub log: Log,
    /// Who this process is among the workers.
    pub worker: Worker,
    /// Where the service keeps its own files.
    pub state_dir: Option<Utf8PathBuf>,
    /// The process id is written here while the service runs.
    pub pid_file: Option<Utf8PathBuf>,
}

/// The HTTP listener.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for Http {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { listen }
    }
}

/// Whose tokens are believed.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The one algorithm; what a token says of itself doesn't count.
    pub algorithm: Algorithm,
    /// The key: for HS256 the secret itself, else a public key (PEM). Without one nobody gets in.
    pub key_file: Option<Utf8PathBuf>,
    /// Tokens must name this in `aud`.
    pub audience: String,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Hs256,
            key_file: None,
            audience: "virtbus".to_owned(),
        }
    }
}

/// What is logged.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// As in `info,virtbus_bus=debug`.
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Who this process is among the workers.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// `<service>-<host name>` by default. No two running processes may share one.
    pub id: Option<WorkerId>,
}

impl Common {
    /// What can't be used although its form is right.
    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(error) = self.log.filter.parse::<EnvFilter>() {
            problems.push(Problem::new("log.filter", error));
        }
        if self.nats.url.trim().is_empty() {
            problems.push(Problem::new("nats.url", "is empty"));
        }
        if self.auth.audience.is_empty() {
            problems.push(Problem::new("auth.audience", "is empty"));
        }
        problems
    }
}
