//! The program itself: jobs published to a real server, done by real qemu-img.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod cage;
mod politeness;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};
use tempfile::TempDir;
use virtbus_bus::{
    Bucket, Bus, ConnectConfig, Jobs,
    jobs::KEEP,
    topology::{Mode, Wanted, apply, queues_of_pair, queues_of_pool},
};
use virtbus_testbed::{Server, until};
use virtbus_wire::{Class, PoolPair, Record, StateName};

const PROGRAM: &str = env!("CARGO_BIN_EXE_virtbus-storage");

/// A server with the pools `default` and `other` registered, and a folder for the first.
struct Site {
    server: Server,
    /// Publishes, as any program would.
    client: async_nats::Client,
    jobs: Jobs,
    disks: Bucket<Value>,
    workers: Bucket<Value>,
    locks: Bucket<Value>,
    dir: TempDir,
}

struct Service(Child);

impl Site {
    async fn start() -> Self {
        let server = Server::dev().await;
        let mut queues = queues_of_pool(&"default".parse().unwrap());
        queues.extend(queues_of_pool(&"other".parse().unwrap()));
        let pools = ["default", "other"].map(|pool| pool.parse().unwrap());
        let [one, other] = pools;
        queues.extend(queues_of_pair(&PoolPair::new(one, other).unwrap()));
        queues.retain(|queue| queue.class() == Class::Storage);
        let wanted = Wanted {
            replicas: None,
            queues,
        };
        let jetstream = server.jetstream().await;
        apply(&jetstream, &wanted, Mode::Apply).await.unwrap();
        let connect = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = Bus::connect(&connect, "test").await.unwrap();
        let pools: Bucket<Value> = Bucket::new(&bus, "pools");
        for pool in ["default", "other"] {
            pools.put(pool, &json!({ "pool": pool })).await.unwrap();
        }
        Self {
            jobs: Jobs::new(&bus, KEEP),
            disks: Bucket::new(&bus, "disks"),
            workers: Bucket::new(&bus, "workers"),
            locks: Bucket::new(&bus, "locks"),
            client: server.client().await,
            server,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, worker: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(format!("{worker}.toml"));
        let root = self.dir.path().join("pool");
        let text = format!(
            "[nats]\nurl = {:?}\n[worker]\nid = {worker:?}\n[pools.default]\nroot = {root:?}\n\
             create = true\nfree_min = \"1MiB\"\n",
            self.server.url
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn service(&self, worker: &str) -> Service {
        Service(self.command(worker).spawn().unwrap())
    }

    /// How the service is started.
    fn command(&self, worker: &str) -> Command {
        let log = self.dir.path().join(format!("{worker}.log"));
        let log = std::fs::File::create(log).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.config(worker));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// What a service said until now.
    fn log(&self, worker: &str) -> String {
        let path = self.dir.path().join(format!("{worker}.log"));
        std::fs::read_to_string(path).unwrap()
    }

    /// A plain publish, as any language would.
    async fn publish(&self, subject: &str, job: Value) {
        let client = &self.client;
        client
            .publish(subject.to_owned(), job.to_string().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    async fn ended(&self, id: &str) -> Record {
        let id = id.parse().unwrap();
        until("the end of a job", async || {
            match self.jobs.get(&id).await.unwrap() {
                Some(entry) if entry.value.state.name().is_final() => Ok(entry.value),
                other => Err(other.map(|entry| entry.value.state)),
            }
        })
        .await
    }

    async fn succeeds(&self, subject: &str, job: Value) {
        let id = job["id"].as_str().unwrap().to_owned();
        self.publish(subject, job).await;
        let record = self.ended(&id).await;
        assert_eq!(
            record.state.name(),
            StateName::Succeeded,
            "{:?}",
            record.state
        );
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("pool/disks")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Service {
    async fn stopped(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        until("the end of the service", async || {
            self.0.try_wait().unwrap().ok_or("it runs")
        })
        .await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn published_jobs_are_done_in_pool_and_catalogue() {
    let site = Site::start().await;
    let mut service = site.service("st-1");
    let create = json!({ "id": "j1", "task": "create_disk",
                         "params": { "disk": "d1", "size": "8MiB" } });
    site.succeeds("storage.default.high", create).await;
    let resize = json!({ "id": "j2", "task": "resize",
                         "params": { "disk": "d1", "size": "16MiB" } });
    site.succeeds("storage.default.default", resize).await;
    let convert = json!({ "id": "j3", "task": "convert",
                          "params": { "disk": "d1", "to": "d2", "format": "raw" } });
    site.succeeds("storage.default.low", convert).await;
    let delete = json!({ "id": "j4", "task": "delete_disk",
                         "params": { "disk": "d1", "mode": "unlink" } });
    site.succeeds("storage.default.low", delete).await;
    site.succeeds(
        "storage.default.default",
        json!({ "id": "j5", "task": "ping" }),
    )
    .await;
    assert_eq!(site.files(), ["d2.raw"]);
    let copy = site.disks.get("d2").await.unwrap().unwrap().value;
    assert_eq!(
        (&copy["state"], &copy["virtual_size"]),
        (&json!("ready"), &json!(16 << 20))
    );
    let gone = site.disks.get("d1").await.unwrap().unwrap().value;
    assert_eq!(gone["state"], "deleted");
    assert_eq!(service.stopped().await.code(), Some(0));
}

#[tokio::test]
async fn a_killed_services_copy_is_made_by_another_one() {
    let site = Site::start().await;
    // Half a minute's work for the first: it's at it however late it's killed.
    let mut slow = site.command("st-1");
    slow.env("VIRTBUS__POOLS__DEFAULT__BANDWIDTH", "1MiB");
    let mut first = Service(slow.spawn().unwrap());
    let create = json!({ "id": "j1", "task": "create_disk",
                         "params": { "disk": "d1", "size": "32MiB", "format": "raw" } });
    site.succeeds("storage.default.high", create).await;
    fill(&site.dir.path().join("pool/disks/d1.raw"));
    let convert = json!({ "id": "j2", "task": "convert", "params": {
        "disk": "d1", "to": "d2", "format": "qcow2", "compress": "zlib" } });
    site.publish("storage.default.low", convert).await;
    until("half a copy", async || {
        let files = site.files();
        let is_making = files.iter().any(|name| name.starts_with(".j2.1."));
        if is_making { Ok(()) } else { Err(files) }
    })
    .await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let _second = site.service("st-2");
    let record = site.ended("j2").await;
    assert_eq!(
        record.state.name(),
        StateName::Succeeded,
        "{:?}",
        record.state
    );
    assert_eq!(record.claim, 2);
    assert_eq!(site.files(), ["d1.raw", "d2.qcow2"]);
    let pool = site.dir.path().to_str().unwrap().to_owned();
    assert_eq!(programs_with(&pool, "qemu-img"), Vec::<String>::new());
}

/// Noise, which takes a compressor long.
fn fill(path: &Path) {
    let status = Command::new("dd")
        .args([
            "if=/dev/urandom",
            "bs=1M",
            "count=32",
            "conv=notrunc",
            "status=none",
        ])
        .arg(format!("of={}", path.display()))
        .status();
    assert!(status.unwrap().success());
}

/// Command lines of running programs of this name that speak of this folder.
fn programs_with(folder: &str, name: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(folder) && line.contains(name))
        .collect()
}
