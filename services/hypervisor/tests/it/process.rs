//! A nats-server with a registered pool.

use serde_json::Value;
use virtbus_bus::{
    Bucket, Bus, ConnectConfig, Jobs,
    jobs::KEEP,
    locks::{Granted, Locks},
    topology::{self, Mode, Wanted},
};
use virtbus_testbed::{Server, until};
use virtbus_wire::{
    BootId, Envelope, Event, JobError, JobId, JobState, Label, Queue, Record, Timestamp,
    catalog::{
        DiskRecord, DomainRecord, HypervisorRecord, InUseBy, MediaRecord, PoolRecord, WorkerRecord,
    },
    protocol::lock::{Holder, Mode as LockMode},
    state::{Cancel, Owner, Phase, WaitReason},
};

/// A server with streams, buckets and the pool `default`.
pub(crate) struct Site {
    bus: Bus,
    jobs: Jobs,
    server: Server,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let server = Server::dev().await;
        let config = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = until("a connection", async || Bus::connect(&config, "test").await).await;
        let pool: Label = "default".parse().unwrap();
        let wanted = Wanted {
            queues: topology::queues_of_pool(&pool),
            ..Wanted::default()
        };
        let applied = topology::apply(bus.jetstream(), &wanted, Mode::Apply).await;
        applied.unwrap();
        for pool in ["default", "other"] {
            let record = format!(r#"{{"pool":"{pool}"}}"#);
            let record: PoolRecord = serde_json::from_str(&record).unwrap();
            let pools = Bucket::new(&bus, "pools");
            pools.put(pool, &record).await.unwrap();
        }
        let jobs = Jobs::new(&bus, KEEP);
        Self { bus, jobs, server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.server.url
    }

    /// A job that a worker had claimed which is dead.
    pub(crate) async fn claimed_by_the_dead(
        &self,
        queue: &str,
        task: &str,
        params: Value,
    ) -> JobId {
        let mut job = Envelope::bare(task);
        job.params = params;
        let queue: Queue = queue.parse().unwrap();
        let record = Record::new(JobId::default(), job, queue.into(), self.bus.now());
        self.jobs.create(&record).await.unwrap();
        self.jobs.publish(&record).await.unwrap();
        let entry = self.jobs.get_latest(&record.id).await.unwrap().unwrap();
        let (worker, boot) = ("dead".parse().unwrap(), BootId::from_u128(7));
        let claim = Event::Claim {
            owner: Owner { worker, boot },
            seq: 1,
            begin: true,
        };
        self.jobs.change(&entry, claim).await.unwrap();
        record.id
    }

    /// What core does when a host registers.
    pub(crate) async fn make_host_consumers(&self, host: &str) {
        let queues = topology::queues_of_host(&host.parse().unwrap());
        let made = topology::ensure_consumers(self.bus.jetstream(), &queues).await;
        assert_eq!(made.unwrap().len(), queues.len());
    }

    pub(crate) async fn host(&self, name: &str) -> Result<HypervisorRecord, String> {
        let found = self.hosts().get_latest(name).await;
        let found = found.map_err(|error| error.to_string())?;
        found
            .map(|entry| entry.value)
            .ok_or("no such host".to_owned())
    }

    pub(crate) async fn worker(&self, name: &str) -> Option<WorkerRecord> {
        let found = Bucket::new(&self.bus, "workers").get_latest(name).await;
        found.unwrap().map(|entry| entry.value)
    }

    pub(crate) async fn publish(&self, subject: &str, payload: impl Into<String>) -> JobId {
        let payload = payload.into();
        let sent = self
            .bus
            .jetstream()
            .publish(subject.to_owned(), payload.into())
            .await;
        let seq = sent.unwrap().await.unwrap().sequence;
        format!("hypervisor-{seq}").parse().unwrap()
    }

    pub(crate) async fn ended(&self, id: &JobId) -> Record {
        until(&format!("the end of {id}"), async || {
            match self.record(id).await? {
                record if record.state.name().is_final() => Ok(record),
                record => Err(format!("{record:?}")),
            }
        })
        .await
    }

    /// The code of the error that a job will be tried again after.
    pub(crate) async fn code_of_wait(&self, id: &JobId) -> String {
        until(&format!("a retry of {id}"), async || {
            let record = self.record(id).await?;
            if let JobState::Waiting(waiting) = &record.state
                && let WaitReason::Time {
                    error: Some(error), ..
                } = &waiting.on
            {
                return Ok(error.code.to_string());
            }
            Err(format!("{record:?}"))
        })
        .await
    }

    /// The result of a job that must succeed.
    pub(crate) async fn done(&self, subject: &str, payload: impl Into<String>) -> Value {
        let id = self.publish(subject, payload).await;
        let record = self.ended(&id).await;
        let JobState::Succeeded(_, result) = record.state else {
            panic!("{id}: {:?}", record.state);
        };
        Value::Object(result)
    }

    /// The error of a job that must fail.
    pub(crate) async fn refused(&self, subject: &str, payload: impl Into<String>) -> JobError {
        let id = self.publish(subject, payload).await;
        let record = self.ended(&id).await;
        let JobState::Failed(_, error) = record.state else {
            panic!("{id}: {:?}", record.state);
        };
        error
    }

    pub(crate) async fn domain(&self, name: &str) -> Option<DomainRecord> {
        let found = self.domains().get_latest(name).await;
        found.unwrap().map(|entry| entry.value)
    }

    pub(crate) fn domains(&self) -> Bucket<DomainRecord> {
        Bucket::new(&self.bus, "domains")
    }

    pub(crate) fn hosts(&self) -> Bucket<HypervisorRecord> {
        Bucket::new(&self.bus, "hypervisors")
    }

    pub(crate) fn disks(&self) -> Bucket<DiskRecord> {
        Bucket::new(&self.bus, "disks")
    }

    pub(crate) fn media(&self) -> Bucket<MediaRecord> {
        Bucket::new(&self.bus, "media")
    }

    /// Who uses a disk, as `domain mode`.
    pub(crate) async fn users(&self, disk: &str) -> Vec<String> {
        let entry = self.disks().get_latest(disk).await.unwrap().unwrap();
        names(&entry.value.in_use_by)
    }

    /// Who uses a medium.
    pub(crate) async fn users_of_medium(&self, medium: &str) -> Vec<String> {
        let entry = self.media().get_latest(medium).await.unwrap().unwrap();
        names(&entry.value.in_use_by)
    }

    /// As [`Site::ended`], with what core does meanwhile: a job that waits for its next try, or
    /// whose worker died, is published again.
    pub(crate) async fn mended(&self, id: &JobId) -> Record {
        until(&format!("the end of {id}"), async || self.nudged(id).await).await
    }

    /// The record of a job that is over. One that isn't, and that nobody is about to go on with, is
    /// published again.
    pub(crate) async fn nudged(&self, id: &JobId) -> Result<Record, String> {
        let found = self.jobs.get_latest(id).await;
        let Some(entry) = found.map_err(|error| error.to_string())? else {
            return Err("no record".to_owned());
        };
        let is_stuck = match &entry.value.state {
            JobState::Waiting(_) => true,
            JobState::Running(hold) | JobState::Cancelling(hold) => {
                let worker = self.worker(hold.owner.worker.as_str()).await;
                worker.is_none_or(|worker| worker.boot != hold.owner.boot)
            }
            JobState::Queued => false,
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return Ok(entry.value);
            }
        };
        let again = Event::Publish { round: false };
        if is_stuck && let Ok(next) = self.jobs.change(&entry, again).await {
            self.jobs.publish(&next.value).await.unwrap();
        }
        Err(format!("{:?}", entry.value.state))
    }

