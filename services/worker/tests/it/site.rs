//! A server with the pool `p`, and workers on it.

use crate::probe::Probe;
use async_nats::{
    HeaderMap,
    jetstream::{
        Context,
        consumer::{self, PullConsumer},
    },
};
use camino::Utf8PathBuf;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{
    Bucket, Bus, ConnectConfig, Entry, Jobs,
    jobs::KEEP,
    lease, locks,
    topology::{Mode, Wanted, apply, queues_of_pool},
};
use virtbus_daemon::{Identity, Metrics, Readiness};

use virtbus_testbed::{Server, until};
use virtbus_wire::{
    BootId, Class, Event, JobId, Queue, Record, StateName, catalog::WorkerRecord,
    protocol::lock::Lock,
};
use virtbus_worker::{Perform as _, ServeError, Setup, WorkConfig, serve};

pub(crate) struct Site {
    pub(crate) jobs: Jobs,
    pub(crate) jetstream: Context,
    pub(crate) server: Server,
}

pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
    pub(crate) boot: BootId,
    pub(crate) ready: Readiness,
}

impl Running {
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn queues(class: Class) -> Vec<Queue> {
    let queues = queues_of_pool(&"p".parse().unwrap());
    queues
        .into_iter()
        .filter(|queue| queue.class() == class)
        .collect()
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::start_of(Class::Storage).await
    }

    /// With the queues of this class.
    pub(crate) async fn start_of(class: Class) -> Self {
        let server = Server::dev().await;
        let jetstream = server.jetstream().await;
        let wanted = Wanted {
            replicas: None,
            queues: queues(class),
        };
        apply(&jetstream, &wanted, Mode::Apply).await.unwrap();
        let bus = connect(&server).await;
        Self {
            jobs: Jobs::new(&bus, KEEP),
            jetstream,
            server,
        }
    }

    pub(crate) async fn worker(&self, name: &str, probe: &Probe, work: WorkConfig) -> Running {
        self.worker_in(name, probe, work, None).await
    }

    /// A worker on this host, whose lock file is in a folder.
    pub(crate) async fn worker_in(
        &self,
        name: &str,
        probe: &Probe,
        work: WorkConfig,
        state_dir: Option<Utf8PathBuf>,
    ) -> Running {
        self.worker_on("here", (name, work), probe, state_dir).await
    }

    pub(crate) async fn worker_on(
        &self,
        host: &str,
        (name, work): (&str, WorkConfig),
        probe: &Probe,
        state_dir: Option<Utf8PathBuf>,
    ) -> Running {
        let (boot, ready) = (BootId::now_v7(), Readiness::default());
        let class = probe.class();
        let unknown = format!("{class}.unknown.low");
        let setup = Setup {
            bus: connect(&self.server).await,
            identity: Identity {
                worker: name.parse().unwrap(),
                boot,
                host_name: host.to_owned(),
            },
            // One of them is never found.
            queues: [queues(class), vec![unknown.parse().unwrap()]].concat(),
            pools: vec!["p".parse().unwrap()],
            work,
            versions: BTreeMap::new(),
            state_dir,
            ready: ready.clone(),
            metrics: Metrics::new("test", "test"),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(setup, probe.clone(), stop.clone()));
        Running {
            stop,
            task,
            boot,
            ready,
        }
    }

    /// Publishes as any program would, and returns the message's sequence.
    pub(crate) async fn publish(&self, subject: &str, job: &str) -> u64 {
        let ack = self
            .jetstream
            .publish(subject.to_owned(), job.to_owned().into())
            .await;
        ack.unwrap().await.unwrap().sequence
    }

    pub(crate) async fn publish_as(&self, subject: &str, msg_id: &str, job: &str) {
        self.publish_with(subject, ("Nats-Msg-Id", msg_id), job)
            .await;
    }

