//! The program itself: started with a configuration file, asked how it is, ended with the test.

use crate::bus::TestBus;
use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;
use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use virtbus_testbed::{port, until};

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The program.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtbus-feedback"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// A running feedback service.
pub(crate) struct Service {
    /// `127.0.0.1:<port>`
    pub(crate) address: String,
    child: Child,
    folder: TempDir,
}

impl Service {
    /// Starts it with these settings besides, and waits until it's ready.
    pub(crate) async fn start(bus: &TestBus, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_at(bus, folder, port::free(), settings).await
    }

    async fn start_at(bus: &TestBus, folder: TempDir, port: u16, settings: &str) -> Self {
        fs::write(folder.path().join("key"), SECRET).unwrap();
        let folder_name = folder.path().display();
        let config = format!(
            "state_dir = '{folder_name}'\npid_file = '{folder_name}/pid'\n\
             [nats]\nurl = '{}'\n[http]\nlisten = '127.0.0.1:{port}'\n\
             [auth]\nkey_file = '{folder_name}/key'\n{settings}\n",
            bus.server.url
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = program()
            .arg("--config")
            .arg(folder.path().join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut service = Self {
            address: format!("127.0.0.1:{port}"),
            child,
            folder,
        };
        until("readiness", async || service.ready().await).await;
        service
    }

    async fn ready(&mut self) -> Result<(), String> {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the service ended, {status}: {}", self.log());
        }
        match self.get("/readyz", None).await {
            Ok((200, _)) => Ok(()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends it and starts it again, at the same place.
    pub(crate) async fn restart(mut self, bus: &TestBus, settings: &str) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let port = self.address.rsplit(':').next().unwrap().parse().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        Self::start_at(bus, folder, port, settings).await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn pid_file(&self) -> Option<String> {
        fs::read_to_string(self.folder.path().join("pid")).ok()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the end", async || {
            self.child.try_wait().unwrap().ok_or("it still runs")
        })
        .await
    }

    /// The resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse::<u64>().unwrap() * 1024
    }

    /// A plain request: the status, and all of the answer.
    pub(crate) async fn get(
        &self,
        path: &str,
        token: Option<&str>,
    ) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let auth = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{auth}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).unwrap_or("0").parse();
        Ok((status.unwrap_or(0), answer))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the service:\n{}", self.log());
        }
        // Neither can fail in a way that matters to a test that is over.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A token that is valid for ten minutes.
pub(crate) fn token(user: &str, scope: &str) -> String {
    token_for(user, scope, 600)
}

/// A token that is valid for so many seconds.
pub(crate) fn token_for(user: &str, scope: &str, seconds: u64) -> String {
    let exp = get_current_timestamp() + seconds;
    let claims =
        json!({"sub": user, "tenant": "acme", "scope": scope, "exp": exp, "aud": "virtbus"});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).unwrap()
}