    /// Has a job of another service hold a lock. The job.
    pub(crate) async fn lock(&self, lock: &str, mode: LockMode) -> JobId {
        let job = Envelope::bare("convert");
        let queue: Queue = "storage.default.low".parse().unwrap();
        let record = Record::new(JobId::new(), job, queue.into(), Timestamp::now());
        self.jobs.create(&record).await.unwrap();
        self.hold_lock(lock, mode, &record.id).await;
        record.id
    }

    pub(crate) async fn hold_lock(&self, lock: &str, mode: LockMode, job: &JobId) {
        let holder = Holder {
            job: job.clone(),
            claim: 0,
            since: None,
        };
        let locks = Locks::new(&self.bus, &self.jobs);
        let set = [(lock.to_owned(), mode)].into();
        let granted = locks.try_take(&set, &holder).await.unwrap();
        assert!(matches!(granted, Granted::All), "{granted:?}");
    }

    pub(crate) async fn unlock(&self, lock: &str) {
        let locks: Bucket<Value> = Bucket::new(&self.bus, "locks");
        let entry = locks.get_latest(lock).await.unwrap().unwrap();
        locks.remove(lock, entry.revision).await.unwrap();
    }

    /// The lock that a job waits for, and who has it.
    pub(crate) async fn lock_waited_for(&self, id: &JobId) -> (String, String) {
        until(&format!("{id} to wait"), async || {
            let record = self.record(id).await?;
            if let JobState::Waiting(waiting) = &record.state
                && let WaitReason::Lock {
                    resource,
                    holder: Some(holder),
                    ..
                } = &waiting.on
            {
                return Ok((resource.clone(), holder.clone()));
            }
            Err(format!("{:?}", record.state))
        })
        .await
    }

    /// Cancels a job that a worker is at, as core does: it's told, and does the rest.
    pub(crate) async fn cancel(&self, id: &JobId) {
        let cancel = Cancel {
            by: None,
            at: Timestamp::now(),
            force: false,
            reason: None,
        };
        until("a word to its worker", async || {
            let found = self.jobs.get_latest(id).await;
            let found = found.map_err(|error| error.to_string())?;
            let entry = found.ok_or("no record")?;
            assert!(matches!(entry.value.state, JobState::Running(_)));
            let told = self.jobs.change(&entry, Event::Cancel(cancel.clone()));
            told.await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// Cancels a job whose worker is dead.
    pub(crate) async fn cancel_dead(&self, id: &JobId) {
        let entry = self.jobs.get_latest(id).await.unwrap().unwrap();
        let mut record = entry.value;
        let JobState::Running(hold) = &record.state else {
            panic!("{:?}", record.state);
        };
        // As after the claim of another one that has died as well: nobody can cancel what may
        // have its effect already.
        let mut hold = hold.clone();
        hold.phase = Phase::Clean;
        record.state = JobState::Cancelling(hold);
        record.cancel = Some(Cancel {
            by: None,
            at: Timestamp::now(),
            force: false,
            reason: None,
        });
        let jobs = Bucket::new(&self.bus, "jobs");
        jobs.put(id.as_str(), &record).await.unwrap();
    }

    pub(crate) async fn record(&self, id: &JobId) -> Result<Record, String> {
        let found = self
            .jobs
            .get_latest(id)
            .await
            .map_err(|error| error.to_string())?;
        found.map(|entry| entry.value).ok_or("no record".to_owned())
    }
}

fn names(users: &[InUseBy]) -> Vec<String> {
    let users = users.iter().map(|user| match user {
        InUseBy::Domain { domain, mode, .. } => format!("{domain} {mode:?}"),
        InUseBy::Job { job, .. } => format!("{job}"),
    });
    users.collect()
}
