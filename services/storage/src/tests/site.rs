//! A pool in a folder of its own, a nats-server, and jobs as the loop would claim them.

pub(super) use super::told::Told;
use crate::{
    config::{PoolConfig, StorageConfig},
    disks::{Disk, Medium},
    pool::Root,
    store::Store,
    task::Step,
};
use camino::Utf8PathBuf;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use virtbus_bus::{
    Bus, ConnectConfig, Jobs,
    lease::BEAT,
    topology::{self, Mode, Wanted},
};
use virtbus_testbed::Server;
use virtbus_wire::{
    Code, Envelope, JobError, Record, Task, Timestamp,
    catalog::{DiskRecord, DiskState, PoolRecord},
    state::Owner,
};
use virtbus_worker::{
    Assignment, Done, Stop,
    process::{CommandLine, Exit, Limits, RunOptions, Stdout, find_program, no_starts, run},
};

pub(super) const MIB: u64 = 1 << 20;

pub(super) struct Site {
    pub(super) store: Store,
    pub(super) jobs: Jobs,
    pub(super) dir: TempDir,
    pub(super) owner: Owner,
    bus: Bus,
    server: Server,
}

/// Where a claim's worker may die: after each of its steps.
pub(super) const STEPS: [Step; 6] = [
    Step::Check,
    Step::Work,
    Step::Intend,
    Step::Commit,
    Step::Effect,
    Step::Publish,
];

impl Site {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With changes to the settings of pool `default`.
    pub(super) async fn with(change: impl FnOnce(&mut PoolConfig)) -> Self {
        Self::configured(|config| {
            let pool = config.pools.get_mut(&"default".parse().unwrap());
            change(pool.unwrap());
        })
        .await
    }

    /// With changes to the settings.
    pub(super) async fn configured(change: impl FnOnce(&mut StorageConfig)) -> Self {
        Self::beside(tempfile::tempdir().unwrap(), change).await
    }

    /// The same in a folder that may hold something already.
    pub(super) async fn beside(dir: TempDir, change: impl FnOnce(&mut StorageConfig)) -> Self {
        let alone = no_starts().await;
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
        let store = Store::new(&bus, &settings(dir.path(), change));
        store.prepare().unwrap();
        let owner = owner("st-1");
        let jobs = Jobs::new(&bus, std::time::Duration::from_secs(60));
        let site = Self {
            store,
            jobs,
            dir,
            owner,
            bus,
            server,
        };
        site.register(json!({ "pool": "default" })).await;
        site.register(json!({ "pool": "other" })).await;
        site
    }

    /// The means of another service with the same pools, and changes to its settings.
    pub(super) fn another_store(&self, change: impl FnOnce(&mut StorageConfig)) -> Store {
        Store::new(&self.bus, &settings(self.dir.path(), change))
    }

    /// The server's address.
    pub(super) fn url(&self) -> String {
        self.server.url.clone()
    }

    pub(super) async fn register(&self, record: Value) {
        let record: PoolRecord = serde_json::from_value(record).unwrap();
        let pools = &self.store.pool_records;
        pools.put(record.pool.as_str(), &record).await.unwrap();
    }

