//! The connection: credentials, reconnects with jitter, and what the server says behind our back.

use crate::{
    error::BusError,
    transport::{Nats, Transport, Wire},
};
use async_nats::{Client, ConnectOptions, Event, Request, RequestError, jetstream};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use virtbus_wire::control::Operation;

/// How often the server is pinged: two missed answers mean a lost connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(4);

/// How to reach the messaging server.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectConfig {
    /// Its address, or several separated by commas: `nats://127.0.0.1:4222`.
    #[serde(default = "default_url")]
    pub url: String,
    /// A file with a user's credentials: a `.creds` file.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// A file with the seed of an NKey (`SU…`), as `nats/accounts.conf` asks for.
    #[serde(default)]
    pub nkey_file: Option<PathBuf>,
    /// A user's name, for servers that keep passwords.
    #[serde(default)]
    pub user: Option<String>,
    /// A file with that user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The prefix of reply subjects, `_INBOX` by default; permissions may ask for one per role.
    #[serde(default)]
    pub inbox_prefix: Option<String>,
    /// A file with the authority to trust, when the server speaks TLS under a private one.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn default_url() -> String {
    "nats://127.0.0.1:4222".to_owned()
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            url: default_url(),
            credentials: None,
            nkey_file: None,
            user: None,
            password_file: None,
            inbox_prefix: None,
            ca_file: None,
        }
    }
}

/// How the connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether there is one.
    pub connected: bool,
    /// How many there were so far, this one included: a new one has lost what the old one asked for.
    pub connections: u64,
    /// What the server last refused: a missing permission shows as a time-out elsewhere.
    pub refused: Option<String>,
    /// Messages that were dropped since their subscription was read too slowly.
    pub slow_consumers: u64,
}

/// The connection to the messaging server, shared by all parts of a service.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) wire: Wire,
    health: watch::Receiver<Health>,
}

/// Why there is no connection at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file of the configuration can't be read.
    #[error("can't read {what}: {reason}")]
    Secret {
        /// Which setting.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// The server can't be reached, or refuses us.
    #[error("can't connect to {url}: {reason}")]
    Refused {
        /// The address tried.
        url: String,
        /// What the client said.
        reason: String,
    },
}

impl Bus {
    /// Connects; afterwards the connection mends itself, for ever.
    ///
    /// # Errors
    /// When a credential can't be read, or the server can't be reached or refuses us now.
    pub async fn connect(config: &ConnectConfig, name: &str) -> Result<Self, ConnectError> {
        let (report, health) = watch::channel(Health::default());
        let options = options(config, name)?.event_callback(move |event| {
            note(&report, &event);
            std::future::ready(())
        });
        let urls: Vec<&str> = config.url.split(',').map(str::trim).collect();
        let client = options
            .connect(urls)
            .await
            .map_err(|error| ConnectError::Refused {
                url: config.url.clone(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            wire: Wire::Nats(Arc::new(Nats::new(client))),
            health,
        })
    }

    /// Messages carried by something else than the client: a simulation.
    #[must_use]
    pub fn over(transport: Arc<dyn Transport>) -> Self {
        let health = transport.health();
        let wire = Wire::Other(transport);
        Self { wire, health }
    }

    /// The plain client.
    ///
    /// # Panics
    /// Over another transport: only what is never simulated may ask for it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.nats().client
    }

    /// The persistent streams.
    ///
    /// # Panics
    /// As [`Bus::client`].
    #[must_use]
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.nats().context
    }

    fn nats(&self) -> &Nats {
        match &self.wire {
            Wire::Nats(nats) => nats,
            Wire::Other(_) => panic!("there is no client over another transport"),
        }
    }

    /// How the connection is, now and from now on.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// A request and its answer.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub async fn request(
        &self,
        subject: &str,
        payload: impl Into<bytes::Bytes>,
    ) -> Result<async_nats::Message, BusError> {
        let answer = self.ask(subject.to_owned(), None, payload.into()).await;
        answer.map_err(|error| BusError::unreachable(subject, error))
    }

    /// A request to the control service and its answer, waited for as long as the service may take.
    ///
    /// # Errors
    /// When no answer comes in time, or nobody is there to answer.
    pub async fn control(
        &self,
        operation: Operation,
        body: impl Into<bytes::Bytes>,
    ) -> Result<async_nats::Message, RequestError> {
        let patience = operation.deadline() + REQUEST_TIMEOUT;
        let request = Request::new().payload(body.into()).timeout(Some(patience));
        let client = self.client();
        client.send_request(operation.subject(), request).await
    }

    /// Sends what is still buffered and ends the connection.
    pub async fn close(&self) {
        let Wire::Nats(nats) = &self.wire else {
            return;
        };
        // Nothing that matters is lost with an unflushed buffer: every promise was acknowledged.
        let drained = tokio::time::timeout(REQUEST_TIMEOUT, nats.client.drain()).await;
        if !matches!(drained, Ok(Ok(()))) {
            tracing::debug!("the connection was closed without draining");
        }
    }
}

fn options(config: &ConnectConfig, name: &str) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .name(name)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(reconnect_delay);
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if let Some(ca_file) = &config.ca_file {
        options = options
            .add_root_certificates(ca_file.clone())
            .require_tls(true);
    }
    if let Some(path) = &config.credentials {
        let text = read_secret("nats.credentials", path)?;
        let unusable = |error: std::io::Error| ConnectError::Secret {
            what: "nats.credentials",
            reason: error.to_string(),
        };
        options = options.credentials(&text).map_err(unusable)?;
    }
    if let Some(path) = &config.nkey_file {
        let seed = read_secret("nats.nkey_file", path)?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(user) = &config.user {
        let password = match &config.password_file {
            Some(path) => read_secret("nats.password_file", path)?
                .trim_end()
                .to_owned(),
            None => String::new(),
        };
        options = options.user_and_password(user.clone(), password);
    }
    Ok(options)
}

fn read_secret(what: &'static str, path: &PathBuf) -> Result<String, ConnectError> {
    std::fs::read_to_string(path).map_err(|error| ConnectError::Secret {
        what,
        reason: error.to_string(),
    })
}

/// Full jitter, so that a thousand services don't come back in step.
fn reconnect_delay(attempts: usize) -> Duration {
    let doubled = Duration::from_millis(50).saturating_mul(1 << attempts.min(10));
    doubled
        .min(RECONNECT_DELAY_MAX)
        .mul_f64(rand::rng().random_range(0.1..1.0))
}

fn note(report: &watch::Sender<Health>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!("connected to the messaging server");
            report.send_modify(|health| {
                health.connected = true;
                health.connections += 1;
                // Permissions may have been mended meanwhile; what is still refused is told anew.
                health.refused = None;
            });
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("lost the connection to the messaging server");
            report.send_modify(|health| health.connected = false);
        }
        Event::SlowConsumer(subscription) => {
            report.send_modify(|health| health.slow_consumers += 1);
            let dropped = report.borrow().slow_consumers;
            // Thousands may be, one after the other.
            if dropped.is_power_of_two() {
                let text = "messages were dropped: a subscription is read too slowly";
                tracing::warn!(subscription, dropped, "{text}");
            }
        }
        Event::ServerError(error) => {
            tracing::error!(%error, "the messaging server refused something");
            report.send_modify(|health| health.refused = Some(error.to_string()));
        }
        Event::ClientError(error) => tracing::warn!(%error, "messaging client"),
        Event::LameDuckMode => tracing::info!("the messaging server is about to stop"),
        Event::Draining => {}
    }
}
