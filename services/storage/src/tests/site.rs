//! A pool in a folder of its own, a nats-server, and jobs as the loop would claim them.

use crate::{
    config::{PoolConfig, StorageConfig},
    disks::Disk,
    pool::Root,
    store::Store,
    task::{Checked, Known, Pace, Steps, drive, known},
};
use camino::Utf8PathBuf;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::{Command, Output},
    sync::Mutex,
};
use tempfile::TempDir;
use tokio::sync::RwLock;
use virtbus_bus::{
    Bus, ConnectConfig, Jobs,
    topology::{self, Mode, Wanted},
};
use virtbus_testbed::Server;
use virtbus_wire::{
    Code, Envelope, JobError, Record, Task, Timestamp,
    catalog::{DiskRecord, DiskState, PoolRecord},
    state::{Owner, Progress},
};
use virtbus_worker::{Assignment, Done, Perform, Stop, StopSignal, process};

pub(super) const MIB: u64 = 1 << 20;

/// While a tool is started, nothing else may start programs: they would inherit its lock. In a
/// service the runner sees to that; here servers and helpers are started beside it.
static STARTS: RwLock<()> = RwLock::const_new(());

pub(super) struct Site {
    pub(super) store: Store,
    pub(super) jobs: Jobs,
    pub(super) dir: TempDir,
    pub(super) owner: Owner,
    bus: Bus,
    _server: Server,
}

/// Where a claim's worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Check,
    Work,
    Intend,
    Effect,
    Publish,
}

impl After {
    pub(super) const ALL: [Self; 5] = [
        Self::Check,
        Self::Work,
        Self::Intend,
        Self::Effect,
        Self::Publish,
    ];
}

