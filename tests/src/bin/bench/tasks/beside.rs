//! How long small urgent jobs take beside large copies.

use super::Bench;
use crate::{
    error::Failure,
    events::{BUS, HIGH, Job, SUCCEEDED, alone_until},
    report::Table,
    stats::Samples,
};
use async_nats::Client;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{task::JoinSet, time::sleep};

/// Copies that go on at once: as many as a service runs.
const COPIES: u32 = 2;
/// How long everything rests between two urgent jobs.
const REST: Duration = Duration::from_millis(15);

impl Bench<'_> {
    pub(super) async fn beside_copies(&mut self) -> Result<Table, Failure> {
        let alone = self.small_ones("alone").await?;
        let mut copies = JoinSet::new();
        for number in 0..COPIES {
            let client = self.site.another_client().await;
            copies.spawn(async move { copy_on_and_on(&client, number).await });
        }
        let beside = tokio::select! {
            beside = self.small_ones("beside") => beside?,
            Some(ended) = copies.join_next() => return Err(ended?),
        };
        copies.shutdown().await;
        let mut table = Table::new(&["`create_disk` on `high`", "p50, ms", "p99, ms", "max, ms"]);
        let rows = [
            ("alone".to_owned(), &alone),
            (format!("beside {COPIES} × `convert`"), &beside),
        ];
        for (name, samples) in rows {
            let of = |percent| format!("{:.1}", samples.percentile(percent));
            table.row(vec![name, of(50), of(99), of(100)]);
        }
        Ok(table)
    }

    /// Milliseconds from publish to `succeeded`, one after the other.
    async fn small_ones(&self, name: &str) -> Result<Samples, Failure> {
        let client = self.site.another_client().await;
        let mut samples = Samples::default();
        for number in 0..self.scale.small {
            sleep(REST).await;
            let disk = format!("{name}-{number}");
            let params = json!({ "disk": disk, "size": 1 << 30 });
            let took = done(&client, HIGH, ("create_disk", &disk), &params).await?;
            samples.push(took);
        }
        Ok(samples)
    }
}

/// Copies, and removes what it copied, until it's dropped or fails.
async fn copy_on_and_on(client: &Client, number: u32) -> Failure {
    let mut round = 0;
    loop {
        round += 1;
        let to = format!("copy-{number}-{round}");
        let params = json!({ "disk": "full", "to": to, "format": "qcow2" });
        if let Err(failure) = done(client, BUS.subject, ("convert", &to), &params).await {
            return failure;
        }
        let params = json!({ "disk": to, "mode": "unlink" });
        if let Err(failure) = done(client, HIGH, ("delete_disk", &to), &params).await {
            return failure;
        }
    }
}

/// Runs one job to its good end; in milliseconds.
async fn done(
    client: &Client,
    queue: &'static str,
    (task, name): (&str, &str),
    params: &Value,
) -> Result<f64, Failure> {
    let id = format!("{task}-{name}");
    let job = Job::new(&id, task, params);
    alone_until(client, queue, (&id, job), SUCCEEDED).await
}