    /// A worker that holds its lease, as long as the test goes on.
    pub(super) async fn live_worker(&self, worker: &str) -> Owner {
        let owner = owner(worker);
        let record = json!({
            "worker": worker, "boot": owner.boot, "class": "storage", "host": "h", "slots": 1,
            "busy": 0, "started_at": Timestamp::now(), "at": Timestamp::now(),
        });
        let leases: virtbus_bus::Bucket<Value> = virtbus_bus::Bucket::new(&self.bus, "workers");
        leases.put(worker, &record).await.unwrap();
        let (worker, mut beats) = (worker.to_owned(), tokio::time::interval(BEAT));
        tokio::spawn(async move {
            loop {
                beats.tick().await;
                // The server may be gone with the test.
                drop(leases.put(&worker, &record).await);
            }
        });
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
        assignment(&self.owner, envelope, claim)
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

    /// An overlay of a disk as another program would make it: with an absolute name. It's in the
    /// folder `adopt`.
    pub(super) fn foreign_overlay(&self, file: &str, backing: &str) {
        std::fs::create_dir_all(self.path("adopt")).unwrap();
        let path = self.path("adopt").join(file);
        let backing = self.path("disks").join(format!("{backing}.qcow2"));
        let (path, backing) = (path.to_str().unwrap(), backing.to_str().unwrap());
        let args = ["create", "-f", "qcow2", "-F", "qcow2", "-b", backing, path];
        program("qemu-img", &args);
        let write = ["-f", "qcow2", "-c", "write -P 6 3M 64k", path];
        program("qemu-io", &write);
    }

    /// A medium with something in it.
    pub(super) async fn filled_medium(&self, id: &str) {
        let record = json!({ "pool": "default", "format": "iso", "virtual_size": MIB,
                             "state": "ready", "updated_at": Timestamp::now() });
        let record = serde_json::from_value(record).unwrap();
        let media = &self.store.media;
        media.create(&id.parse().unwrap(), record).await.unwrap();
        std::fs::create_dir_all(self.path("media")).unwrap();
        let path = self.path("media").join(format!("{id}.iso"));
        let mut bytes = vec![3; 1 << 20];
        bytes[0x8001..0x8006].copy_from_slice(b"CD001");
        std::fs::write(path, bytes).unwrap();
    }

    pub(super) async fn disk(&self, id: &str) -> Option<Disk> {
        self.store.disks.get(&id.parse().unwrap()).await.unwrap()
    }

    pub(super) async fn medium(&self, id: &str) -> Option<Medium> {
        self.store.media.get(&id.parse().unwrap()).await.unwrap()
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
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
        ran("qemu-img", &args).success()
    }

    /// What a disk's file shows a guest, as a number.
    pub(super) fn content(&self, file: &str, format: &str) -> u64 {
        let to = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        let from = self.path("disks").join(file);
        let (from, to) = (from.to_str().unwrap(), to.path().to_str().unwrap());
        program(
            "qemu-img",
            &["convert", "-f", format, "-O", "raw", from, to],
        );
        let mut hasher = DefaultHasher::new();
        std::fs::read(to).unwrap().hash(&mut hasher);
        hasher.finish()
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

/// A folder beside the pools, with tools to be run in place of the host's own, if it's there.
pub(super) const TOOLS: &str = "tools";

/// The service's settings for the pools below a folder, with changes.
pub(super) fn settings(dir: &Path, change: impl FnOnce(&mut StorageConfig)) -> StorageConfig {
    let at = |name: &str| {
        let root = Utf8PathBuf::from_path_buf(dir.join(name)).unwrap();
        PoolConfig {
            create: true,
            free_min: "1MiB".parse().unwrap(),
            ..PoolConfig::at(root)
        }
    };
    let (mut pool, other) = (at("pool"), at("other"));
    pool.archive = Some(at("archive").root);
    let named = |name: &str, pool| (name.parse().unwrap(), pool);
    let mut config = StorageConfig {
        pools: BTreeMap::from([named("default", pool), named("other", other)]),
        ..StorageConfig::default()
    };
    if let Some(tools) = Utf8PathBuf::from_path_buf(dir.join(TOOLS))
        .ok()
        .filter(|at| at.exists())
    {
        config.cage.also_run = vec!["/bin".into(), "/usr/bin".into(), tools.clone()];
        config.tools_dir = Some(tools);
    }
    change(&mut config);
    config
}

/// A worker's claim of a published job.
pub(super) fn assignment(owner: &Owner, envelope: Value, claim: u64) -> Assignment {
    let envelope: Envelope = serde_json::from_value(envelope).unwrap();
    let id = envelope.id.clone().unwrap();
    let class = virtbus_wire::Class::Storage;
    let task = Task::decode(class, &envelope.task, &envelope.params);
    let place = match envelope.task.as_str() {
        "move_disk" => "default_other",
        _ => "default",
    };
    let queue = format!("storage.{place}.default").into();
    let mut record = Record::new(id.clone(), envelope, queue, Timestamp::now());
    record.claim = claim;
    Assignment {
        id,
        claim,
        owner: owner.clone(),
        task: task.unwrap(),
        record,
    }
}

/// Runs a program that must succeed.
pub(super) fn program(name: &str, args: &[&str]) -> Exit {
    let exit = ran(name, args);
    assert!(exit.success(), "{name} {args:?}: {exit:?}");
    exit
}

/// Runs a program by way of the services' runner: started beside it, it would inherit the locks
/// that are given to tools at that moment.
pub(super) fn ran(name: &str, args: &[&str]) -> Exit {
    let limits = Limits {
        file_size_bytes: u64::MAX,
        wall: Duration::from_secs(120),
        ..Limits::default()
    };
    let line = CommandLine::new(find_program(name).unwrap()).args(args);
    let line = line.limits(limits);
    let options = RunOptions {
        stdout: Stdout::Capture { bytes_max: 1 << 20 },
        ..RunOptions::default()
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(run(&line, options)).unwrap()
    };
    std::thread::scope(|threads| threads.spawn(run).join().unwrap())
}

pub(super) fn failed<T: Debug>(done: Result<T, Stop>) -> JobError {
    match done {
        Err(Stop::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

pub(super) fn code(error: &JobError) -> Code {
    error.code
}

/// A worker that has just begun.
pub(super) fn owner(worker: &str) -> Owner {
    Owner {
        worker: worker.parse().unwrap(),
        boot: uuid(),
    }
}

fn uuid() -> virtbus_wire::BootId {
    let text = virtbus_wire::JobId::new().to_string();
    serde_json::from_value(Value::String(text)).unwrap()
}