impl Site {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With changes to the settings of pool `default`.
    pub(super) async fn with(change: impl FnOnce(&mut PoolConfig)) -> Self {
        let alone = STARTS.write().await;
        let server = Server::dev().await;
        drop(alone);
        let js = server.jetstream().await;
        let wanted = Wanted {
            replicas: None,
            queues: Vec::new(),
        };
        topology::apply(&js, &wanted, Mode::Apply).await.unwrap();
        let connect = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = Bus::connect(&connect, "test").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().join("pool")).unwrap();
        let mut pool = PoolConfig {
            create: true,
            free_min: "1MiB".parse().unwrap(),
            ..PoolConfig::at(root)
        };
        change(&mut pool);
        let config = StorageConfig {
            pools: BTreeMap::from([("default".parse().unwrap(), pool)]),
            ..StorageConfig::default()
        };
        let store = Store::new(&bus, &config);
        store.prepare().unwrap();
        let owner = Owner {
            worker: "st-1".parse().unwrap(),
            boot: uuid(),
        };
        let jobs = Jobs::new(&bus, std::time::Duration::from_secs(60));
        let site = Self {
            store,
            jobs,
            dir,
            owner,
            bus,
            _server: server,
        };
        site.register(json!({ "pool": "default" })).await;
        site
    }

    pub(super) async fn register(&self, record: Value) {
        let record: PoolRecord = serde_json::from_value(record).unwrap();
        let pools = &self.store.pool_records;
        pools.put(record.pool.as_str(), &record).await.unwrap();
    }

    /// A worker that holds its lease.
    pub(super) async fn live_worker(&self, worker: &str) -> Owner {
        let owner = Owner {
            worker: worker.parse().unwrap(),
            boot: uuid(),
        };
        let record = json!({
            "worker": worker, "boot": owner.boot, "class": "storage", "host": "h", "slots": 1,
            "busy": 0, "started_at": Timestamp::now(), "at": Timestamp::now(),
        });
        let leases: virtbus_bus::Bucket<Value> = virtbus_bus::Bucket::new(&self.bus, "workers");
        leases.put(worker, &record).await.unwrap();
        owner
    }

    /// The first claim of a job.
    pub(super) fn job(&self, id: &str, task: &str, params: Value) -> Assignment {
        let envelope = json!({
            "id": id, "task": task, "params": params, "user": "alice", "tenant": "acme",
        });
        self.claimed(envelope, 1)
    }

    /// A claim of a published job.
    pub(super) fn claimed(&self, envelope: Value, claim: u64) -> Assignment {
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        let id = envelope.id.clone().unwrap();
        let task = Task::decode(
            virtbus_wire::Class::Storage,
            &envelope.task,
            &envelope.params,
        );
        let queue = "storage.default.default".to_owned().into();
        let mut record = Record::new(id.clone(), envelope, queue, Timestamp::now());
        record.claim = claim;
        Assignment {
            id,
            claim,
            owner: self.owner.clone(),
            task: task.unwrap(),
            record,
        }
    }

    /// What the loop does with a claim, but for the locks between jobs.
    pub(super) async fn run(&self, job: &Assignment) -> Result<Done, Stop> {
        self.run_within(job, &process::Stop::new(), &|_| {}).await
    }

    pub(super) async fn run_within(
        &self,
        job: &Assignment,
        stop: &process::Stop,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Done, Stop> {
        let _others = STARTS.read().await;
        if job.claim > 1 {
            self.store.clean(job).await?;
            if let Some(done) = self.store.recover(job).await? {
                return Ok(done);
            }
        }
        let lost = process::Stop::new();
        let pace = Pace {
            stop,
            lost: &lost,
            progress,
            keep: &drop,
        };
        let commit = async {
            if stop.is_asked() {
                Err(Stop::Stopped)
            } else {
                Ok(())
            }
        };
        let done = match known(&self.store, job)? {
            Known::Ping(task) => task.run(&StopSignal::new()).await,
            Known::CreateDisk(task) => drive(&task, &pace, commit).await,
            Known::Resize(task) => drive(&task, &pace, commit).await,
            Known::Convert(task) => drive(&task, &pace, commit).await,
            Known::DeleteDisk(task) => drive(&task, &pace, commit).await,
        };
        if done.is_err() {
            self.store.abandon(job).await?;
        }
        done
    }

    /// Runs a new job that must succeed.
    pub(super) async fn done(&self, id: &str, task: &str, params: Value) -> Done {
        let done = self.run(&self.job(id, task, params)).await;
        done.unwrap_or_else(|stop| panic!("{id} {task}: {stop:?}"))
    }

    /// Runs a new job that must fail.
    pub(super) async fn refused(&self, id: &str, task: &str, params: Value) -> JobError {
        failed(self.run(&self.job(id, task, params)).await)
    }

    /// A disk of 4 MiB with something in it.
    pub(super) async fn filled_disk(&self, id: &str) {
        let params = json!({ "disk": id, "size": "4MiB" });
        self.done(&format!("make-{id}"), "create_disk", params)
            .await;
        self.write(&format!("{id}.qcow2"), "qcow2", "write -P 7 1M 1M");
    }

    /// Runs a claim until its worker dies: what it holds is gone, what it wrote stays.
    pub(super) async fn die(&self, job: &Assignment, after: After) {
        let _others = STARTS.read().await;
        match known(&self.store, job).unwrap() {
            Known::Ping(_) => {}
            Known::CreateDisk(task) => self.die_in(&task, after).await,
            Known::Resize(task) => self.die_in(&task, after).await,
            Known::Convert(task) => self.die_in(&task, after).await,
            Known::DeleteDisk(task) => self.die_in(&task, after).await,
        }
    }

    async fn die_in<S: Steps>(&self, task: &S, after: After) {
        let (stop, order) = (process::Stop::new(), After::ALL);
        let pace = Pace {
            stop: &stop,
            lost: &stop,
            progress: &|_| {},
            keep: &drop,
        };
        let Checked::Plan(mut plan) = task.check().await.unwrap() else {
            panic!("there's nothing to do");
        };
        for step in order
            .into_iter()
            .take_while(|step| *step != after)
            .chain([after])
        {
            match step {
                After::Check => {}
                After::Work => task.work(&mut plan, &pace).await.unwrap(),
                After::Intend => task.intend(&mut plan).await.unwrap(),
                After::Effect => task.effect(&mut plan, &pace).await.unwrap(),
                After::Publish => drop(task.publish(&mut plan).await.unwrap()),
            }
        }
        // A killed worker doesn't clear up behind itself.
        let parts: Vec<_> = self
            .files("disks")
            .into_iter()
            .filter(|name| name.starts_with('.'))
            .map(|name| self.path("disks").join(name))
            .map(|path| (std::fs::read(&path).unwrap(), path))
            .collect();
        drop(plan);
        for (bytes, path) in parts {
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub(super) async fn disk(&self, id: &str) -> Option<Disk> {
        self.store.disks.get(&id.parse().unwrap()).await.unwrap()
    }

    pub(super) async fn record(&self, id: &str) -> DiskRecord {
        self.disk(id)
            .await
            .unwrap_or_else(|| panic!("no record of {id}"))
            .record
    }

    pub(super) async fn state(&self, id: &str) -> Option<DiskState> {
        self.disk(id).await.map(|disk| disk.record.state)
    }

    pub(super) async fn change(&self, id: &str, change: impl FnOnce(&mut DiskRecord)) {
        let disk = self.disk(id).await.unwrap();
        let mut record = disk.record.clone();
        change(&mut record);
        self.store.disks.update(&disk, record).await.unwrap();
    }

    pub(super) fn root(&self) -> Root {
        let pool = self.store.pools().values().next().unwrap();
        pool.reach().unwrap()
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("pool").join(name)
    }

    /// The names in a folder of the pool.
    pub(super) fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// qemu-io's commands on a disk's file.
    pub(super) fn write(&self, file: &str, format: &str, command: &str) {
        let path = self.path("disks").join(file);
        let path = path.to_str().unwrap();
        program("qemu-io", &["-f", format, "-c", command, path]);
    }

    /// Whether two disks' files show a guest the same.
    pub(super) fn same(&self, one: (&str, &str), other: (&str, &str)) -> bool {
        let path = |file: &str| self.path("disks").join(file).to_str().unwrap().to_owned();
        let (left, right) = (path(one.0), path(other.0));
        let args = ["compare", "-f", one.1, "-F", other.1, &left, &right];
        Command::new("qemu-img")
            .args(args)
            .output()
            .unwrap()
            .status
            .success()
    }

    pub(super) fn info(&self, file: &str, format: &str) -> Value {
        let path = self.path("disks").join(file);
        let args = [
            "info",
            "-U",
            "-f",
            format,
            "--output=json",
            path.to_str().unwrap(),
        ];
        serde_json::from_slice(&program("qemu-img", &args).stdout).unwrap()
    }
}

/// What was told of the progress.
#[derive(Default)]
pub(super) struct Told(Mutex<Vec<f64>>);

impl Told {
    pub(super) fn note(&self, progress: &Progress) {
        self.0.lock().unwrap().push(progress.percent.unwrap());
    }

    pub(super) fn percents(&self) -> Vec<f64> {
        self.0.lock().unwrap().clone()
    }
}

pub(super) fn program(name: &str, args: &[&str]) -> Output {
    let output = Command::new(name).args(args).output().unwrap();
    assert!(output.status.success(), "{name} {args:?}: {output:?}");
    output
}

pub(super) fn failed(done: Result<Done, Stop>) -> JobError {
    match done {
        Err(Stop::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

pub(super) fn code(error: &JobError) -> Code {
    error.code
}

fn uuid() -> virtbus_wire::BootId {
    let text = virtbus_wire::JobId::new().to_string();
    serde_json::from_value(Value::String(text)).unwrap()
}