    /// As [`Site::publish`], with a header.
    pub(crate) async fn publish_with(
        &self,
        subject: &str,
        (name, value): (&str, &str),
        job: &str,
    ) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        let subject = subject.to_owned();
        let ack = self
            .jetstream
            .publish_with_headers(subject, headers, job.to_owned().into());
        ack.await.unwrap().await.unwrap().sequence
    }

    /// The record, as soon as it's in one of these states.
    pub(crate) async fn wait(&self, id: &str, states: &[StateName]) -> Entry<Record> {
        let id: JobId = id.parse().unwrap();
        until(&format!("{id} in {states:?}"), async || {
            match self
                .jobs
                .get_latest(&id)
                .await
                .map_err(|error| error.to_string())?
            {
                Some(entry) if states.contains(&entry.value.state.name()) => Ok(entry),
                Some(entry) => Err(format!("{:?}", entry.value.state)),
                None => Err("no record".to_owned()),
            }
        })
        .await
    }

    pub(crate) async fn ended(&self, id: &str) -> Record {
        let finals = [
            StateName::Succeeded,
            StateName::Failed,
            StateName::Cancelled,
        ];
        self.wait(id, &finals).await.value
    }

    /// Waits until no message is left in the stream.
    pub(crate) async fn emptied(&self) {
        let stream = self.jetstream.get_stream_no_info("STORAGE").await.unwrap();
        until("an empty stream", async || match stream.get_info().await {
            Ok(info) if info.state.messages == 0 => Ok(()),
            Ok(info) => Err(format!("{} messages", info.state.messages)),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }

    /// How often the server gave out messages of `storage.p.low`.
    pub(crate) async fn deliveries(&self) -> usize {
        let count = self.consumer().await.delivered.consumer_sequence;
        usize::try_from(count).unwrap()
    }

    /// How many messages of `storage.p.low` workers have.
    pub(crate) async fn with_workers(&self) -> usize {
        self.consumer().await.num_ack_pending
    }

    async fn consumer(&self) -> consumer::Info {
        let consumer: PullConsumer = self
            .jetstream
            .get_consumer_from_stream("storage_p_low", "STORAGE")
            .await
            .unwrap();
        consumer.cached_info().clone()
    }

    /// One more connection.
    pub(crate) async fn bus(&self) -> Bus {
        connect(&self.server).await
    }

    /// A lock's record.
    pub(crate) async fn lock(&self, name: &str) -> Option<Lock> {
        let locks: Bucket<Lock> = Bucket::new(&self.bus().await, locks::BUCKET);
        let entry = locks.get_latest(name).await.unwrap();
        entry.map(|entry| entry.value)
    }

    /// Makes messages of `storage.p.low` come again sooner.
    pub(crate) async fn set_ack_wait(&self, to: Duration) {
        let client = self.jetstream.client();
        let ask = async |subject: String, body: String| -> Value {
            let answer = client.request(subject, body.into()).await.unwrap();
            serde_json::from_slice(&answer.payload).unwrap()
        };
        let name = "storage_p_low";
        let info = format!("$JS.API.CONSUMER.INFO.STORAGE.{name}");
        let mut config = ask(info, String::new()).await["config"].take();
        config["ack_wait"] = json!(u64::try_from(to.as_nanos()).unwrap());
        let create = format!("$JS.API.CONSUMER.CREATE.STORAGE.{name}.storage.p.low");
        let body = json!({"stream_name": "STORAGE", "config": config, "action": "update"});
        let answer = ask(create, body.to_string()).await;
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// The workers' leases.
    pub(crate) async fn leases(&self) -> Bucket<WorkerRecord> {
        Bucket::new(&self.bus().await, lease::BUCKET)
    }

    /// Waits until a worker's lease is of this start of it.
    pub(crate) async fn leased(&self, worker: &str, boot: BootId) -> Entry<WorkerRecord> {
        let leases = self.leases().await;
        until("the lease", async || {
            match leases.get_latest(worker).await.unwrap() {
                Some(entry) if entry.value.boot == boot => Ok(entry),
                other => Err(other.map(|entry| entry.value.boot)),
            }
        })
        .await
    }

    /// Takes a worker's lease away.
    pub(crate) async fn end_lease(&self, worker: &str) {
        let leases = self.jetstream.get_key_value("workers").await.unwrap();
        leases.delete(worker).await.unwrap();
    }

    /// Puts a record in place of the one that is there.
    pub(crate) async fn write(&self, id: &str, record: &Record) {
        let entry = self
            .jobs
            .get_latest(&id.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        self.jobs.write(record, entry.revision).await.unwrap();
    }

    /// Changes a record as the control service would.
    pub(crate) async fn change(&self, id: &str, event: Event) -> Entry<Record> {
        let id: JobId = id.parse().unwrap();
        until("the change", async || {
            let entry = self.jobs.get_latest(&id).await.unwrap().unwrap();
            self.jobs.change(&entry, event.clone()).await
        })
        .await
    }
}

async fn connect(server: &Server) -> Bus {
    let config = ConnectConfig {
        url: server.url.clone(),
        ..ConnectConfig::default()
    };
    Bus::connect(&config, "test").await.unwrap()
}

pub(crate) fn one_slot() -> WorkConfig {
    WorkConfig {
        slots: 1,
        reserved_high: 0,
        long_max: 1,
        ..WorkConfig::default()
    }
}
