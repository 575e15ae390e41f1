//! Which server to speak to: the command line, then a ready file, then the environment.

use crate::{args::Common, exit::Failure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};
use virtbus_bus::{Bus, ConnectConfig};

/// The name of the ready file in the folder of `virtbus up`.
pub(crate) const READY_FILE: &str = "ready.json";
/// The role whose credentials a person at the command line uses.
const ROLE: &str = "admin";

/// The ready file of `virtbus up`: all a program needs to use, stop or restart what runs there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The messaging server.
    pub(crate) nats: String,
    /// The feedback service: console, websocket, HTTP.
    pub(crate) http: String,
    /// The storage service's transfers.
    pub(crate) transfer: String,
    /// A token that may do everything.
    pub(crate) token: String,
    /// Credentials per role; empty when nobody has to log in.
    #[serde(default)]
    pub(crate) creds: BTreeMap<String, PathBuf>,
    /// The one pool.
    pub(crate) pool: String,
    /// Its folder.
    pub(crate) pool_root: PathBuf,
    /// The hypervisor's name.
    pub(crate) hypervisor: String,
    /// Process ids by name.
    pub(crate) pids: BTreeMap<String, u32>,
    /// Configuration files by name.
    pub(crate) config: BTreeMap<String, PathBuf>,
    /// Programs by name.
    pub(crate) bin: BTreeMap<String, PathBuf>,
}

impl Ready {
    /// Reads a ready file, or the one in a folder.
    ///
    /// # Errors
    /// When it isn't there, or isn't one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let file = if path.is_dir() {
            path.join(READY_FILE)
        } else {
            path.to_owned()
        };
        let shown = file.display();
        let text = std::fs::read(&file).map_err(|error| {
            Failure::failed(format!("can't read the context {shown}: {error}")).hint(
                "`virtbus up --dir DIR` writes it once all is ready, and removes it at its end",
            )
        })?;
        serde_json::from_slice(&text)
            .map_err(|error| Failure::failed(format!("{shown} is no ready file: {error}")))
    }
}

/// Where to connect, and what the ready file says beside that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context {
    pub(crate) nats: ConnectConfig,
    pub(crate) ready: Option<Ready>,
}

impl Context {
    /// From the arguments and the environment.
    ///
    /// # Errors
    /// When a ready file was named and can't be read.
    pub(crate) fn resolve(
        common: &Common,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let env = |name| env(name).filter(|value| !value.is_empty());
        let text = |name| env(name).and_then(|value| value.into_string().ok());
        // What was said on the command line goes before what happens to be in the environment.
        let named_here = common.server.is_some();
        let path = common.context.clone().or_else(|| {
            let is_open = !named_here && env("VIRTBUS_NATS_URL").is_none();
            env("VIRTBUS_CONTEXT")
                .filter(|_| is_open)
                .map(PathBuf::from)
        });
        let ready = path.as_deref().map(Ready::read).transpose()?;
        let url = common
            .server
            .clone()
            .or_else(|| ready.as_ref().map(|ready| ready.nats.clone()))
            .or_else(|| text("VIRTBUS_NATS_URL"))
            .or_else(|| text("VIRTBUS__NATS__URL"));
        let credentials = common
            .creds
            .clone()
            .or_else(|| {
                ready
                    .as_ref()
                    .and_then(|ready| ready.creds.get(ROLE).cloned())
            })
            .or_else(|| env("VIRTBUS_NATS_CREDS").map(PathBuf::from))
            // What the services are configured with, for containers that share an environment.
            .or_else(|| env("VIRTBUS__NATS__NKEY_FILE").map(PathBuf::from))
            .or_else(|| env("VIRTBUS__NATS__CREDENTIALS").map(PathBuf::from));
        let mut nats = ConnectConfig::default();
        nats.url = url.unwrap_or(nats.url);
        if credentials.as_deref().is_some_and(is_seed) {
            nats.nkey_file = credentials;
        } else {
            nats.credentials = credentials;
        }
        Ok(Self { nats, ready })
    }

    /// From the arguments and this process's environment.
    ///
    /// # Errors
    /// As [`Context::resolve`].
    pub(crate) fn new(common: &Common) -> Result<Self, Failure> {
        Self::resolve(common, |name| std::env::var_os(name))
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(crate) async fn connect(&self) -> Result<Bus, Failure> {
        Ok(Bus::connect(&self.nats, "virtbus-cli").await?)
    }
}

/// Whether a file holds nothing but the seed of an NKey. One that can't be read is told as it's used.
fn is_seed(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim_start().starts_with("SU"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> String {
        r#"{"nats":"nats://127.0.0.1:1","http":"","transfer":"","token":"t",
            "creds":{"admin":"/d/admin.nk"},"pool":"default","pool_root":"/d/pool",
            "hypervisor":"h","pids":{},"config":{},"bin":{}}"#
            .to_owned()
    }

    fn resolve(common: &Common, env: &[(&str, &str)]) -> Context {
        let find = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Context::resolve(common, find).unwrap()
    }

    #[test]
    fn the_command_line_goes_before_the_ready_file_and_that_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(READY_FILE);
        std::fs::write(&path, ready()).unwrap();
        let env = [("VIRTBUS_NATS_URL", "nats://env:1")];
        let mut common = Common::default();
        assert_eq!(resolve(&common, &[]).nats.url, "nats://127.0.0.1:4222");
        assert_eq!(resolve(&common, &env).nats.url, "nats://env:1");
        common.context = Some(folder.path().to_owned());
        let context = resolve(&common, &env);
        assert_eq!(context.nats.url, "nats://127.0.0.1:1");
        assert_eq!(context.nats.credentials, Some("/d/admin.nk".into()));
        common.server = Some("nats://flag:1".to_owned());
        assert_eq!(resolve(&common, &env).nats.url, "nats://flag:1");
    }

    #[test]
    fn a_context_of_the_environment_yields_to_a_named_server() {
        let env = [("VIRTBUS_CONTEXT", "/nowhere")];
        let common = Common {
            server: Some("nats://flag:1".to_owned()),
            ..Common::default()
        };
        assert!(resolve(&common, &env).ready.is_none());
        let missing = Context::resolve(&Common::default(), |name| {
            (name == "VIRTBUS_CONTEXT").then(|| "/nowhere".into())
        });
        assert!(missing.unwrap_err().message.contains("/nowhere"));
    }
}
