//! Jobs in, events out: what the bench does the same way with the bus and bare.

use crate::error::{Failure, failure};
use async_nats::{
    Client, Message, Subscriber,
    jetstream::{self, Context, context::PublishAckFuture},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{collections::VecDeque, time::Duration};
use tokio::time::{Instant, timeout};

/// The longest wait for the next event.
const NEXT_LIMIT: Duration = Duration::from_secs(60);
/// Publications whose acknowledgement is awaited later.
const IN_FLIGHT: usize = 256;

/// What is looked for in the text of a record.
pub(crate) const RUNNING: &[u8] = br#""state":"running""#;
pub(crate) const SUCCEEDED: &[u8] = br#""state":"succeeded""#;
const FAILED: &[u8] = br#""state":"failed""#;

/// Where jobs are published to, and where their records show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) subject: &'static str,
    pub(crate) events: &'static str,
}

/// The bus itself.
pub(crate) const BUS: Lane = Lane {
    subject: "storage.default.default",
    events: "events.jobs",
};

/// A queue of it that the jobs in question may not be on.
pub(crate) const LOW: Lane = Lane {
    subject: "storage.default.low",
    events: BUS.events,
};

/// The queue of it for urgent jobs.
pub(crate) const HIGH: &str = "storage.default.high";

/// One publisher that sees all events of a lane.
#[derive(Debug)]
pub(crate) struct Probe {
    jetstream: Context,
    lane: Lane,
    events: Subscriber,
    /// Ids of jobs that succeeded.
    ended: Vec<String>,
}

impl Probe {
    pub(crate) async fn new(jetstream: Context, lane: Lane) -> Result<Self, Failure> {
        let events = jetstream.client();
        let events = events.subscribe(format!("{}.>", lane.events)).await?;
        jetstream.client().flush().await?;
        Ok(Self {
            jetstream,
            lane,
            events,
            ended: Vec::new(),
        })
    }

    /// Publishes one job; how long until its record says `running`, and that record.
    pub(crate) async fn start_one(&mut self, job: Job) -> Result<(Duration, Bytes), Failure> {
        let began = Instant::now();
        let ack = self.publish(job).await?;
        let (acknowledged, running) = tokio::join!(acknowledged(ack), async {
            self.until(RUNNING)
                .await
                .map(|event| (began.elapsed(), event.payload))
        });
        acknowledged?;
        running
    }

    /// Publishes one job and waits until it has succeeded.
    pub(crate) async fn job(&mut self, id: &str, task: &str, params: Value) -> Result<(), Failure> {
        self.job_on(self.lane.subject, id, task, params).await
    }

    /// The same on another queue.
    pub(crate) async fn job_on(
        &mut self,
        subject: &str,
        id: &str,
        task: &str,
        params: Value,
    ) -> Result<(), Failure> {
        let payload = Bytes::from(Job::new(id, task, &params).text);
        let ack = self.jetstream.publish(subject.to_owned(), payload).await?;
        acknowledged(ack).await?;
        self.until(SUCCEEDED).await?;
        Ok(())
    }

    /// The next event whose record has `mark`.
    pub(crate) async fn until(&mut self, mark: &[u8]) -> Result<Message, Failure> {
        loop {
            let event = self.next().await?;
            if has(&event.payload, mark) {
                return Ok(event);
            }
        }
    }

    /// Publishes jobs and waits until the stream has them all.
    pub(crate) async fn publish_all(&self, jobs: impl Iterator<Item = Job>) -> Result<(), Failure> {
        let mut open = VecDeque::new();
        for job in jobs {
            if open.len() == IN_FLIGHT
                && let Some(oldest) = open.pop_front()
            {
                acknowledged(oldest).await?;
            }
            open.push_back(self.publish(job).await?);
        }
        for ack in open {
            acknowledged(ack).await?;
        }
        Ok(())
    }

