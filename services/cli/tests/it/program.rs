//! The program as a child, and the part of the services that a test plays.

use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
};
use tokio::sync::mpsc;
use virtbus_bus::{Bucket, Bus, ConnectConfig};
use virtbus_testbed::{Server, until, watch::soon};
use virtbus_wire::{
    Envelope, Event, JobId, Record, Timestamp, WorkerId, record::Address, state::Owner,
};

/// The program, with nothing of this process's environment that it would listen to.
pub(crate) fn virtbus(url: &str, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtbus"));
    command.args(line.split_whitespace());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("VIRTBUS_") {
            command.env_remove(variable);
        }
    }
    command.env("VIRTBUS_NATS_URL", url).stdin(Stdio::null());
    command.env("USER", "alice");
    command
}

/// What a run of the program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// The one JSON value on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Demands an exit code.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// Runs the program to its end.
pub(crate) async fn run(url: &str, line: &str) -> Said {
    let mut command = virtbus(url, line);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap());
    Said::of(&soon("the end of the program", done).await.unwrap())
}

/// A program that is followed line by line while it runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    pub(crate) fn start(url: &str, line: &str) -> Self {
        let mut command = virtbus(url, line);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel(1_000);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line of standard output.
    pub(crate) async fn line(&mut self) -> String {
        let line = soon("a line", self.lines.recv()).await;
        line.expect("a line before the end")
    }

    /// The next line as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    pub(crate) async fn ended(self, code: i32) -> Said {
        let done = tokio::task::spawn_blocking(move || self.child.wait_with_output().unwrap());
        let output = soon("the end of the program", done).await.unwrap();
        Said::of(&output).ended(code)
    }
}

/// A server with everything set up, and what services would do there.
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) bus: Bus,
    pub(crate) jobs: Bucket<Record>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let server = Server::dev().await;
        let config = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = until("a connection", async || Bus::connect(&config, "test").await).await;
        run(&server.url, "setup").await.ended(0);
        let jobs = Bucket::new(&bus, "jobs");
        Self { server, bus, jobs }
    }

    pub(crate) async fn run(&self, line: &str) -> Said {
        run(&self.server.url, line).await
    }

    pub(crate) fn running(&self, line: &str) -> Running {
        Running::start(&self.server.url, line)
    }

    /// The job as it lies in its stream: subject and envelope.
    pub(crate) async fn published(&self, id: &str) -> (String, Value) {
        until("the message", async || {
            let stream = self.bus.jetstream().get_stream("STORAGE").await;
            let stream = stream.map_err(|error| error.to_string())?;
            let last = stream.cached_info().state.last_sequence;
            for sequence in (1..=last).rev() {
                let message = stream.get_raw_message(sequence).await;
                let message = message.map_err(|error| error.to_string())?;
                let job: Value = serde_json::from_slice(&message.payload).unwrap();
                if job["id"] == id {
                    return Ok((message.subject.to_string(), job));
                }
            }
            Err(format!("{id} is not among {last}"))
        })
        .await
    }

    /// Registers a job as core would.
    pub(crate) async fn register(&self, id: &str, job: &str, queue: &str) -> Record {
        let job = Envelope::decode(job.as_bytes()).unwrap();
        let id: JobId = id.parse().unwrap();
        let queue = Address::from(queue.to_owned());
        let record = Record::new(id, job, queue, Timestamp::now());
        self.jobs.create(record.id.as_str(), &record).await.unwrap();
        record
    }

    /// Moves a job on as its worker would.
    pub(crate) async fn apply(&self, id: &str, event: Event) -> Record {
        let entry = self.jobs.get_latest(id).await.unwrap().expect(id);
        let next = entry.value.apply(event, Timestamp::now()).unwrap();
        self.jobs.update(id, &next, entry.revision).await.unwrap();
        next
    }

    /// A worker takes a job and begins.
    pub(crate) async fn claim(&self, id: &str) -> Record {
        let worker: WorkerId = "storage-test".parse().unwrap();
        let boot = "0199b1c2-0000-7000-8000-000000000001".parse().unwrap();
        let owner = Owner { worker, boot };
        let (seq, begin) = (1, true);
        self.apply(id, Event::Claim { owner, seq, begin }).await
    }
}
