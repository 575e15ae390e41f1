//! The service that is attacked, and what must stay as it is.

use super::{
    super::{Service, Site},
    corpus::Aims,
    secret::Secret,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use virtbus_bus::{Bucket, Bus, ConnectConfig};
use virtbus_testbed::until;
use virtbus_wire::{Code, Record, state::JobState};

/// The longest that a job on a file that attacks may take.
const JOB_MAX: Duration = Duration::from_secs(60);
/// What jobs may take of the second pool, in bytes.
pub(super) const ROOM: u64 = 512 << 20;

/// One service with two pools, of which the second is in memory, and what must stay as it is.
pub(super) struct Siege {
    pub(super) site: Site,
    pub(super) service: Service,
    pub(super) aims: Aims,
    listener: TcpListener,
    secret: Secret,
    pub(super) pools: Bucket<Value>,
    pub(super) media: Bucket<Value>,
    pub(super) far: tempfile::TempDir,
}

impl Siege {
    pub(super) async fn begin() -> Self {
        let site = Site::start().await;
        let far = tempfile::tempdir_in("/dev/shm").unwrap();
        let found = rustix::fs::statvfs(far.path()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let workshop = site.dir.path().join("workshop");
        fs::create_dir(&workshop).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let aims = Aims {
            host: site.dir.path().join("host-file"),
            port: listener.local_addr().unwrap().port(),
            workshop,
        };
        let secret = Secret::new();
        fs::write(&aims.host, secret.bytes()).unwrap();
        let mut command = site.command("st-1");
        command
            .env(
                "VIRTBUS__POOLS__DEFAULT__ARCHIVE",
                site.dir.path().join("archive"),
            )
            .env("VIRTBUS__POOLS__OTHER__ROOT", far.path().join("other"))
            .env("VIRTBUS__POOLS__OTHER__CREATE", "true")
            .env(
                "VIRTBUS__POOLS__OTHER__FREE_MIN",
                format!("{}KiB", (free - ROOM) >> 10),
            )
            // Nobody is here who wakes what waits for room.
            .env("VIRTBUS__WORK__SLOTS", "24")
            .env("VIRTBUS__WORK__LONG_MAX", "16")
            .env("VIRTBUS__WORK__PRESSURE__IO", "0")
            .env("VIRTBUS__WORK__PRESSURE__MEMORY", "0");
        let service = Service(command.spawn().unwrap());
        let url = site.server.url.clone();
        let connect = ConnectConfig {
            url,
            ..ConnectConfig::default()
        };
        let bus = Bus::connect(&connect, "siege").await.unwrap();
        Self {
            pools: Bucket::new(&bus, "pools"),
            media: Bucket::new(&bus, "media"),
            site,
            service,
            aims,
            listener,
            secret,
            far,
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.site.dir.path().join("pool/disks").join(name)
    }

    /// How a published job ends, once nobody has the locks on these disks any more.
    pub(super) async fn ends(
        &self,
        id: &str,
        subject: &str,
        (task, params): (&str, Value),
    ) -> Record {
        let began = Instant::now();
        let job = json!({ "id": id, "task": task, "params": params });
        self.site.publish(subject, job).await;
        let record = self.site.ended(id).await;
        let took = began.elapsed();
        assert!(took < JOB_MAX, "{id} {task} took {took:?}");
        for object in &record.objects {
            until("the end of a lock", async || {
                let lock = self.site.locks.get(object).await.unwrap();
                let is_free = |lock: &Value| {
                    lock["exclusive"].is_null()
                        && lock["shared"].as_array().is_none_or(Vec::is_empty)
                };
                match lock {
                    Some(lock) if !is_free(&lock.value) => Err(lock.value),
                    Some(_) | None => Ok(()),
                }
            })
            .await;
        }
        record
    }

    pub(super) async fn done(&self, id: &str, subject: &str, (task, params): (&str, Value)) {
        let record = self.ends(id, subject, (task, params)).await;
        let is_done = matches!(record.state, JobState::Succeeded(..));
        assert!(is_done, "{id} {task}: {:?}", record.state);
    }

    /// The code that a job fails with.
    pub(super) async fn refused(&self, id: &str, subject: &str, what: (&str, Value)) -> Code {
        let record = self.ends(id, subject, what).await;
        let JobState::Failed(_, error) = record.state else {
            panic!("{id} {}: {:?}", record.task, record.state);
        };
        error.code
    }

    /// That nobody got at what is outside of the pools.
    pub(super) fn holds(&self) {
        let is_same = fs::read(&self.aims.host).unwrap() == self.secret.bytes();
        assert!(is_same, "the host's file has changed");
        let called = self.listener.accept();
        assert!(called.is_err(), "somebody called: {called:?}");
        for root in ["pool", "archive"] {
            self.is_nowhere(&self.site.dir.path().join(root));
        }
        self.is_nowhere(self.far.path());
    }

    fn is_nowhere(&self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                self.is_nowhere(&path);
            } else if kind.is_file() {
                let is_in = self.secret.is_in(&fs::read(&path).unwrap());
                assert!(!is_in, "the secret is in {}", path.display());
            }
        }
    }
}
