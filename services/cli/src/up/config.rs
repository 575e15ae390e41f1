//! The files that `up` writes into its folder: one configuration per process, each complete, so
//! that a program and its file are all it takes to start one of them again.

use super::{Name, files, ports::Ports};
use crate::exit::Failure;
use nkeys::KeyPair;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};
use virtbus_bus::topology::{ACCOUNTS_CONF, Role, keys_conf};

/// The one pool.
pub(crate) const POOL: &str = "default";
/// Seconds that running jobs get to finish at the stop, well within what the stop itself gets:
/// a job that is killed instead of handed back is missed only when its lease is out.
const DRAIN_S: u64 = 5;
/// The first line of every file.
const HEAD: &str = "# Written by `virtbus up`; changes are lost at its next start.";

/// Where everything lies.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) ports: Ports,
    /// The hypervisor's name.
    pub(crate) hypervisor: String,
    pub(crate) libvirt_uri: String,
    /// Seeds per role; empty when nobody has to log in.
    pub(crate) creds: BTreeMap<Role, PathBuf>,
}

impl Layout {
    pub(crate) fn config(&self, name: Name) -> PathBuf {
        match name {
            Name::Nats => self.dir.join("nats.conf"),
            Name::Core | Name::Storage | Name::Hypervisor | Name::Feedback => {
                self.dir.join(format!("{name}.toml"))
            }
        }
    }

    pub(crate) fn log(&self, name: Name) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    pub(crate) fn pid_file(&self, name: Name) -> PathBuf {
        self.dir.join("run").join(format!("{name}.pid"))
    }

    fn state_dir(&self, name: Name) -> PathBuf {
        self.dir.join("state").join(name.to_string())
    }

    pub(crate) fn pool_root(&self) -> PathBuf {
        self.dir.join("pool")
    }

    pub(crate) fn token_key(&self) -> PathBuf {
        self.dir.join("token.key")
    }

    pub(crate) fn port(&self, name: Name) -> u16 {
        self.ports.get(&name).copied().unwrap_or(0)
    }

    pub(crate) fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port(Name::Nats))
    }

    pub(crate) fn http_url(&self, name: Name) -> String {
        format!("http://127.0.0.1:{}", self.port(name))
    }

    /// Makes the folders and writes all configuration files.
    ///
    /// # Errors
    /// When one can't be written.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        for folder in ["log", "run", "nats"] {
            files::folder(&self.dir.join(folder))?;
        }
        files::folder(&self.pool_root())?;
        if !self.creds.is_empty() {
            files::write(&self.dir.join("accounts.conf"), ACCOUNTS_CONF)?;
        }
        files::write(&self.config(Name::Nats), &self.nats_conf())?;
        for name in Name::SERVICES {
            files::folder(&self.state_dir(name))?;
            files::write(&self.config(name), &self.service_toml(name))?;
        }
        Ok(())
    }

    fn nats_conf(&self) -> String {
        let port = self.port(Name::Nats);
        let store = quoted(&self.dir.join("nats"));
        let pid_file = quoted(&self.pid_file(Name::Nats));
        let accounts = if self.creds.is_empty() {
            ""
        } else {
            "\ninclude \"accounts.conf\""
        };
        format!(
            "{HEAD}\n\
             server_name: \"virtbus-up\"\n\
             listen: \"127.0.0.1:{port}\"\n\
             pid_file: {pid_file}\n\
             # Room for a job of 1 MiB and the headers of its copy in the dead letters.\n\
             max_payload: 2MB\n\n\
             jetstream {{\n  store_dir: {store}\n  max_file_store: 64GB\n  \
             max_memory_store: 256MB\n}}{accounts}"
        )
    }

    fn service_toml(&self, name: Name) -> String {
        let mut lines = vec![
            HEAD.to_owned(),
            format!("pid_file = {}", quoted(&self.pid_file(name))),
            format!("state_dir = {}", quoted(&self.state_dir(name))),
        ];
        if name == Name::Hypervisor {
            lines.push(format!("hypervisor = {}", text_of(&self.hypervisor)));
            lines.push(format!("pool = {}", text_of(POOL)));
        }
        lines.push(format!("\n[nats]\nurl = {}", text_of(&self.nats_url())));
        if let Some(role) = name.role()
            && let Some(path) = self.creds.get(&role)
        {
            lines.push(format!("nkey_file = {}", quoted(path)));
            let inbox = role.inbox_prefix();
            lines.push(format!("inbox_prefix = {}", text_of(&inbox)));
        }
        let port = self.port(name);
        lines.push(format!("\n[http]\nlisten = \"127.0.0.1:{port}\""));
        let key = quoted(&self.token_key());
        lines.push(format!("\n[auth]\nkey_file = {key}"));
        lines.push("\n[log]\nformat = \"text\"".to_owned());
        if name.takes_jobs() {
            // A trial is stopped by a person who waits for it.
            lines.push(format!("\n[work]\ndrain_s = {DRAIN_S}"));
        }
        match name {
            Name::Storage => {
                let root = quoted(&self.pool_root());
                let archive = quoted(&self.dir.join("archive"));
                lines.push(format!(
                    "\n[pools.{POOL}]\nroot = {root}\narchive = {archive}\ncreate = true"
                ));
            }
            Name::Hypervisor => {
                let uri = text_of(&self.libvirt_uri);
                lines.push(format!("\n[libvirt]\nuri = {uri}"));
                let root = quoted(&self.pool_root());
                lines.push(format!("\n[pools.{POOL}]\nroot = {root}"));
            }
            Name::Nats | Name::Core | Name::Feedback => {}
        }
        lines.join("\n")
    }
}