    /// Publishes so many jobs whose ids begin like this, and waits until all have succeeded; in
    /// seconds.
    pub(crate) async fn work_off(
        &mut self,
        prefix: &str,
        jobs: impl ExactSizeIterator<Item = Job>,
    ) -> Result<f64, Failure> {
        let (began, count) = (Instant::now(), jobs.len());
        self.publish_all(jobs).await?;
        while (self.ended(prefix) as usize) < count {
            self.until(SUCCEEDED).await?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Waits for this many events, whatever they say.
    pub(crate) async fn skip(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            self.next().await?;
        }
        Ok(())
    }

    /// How many jobs whose id begins like this were seen to succeed.
    pub(crate) fn ended(&self, prefix: &str) -> u32 {
        let ended = self.ended.iter().filter(|id| id.starts_with(prefix));
        u32::try_from(ended.count()).unwrap_or(u32::MAX)
    }

    /// Watches a backlog of `count` jobs being worked off: jobs per second, from the first event
    /// to the end of the last job.
    pub(crate) async fn pace(&mut self, count: u32) -> Result<f64, Failure> {
        let mut left = count;
        let mut began = None;
        loop {
            let event = self.next().await?;
            let began = *began.get_or_insert_with(Instant::now);
            left -= u32::from(has(&event.payload, SUCCEEDED));
            if left == 0 {
                return Ok(f64::from(count) / began.elapsed().as_secs_f64());
            }
        }
    }

    async fn publish(&self, job: Job) -> Result<PublishAckFuture, Failure> {
        let payload = Bytes::from(job.text);
        Ok(self.jetstream.publish(self.lane.subject, payload).await?)
    }

    async fn next(&mut self) -> Result<Message, Failure> {
        let next = timeout(NEXT_LIMIT, self.events.next()).await;
        let silent = |_| {
            failure(format!(
                "nothing on {} for {NEXT_LIMIT:?}",
                self.lane.events
            ))
        };
        let event = next
            .map_err(silent)?
            .ok_or_else(|| failure("the connection was closed"))?;
        if has(&event.payload, SUCCEEDED) {
            let id = event.subject.rsplit('.').next().unwrap_or_default();
            self.ended.push(id.to_owned());
        }
        if has(&event.payload, FAILED) {
            let record = String::from_utf8_lossy(&event.payload);
            return Err(failure(format!("a job failed: {record}")));
        }
        Ok(event)
    }
}

/// A job's message.
#[derive(Debug)]
pub(crate) struct Job {
    text: String,
}

impl Job {
    pub(crate) fn ping(id: &str) -> Self {
        Self::new(id, "ping", &json!({}))
    }

    /// A ping with more fields.
    pub(crate) fn ping_with(id: &str, params: &Value, more: &Value) -> Self {
        let mut job = json!({ "id": id, "task": "ping", "params": params });
        for (name, value) in more.as_object().into_iter().flatten() {
            job[name] = value.clone();
        }
        let text = job.to_string();
        Self { text }
    }

    pub(crate) fn into_payload(self) -> Bytes {
        Bytes::from(self.text)
    }

    pub(crate) fn new(id: &str, task: &str, params: &Value) -> Self {
        let job = json!({ "id": id, "task": task, "params": params });
        Self {
            text: job.to_string(),
        }
    }
}

/// Publishes one job and waits for a record of it that has `mark`, reading its own events alone:
/// those of others would have to be read first. In milliseconds.
pub(crate) async fn alone_until(
    client: &Client,
    queue: &'static str,
    (id, job): (&str, Job),
    mark: &[u8],
) -> Result<f64, Failure> {
    let mut events = client.subscribe(format!("events.jobs.{id}")).await?;
    client.flush().await?;
    let began = Instant::now();
    let jetstream = jetstream::new(client.clone());
    let ack = jetstream.publish(queue, job.into_payload()).await?;
    acknowledged(ack).await?;
    loop {
        let event = timeout(NEXT_LIMIT, events.next()).await?;
        let event = event.ok_or_else(|| failure("the connection was closed"))?;
        if has(&event.payload, mark) {
            return Ok(began.elapsed().as_secs_f64() * 1e3);
        }
        if has(&event.payload, FAILED) {
            return Err(failure(String::from_utf8_lossy(&event.payload)));
        }
    }
}

async fn acknowledged(ack: PublishAckFuture) -> Result<(), Failure> {
    ack.await?;
    Ok(())
}

pub(crate) fn has(text: &[u8], mark: &[u8]) -> bool {
    text.windows(mark.len()).any(|part| part == mark)
}
