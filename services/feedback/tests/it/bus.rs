//! The bus as the feedback service sees it: a server with all streams and buckets, and records.

use async_nats::jetstream::stream::Republish;
use serde_json::{Value, json};
use virtbus_bus::{
    Bus, ConnectConfig,
    topology::{Mode, Wanted, apply},
};
use virtbus_testbed::{Server, until};

/// A server with everything set up, and a connection to it.
pub(crate) struct TestBus {
    pub(crate) server: Server,
    pub(crate) bus: Bus,
}

impl TestBus {
    pub(crate) async fn start() -> Self {
        let server = Server::dev().await;
        let config = ConnectConfig {
            url: server.url.clone(),
            ..ConnectConfig::default()
        };
        let bus = Bus::connect(&config, "test").await.unwrap();
        let wanted = Wanted::default();
        apply(bus.jetstream(), &wanted, Mode::Apply).await.unwrap();
        Self { server, bus }
    }

    /// Writes a record, whatever was there, and returns its revision.
    pub(crate) async fn put(&self, id: &str, user: &str, state: &str) -> u64 {
        let payload = record(id, user, state).to_string();
        self.write(id, payload).await
    }

    /// Ends a record's life.
    pub(crate) async fn remove(&self, id: &str) -> u64 {
        self.write(id, String::new()).await
    }

    async fn write(&self, id: &str, payload: String) -> u64 {
        let js = self.bus.jetstream();
        let ack = js.publish(format!("$KV.jobs.{id}"), payload.into()).await;
        ack.unwrap().await.unwrap().sequence
    }

    /// Writes many queued jobs with this label, without waiting for each.
    pub(crate) async fn put_many(
        &self,
        ids: impl Iterator<Item = String>,
        user: &str,
        label: &str,
    ) {
        let js = self.bus.jetstream();
        let mut acks = Vec::new();
        for id in ids {
            let mut record = record(&id, user, "queued");
            record["labels"]["class"] = label.into();
            let ack = js.publish(format!("$KV.jobs.{id}"), record.to_string().into());
            acks.push(ack.await.unwrap());
            if acks.len() >= 500 {
                for ack in acks.drain(..) {
                    ack.await.unwrap();
                }
            }
        }
        for ack in acks {
            ack.await.unwrap();
        }
    }

    /// Whether the bucket tells of its changes.
    pub(crate) async fn publish_changes(&self, on: bool) {
        let js = self.bus.jetstream();
        let mut stream = js.get_stream("KV_jobs").await.unwrap();
        let mut config = stream.info().await.unwrap().config.clone();
        config.republish = on.then(|| Republish {
            source: "$KV.jobs.>".to_owned(),
            destination: "events.jobs.>".to_owned(),
            headers_only: false,
        });
        js.update_stream(config).await.unwrap();
    }

    /// Publishes a job, as any program would.
    pub(crate) async fn publish(&self, subject: &'static str, job: &Value) {
        let ack = self
            .bus
            .jetstream()
            .publish(subject, job.to_string().into());
        ack.await.unwrap().await.unwrap();
    }

    /// The record of a job, once it's final.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let subject = format!("$JS.API.DIRECT.GET.KV_jobs.$KV.jobs.{id}");
        until("the end of the job", async || {
            let answer = self.bus.request(&subject, "").await;
            let record: Value = serde_json::from_slice(&answer.unwrap().payload)
                .map_err(|_| Value::from("no record"))?;
            if record["finished_at"].is_null() {
                return Err(record);
            }
            Ok(record)
        })
        .await
    }

    pub(crate) async fn progress(&self, id: &str, attempt: u32, percent: f64) {
        let said = json!({"id": id, "attempt": attempt, "percent": percent, "phase": "convert"});
        let client = self.bus.client();
        let subject = format!("events.progress.{id}");
        client
            .publish(subject, said.to_string().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }
}

/// A record as core or a worker would write it.
pub(crate) fn record(id: &str, user: &str, state: &str) -> Value {
    let at = "2026-11-21T16:30:00.000Z";
    let running = matches!(state, "running" | "cancelling");
    let is_final = matches!(state, "succeeded" | "failed" | "cancelled");
    let error = (state == "failed")
        .then(|| json!({"code": "tool.failed", "message": "x", "retryable": true, "detail": {}}));
    json!({
        "id": id, "task": "convert", "queue": "storage.default.low", "priority": "low",
        "objects": ["disk.d7"], "state": state, "params": {"disk": "d7"}, "user": user,
        "tenant": "acme", "labels": {}, "reason": null, "after": [],
        "locks": {"exclusive": [], "shared": []}, "if_in_use": "fail", "not_before": null,
        "expires_at": null, "timeout_s": null, "retry": {"max_attempts": 3},
        "generation": 1, "claim": 1, "attempt": 1, "tries_left": 2, "seq": 812, "ticket": null,
        "rounds": 0, "cancel": null,
        "dedupe": {"stream": "STORAGE", "seq": 812, "time": at},
        "worker": (running || is_final).then_some("st-1"),
        "boot": (running || is_final).then_some("01890a5d-ac96-774b-bcce-b302099a8057"),
        "phase": running.then_some("work"), "progress": null, "waiting": null,
        "result": (state == "succeeded").then(|| json!({})), "error": error,
        "cancelable": !is_final, "submitted_at": at, "queued_at": at, "started_at": at,
        "finished_at": is_final.then_some(at), "timeline": [{"state": "queued", "at": at}],
    })
}