/// A key per role, made unless there: the seeds for the roles, the public ones for the server.
///
/// # Errors
/// When one can't be read or written.
pub(crate) fn ensure_keys(dir: &Path) -> Result<BTreeMap<Role, PathBuf>, Failure> {
    let folder = dir.join("creds");
    files::folder(&folder)?;
    let unusable = |error: nkeys::error::Error| Failure::failed(format!("a role's key: {error}"));
    let mut creds = BTreeMap::new();
    let mut public = BTreeMap::new();
    for role in Role::ALL {
        let path = folder.join(format!("{role}.nk"));
        if !path.exists() {
            let seed = KeyPair::new_user().seed().map_err(unusable)?;
            files::write_secret(&path, &seed)?;
        }
        let seed = std::fs::read_to_string(&path)?;
        let key = KeyPair::from_seed(seed.trim()).map_err(unusable)?;
        public.insert(role, key.public_key());
        creds.insert(role, path);
    }
    let text = keys_conf(|role| public.get(&role).cloned().unwrap_or_default());
    files::write(&dir.join("keys.conf"), text.trim_end())?;
    Ok(creds)
}

/// The name of this host as a hypervisor's: lower case, digits and hyphens.
pub(crate) fn hypervisor_name(host: &str) -> String {
    const LONGEST: usize = 40;
    let short = host.split('.').next().unwrap_or_default();
    let mut name = String::from("hv");
    for word in short
        .to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
    {
        let room = LONGEST.saturating_sub(name.len());
        if !word.is_empty() && room > 1 {
            // Writing to a string can't fail.
            let written = write!(name, "-{}", &word[..word.len().min(room)]);
            debug_assert!(written.is_ok());
        }
    }
    name
}

/// A path in quotes. What JSON escapes, TOML and the server's format read the same way.
fn quoted(path: &Path) -> String {
    text_of(&path.to_string_lossy())
}

fn text_of(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::Label;

    #[test]
    fn a_hosts_name_becomes_a_label_that_is_no_pools() {
        for (host, name) in [
            ("Web_1.example", "hv-web-1"),
            ("default", "hv-default"),
            ("", "hv"),
            ("--", "hv"),
        ] {
            assert_eq!(hypervisor_name(host), name);
            assert!(name.parse::<Label>().is_ok(), "{name}");
        }
        let long = hypervisor_name(&"x".repeat(200));
        assert!(long.parse::<Label>().is_ok(), "{long}");
    }

    #[test]
    fn keys_are_made_once_and_only_public_ones_reach_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let creds = ensure_keys(folder.path()).unwrap();
        let public = std::fs::read_to_string(folder.path().join("keys.conf")).unwrap();
        ensure_keys(folder.path()).unwrap();
        let again = std::fs::read_to_string(folder.path().join("keys.conf")).unwrap();
        assert_eq!(public, again);
        for (role, path) in creds {
            let seed = std::fs::read_to_string(path).unwrap();
            assert!(!public.contains(seed.trim()), "{role}");
        }
    }
}
