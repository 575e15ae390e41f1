//! The life of a job as few lines of JetStream do it: what the bus is compared with.
//!
//! Same server, a stream, a consumer and a bucket of the same settings under other names, the
//! same messages and records: pull, create the record, update it to its end, acknowledge twice.
//! If asked to, with the work of a storage ping between: make, rename and unlink a file.

use crate::{
    error::{Failure, failure},
    events::Lane,
};
use async_nats::{
    Client,
    jetstream::{self, Context, message::PublishMessage},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use virtbus_testbed::server::nats_folder;

const STREAM: &str = "BENCH";
const CONSUMER: &str = "bench_default_default";
const BUCKET: &str = "bench";
/// How long a pull waits for a job, as a worker's does.
const ARMED: Duration = Duration::from_secs(10);
/// How long an answer to it is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the record of a ping that is over stays, as in the bus.
const KEEP: Duration = Duration::from_secs(60 * 60);

/// The bare counterpart of the bus.
pub(crate) const BARE: Lane = Lane {
    subject: "bench.default.default",
    events: "events.bench",
};

/// Records as the bus wrote them for a ping: the bare path writes the same bytes.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    pub(crate) running: Bytes,
    pub(crate) succeeded: Bytes,
}

/// Makes stream and bucket.
pub(crate) async fn set_up(client: &Client) -> Result<(), Failure> {
    let mut stream = definition("streams/STORAGE.json")?;
    stream["name"] = json!(STREAM);
    stream["subjects"] = json!(["bench.*.*"]);
    stream["republish"]["src"] = json!("bench.*.*");
    stream["republish"]["dest"] = json!("submitted.bench.{{wildcard(1)}}.{{wildcard(2)}}");
    api(client, &format!("STREAM.CREATE.{STREAM}"), &stream).await?;
    let mut bucket = definition("kv/jobs.json")?;
    bucket["name"] = json!(format!("KV_{BUCKET}"));
    bucket["subjects"] = json!([format!("$KV.{BUCKET}.>")]);
    bucket["republish"]["src"] = json!(format!("$KV.{BUCKET}.>"));
    bucket["republish"]["dest"] = json!(format!("{}.>", BARE.events));
    api(client, &format!("STREAM.CREATE.KV_{BUCKET}"), &bucket).await
}

fn definition(name: &str) -> Result<Value, Failure> {
    let text = fs::read_to_string(nats_folder().join(name))?;
    Ok(serde_json::from_str(&text)?)
}

async fn api(client: &Client, call: &str, body: &Value) -> Result<(), Failure> {
    let payload = serde_json::to_vec(body)?.into();
    let answer = client.request(format!("$JS.API.{call}"), payload).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer.get("error") {
        Some(error) => Err(failure(format!("{call}: {error}"))),
        None => Ok(()),
    }
}

/// As many tasks as a worker has slots, on one connection.
#[derive(Debug)]
pub(crate) struct Workers {
    client: Client,
    tasks: JoinSet<Result<(), Failure>>,
}

impl Workers {
    /// Makes the consumer and starts the tasks. Given a folder, each job does its work there.
    pub(crate) async fn start(
        client: Client,
        slots: u32,
        records: &Records,
        folder: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut config = definition("consumers/storage.json")?;
        config["durable_name"] = json!(CONSUMER);
        config["filter_subject"] = json!(BARE.subject);
        let body = json!({ "stream_name": STREAM, "config": config, "action": "create" });
        let call = format!("CONSUMER.CREATE.{STREAM}.{CONSUMER}.{}", BARE.subject);
        api(&client, &call, &body).await?;
        let jetstream = jetstream::new(client.clone());
        let mut tasks = JoinSet::new();
        for _ in 0..slots {
            let work = work(
                jetstream.clone(),
                records.clone(),
                folder.map(Path::to_owned),
            );
            tasks.spawn(async {
                // Said at once: whoever waits for its events would only hear nothing.
                work.await
                    .inspect_err(|error| eprintln!("bench: bare worker: {error}"))
            });
        }
        Ok(Self { client, tasks })
    }

    /// Ends the tasks. The consumer goes first, or it would still deliver to their open pulls.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let call = format!("CONSUMER.DELETE.{STREAM}.{CONSUMER}");
        api(&self.client, &call, &json!({})).await?;
        self.tasks.shutdown().await;
        Ok(())
    }
}

/// One slot: jobs one after the other, until the consumer is gone.
async fn work(
    jetstream: Context,
    records: Records,
    folder: Option<PathBuf>,
) -> Result<(), Failure> {
    let client = jetstream.client();
    let pull = json!({ "batch": 1, "expires": u64::try_from(ARMED.as_nanos())? });
    let pull = Bytes::from(serde_json::to_vec(&pull)?);
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}");
    let inbox = client.new_inbox();
    let mut jobs = client.subscribe(inbox.clone()).await?;
    // An inbox's name is nobody else's: good for keys too.
    let slot = inbox.rsplit('.').next().unwrap_or_default();
    for number in 0_u64.. {
        let (to, reply) = (subject.clone(), inbox.clone());
        client.publish_with_reply(to, reply, pull.clone()).await?;
        let message = timeout(PATIENCE, jobs.next()).await?;
        let message = message.ok_or_else(|| failure("the connection was closed"))?;
        match message.status.map(|status| status.as_u16()) {
            None => {}
            // Its time is over.
            Some(404 | 408) => continue,
            // The consumer is gone.
            Some(_) => return Ok(()),
        }
        let key = format!("$KV.{BUCKET}.{slot}-{number}");
        let create = PublishMessage::build()
            .payload(records.running.clone())
            .expected_last_subject_sequence(0);
        let created = jetstream.send_publish(key.clone(), create).await?.await?;
        if let Some(folder) = &folder {
            let file = folder.join(format!(".{slot}-{number}.part"));
            spawn_blocking(move || touch(&file)).await??;
        }
        let update = PublishMessage::build()
            .payload(records.succeeded.clone())
            .expected_last_subject_sequence(created.sequence)
            .ttl(KEEP);
        jetstream.send_publish(key, update).await?.await?;
        let context = jetstream.clone();
        jetstream::Message { message, context }.double_ack().await?;
    }
    Ok(())
}

fn touch(file: &Path) -> io::Result<()> {
    let renamed = file.with_extension("done");
    drop(fs::File::create_new(file)?);
    fs::rename(file, &renamed)?;
    fs::remove_file(&renamed)
}
