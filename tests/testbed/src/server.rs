//! A real nats-server for one test: own folder, free ports, ended with the test.
//!
//! The program is `$VIRTBUS_NATS_SERVER`, else `.dev/bin/nats-server` of the checkout, else the
//! one on the PATH. A test without one fails; none is skipped.

use crate::watch::until;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The folder with the definitions and server configurations.
pub fn nats_folder() -> PathBuf {
    checkout().join("nats")
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The nats-server program.
pub fn program() -> OsString {
    if let Some(named) = std::env::var_os("VIRTBUS_NATS_SERVER") {
        return named;
    }
    let local = checkout().join(".dev/bin/nats-server");
    if local.exists() {
        return local.into();
    }
    "nats-server".into()
}

/// Copies `nats/` into `to`, with the store in a folder beside the copy instead of `/var/lib`.
pub fn copy_nats_folder(to: &Path) {
    for entry in fs::read_dir(nats_folder()).unwrap() {
        copy_tree(&entry.unwrap().path(), to);
    }
}

fn copy_tree(from: &Path, into: &Path) {
    let target = into.join(from.file_name().unwrap());
    if from.is_dir() {
        fs::create_dir_all(&target).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            copy_tree(&entry.unwrap().path(), &target);
        }
    } else {
        let text = fs::read_to_string(from).unwrap();
        fs::write(target, text.replace("/var/lib/virtbus/nats", "store")).unwrap();
    }
}

#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// A running server.
pub struct Server {
    /// `nats://127.0.0.1:<port>`
    pub url: String,
    child: Child,
    folder: TempDir,
}

impl Server {
    /// With `nats/dev.conf`.
    pub async fn dev() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start(folder, &nats_folder().join("dev.conf"), &[]).await
    }

    /// In `folder`, with `config` and more arguments.
    pub async fn start(folder: TempDir, config: &Path, arguments: &[&str]) -> Self {
        let log = File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program())
            .current_dir(folder.path())
            .arg("-c")
            .arg(config)
            .args(["-a", "127.0.0.1", "-p", "-1", "-m", "-1"])
            .arg("--ports_file_dir")
            .arg(folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program().display()));
        let mut server = Self {
            url: String::new(),
            child,
            folder,
        };
        server.url = until("the ports file", async || server.ports()).await;
        server
    }

    fn ports(&mut self) -> Result<String, String> {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("nats-server ended, {status}");
        }
        let name = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|ending| ending == "ports"))
            .ok_or("no ports file")?;
        let text = fs::read_to_string(name).unwrap();
        let mut ports: Ports = serde_json::from_str(&text).map_err(|_| "half a ports file")?;
        Ok(ports.nats.remove(0))
    }

    /// SIGSTOP: connections stay open, and nobody answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success(), "{signal}");
    }

    /// A client without limits or credentials.
    pub async fn client(&self) -> Client {
        connect(&self.url, ConnectOptions::new()).await
    }

    /// JetStream for [`Self::client`].
    pub async fn jetstream(&self) -> Context {
        jetstream::new(self.client().await)
    }
}

/// Connects, once the server listens.
pub async fn connect(url: &str, options: ConnectOptions) -> Client {
    until("a connection", async || options.clone().connect(url).await).await
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("the log of {}:\n{log}", self.url);
        }
        // Neither can fail in a way that matters to a test that is over.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
