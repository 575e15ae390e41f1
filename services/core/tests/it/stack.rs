//! A nats-server with our streams, and cores beside it, for one test.

use async_nats::{Client, HeaderMap, Message, Request};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use virtbus_bus::{
    Bus, ConnectConfig, Entry, Jobs,
    jobs::KEEP,
    topology::{Mode, Wanted, apply},
};
use virtbus_testbed::Server;
pub(crate) use virtbus_testbed::until;
use virtbus_wire::{JobId, Record, StateName};

/// How long an answer is waited for: a busy machine takes longer than a client's own limit.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test, and whose log is shown if the test fails.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Where it listens.
    pub(crate) async fn http(&self) -> String {
        until("an address", async || {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut addresses = lines.filter(|line| line["message"] == "listening");
            let address = addresses.find_map(|line| Some(line["address"].as_str()?.to_owned()));
            address.ok_or("none")
        })
        .await
    }

    /// The answer to a request without a token.
    pub(crate) async fn get(&self, path: &str) -> String {
        let address = self.http().await;
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!(
                "the log of {}, last line first:\n{}",
                self.name,
                tail.join("\n")
            );
        }
        // Neither can fail in a way that matters to a test that is over.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A server with streams and buckets.
pub(crate) struct Stack {
    pub(crate) bus: Bus,
    pub(crate) jobs: Jobs,
    pub(crate) server: Server,
    folder: TempDir,
}

impl Stack {
    /// A server alone.
    pub(crate) async fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::dev().await;
        let config = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = until("a connection", async || Bus::connect(&config, "test").await).await;
        let report = apply(bus.jetstream(), &Wanted::default(), Mode::Apply).await;
        report.unwrap();
        Self {
            jobs: Jobs::new(&bus, KEEP),
            bus,
            server,
            folder,
        }
    }

    /// A server, a core that answers, and a registered pool `default`.
    pub(crate) async fn start() -> (Self, Process) {
        let stack = Self::bare().await;
        let core = stack.core("core-a");
        stack.register("default").await;
        (stack, core)
    }

    /// One more core.
    pub(crate) fn core(&self, name: &str) -> Process {
        self.core_with(name, &[])
    }

    /// One more core, configured by these variables.
    pub(crate) fn core_with(&self, name: &str, variables: &[(&str, &str)]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtbus-core"));
        command
            .env("VIRTBUS__NATS__URL", &self.server.url)
            .env("VIRTBUS__WORKER__ID", name)
            .envs(variables.iter().copied())
            .env("VIRTBUS__LOG__FILTER", "info,virtbus_core=debug");
        Process::start(name, &mut command, self.folder.path())
    }

    pub(crate) fn client(&self) -> &Client {
        self.bus.client()
    }

    /// Registers a pool, once somebody answers.
    pub(crate) async fn register(&self, pool: &str) {
        let pool = json!({"pool": pool});
        until("a registered pool", async || {
            self.ask::<Value>("virtbus.pools.register", &pool).await
        })
        .await;
    }

    /// A control request.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &Value,
    ) -> Result<T, String> {
        let answer = self.raw(subject, body.to_string().into_bytes()).await?;
        let refused = answer
            .headers
            .as_ref()
            .is_some_and(|headers| headers.get("Nats-Service-Error").is_some());
        if refused {
            return Err(String::from_utf8_lossy(&answer.payload).into_owned());
        }
        serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())
    }

    pub(crate) async fn raw(&self, subject: &str, body: Vec<u8>) -> Result<Message, String> {
        let request = Request::new().payload(body.into()).timeout(Some(PATIENCE));
        let answer = self.client().send_request(subject.to_owned(), request);
        let answer = answer.await;
        answer.map_err(|error| error.to_string())
    }

    /// Publishes as any language would, and gives the message's sequence.
    pub(crate) async fn publish(&self, subject: &str, payload: impl Into<Vec<u8>>) -> u64 {
        self.publish_with(subject, HeaderMap::new(), payload.into())
            .await
    }

    pub(crate) async fn publish_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Vec<u8>,
    ) -> u64 {
        let ack = self
            .bus
            .jetstream()
            .publish_with_headers(subject.to_owned(), headers, payload.into())
            .await
            .unwrap();
        ack.await.unwrap().sequence
    }

    /// The job's record, as soon as there is one in this state.
    pub(crate) async fn record(&self, id: &str, state: StateName) -> Entry<Record> {
        let id: JobId = id.parse().unwrap();
        until(&format!("{id} {state}"), async || {
            match self
                .jobs
                .get_latest(&id)
                .await
                .map_err(|error| error.to_string())?
            {
                Some(entry) if entry.value.state.name() == state => Ok(entry),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Subject, generation and sequence of everything that lies in a stream.
    pub(crate) async fn lying(&self, stream: &str) -> Vec<(String, Option<String>, u64)> {
        let page = self.bus.browse(stream, ">", 1).await.unwrap();
        let items = page.items.iter().map(|item| {
            let generation = item.header("Virtbus-Generation").map(str::to_owned);
            (item.subject.clone(), generation, item.seq)
        });
        items.collect()
    }

    /// Writes a worker's lease that ends by itself in some seconds, which core looks at several
    /// times meanwhile, even if it's kept from its work for a few of them and leads anew.
    pub(crate) async fn last_beat(&self, worker: &str, beat: &Value) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", "12s");
        let beat = beat.to_string().into_bytes();
        let key = format!("$KV.workers.{worker}");
        self.publish_with(&key, headers, beat).await;
    }

    /// Waits until nothing lies in a stream.
    pub(crate) async fn empty(&self, stream: &str) {
        until(&format!("nothing in {stream}"), async || {
            match self.lying(stream).await {
                lying if lying.is_empty() => Ok(()),
                lying => Err(lying),
            }
        })
        .await;
    }
}

/// The code a failed or cancelled job ended with.
pub(crate) fn code(record: &Record) -> String {
    let json = serde_json::to_value(record).unwrap();
    json["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
