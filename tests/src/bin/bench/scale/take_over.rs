//! From the death of a worker to its job running elsewhere.

use super::{Size, settings};
use crate::{
    error::{Failure, failure},
    events::{BUS, Job, Probe, RUNNING},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use serde_json::{Value, json};
use tokio::time::Instant;

const WORK_MS: u64 = 200;
/// Longer than a take-over takes.
const HELD_MS: u64 = 120_000;
/// How this bench calls its two workers.
const WORKERS: [&str; 2] = ["storage-one", "storage-two"];

pub(super) async fn measure(
    site: &mut Site,
    size: Size,
    report: &mut Report,
) -> Result<(), Failure> {
    site.stop("storage").await?;
    for name in WORKERS {
        start(site, name)?;
    }
    let mut probe = Probe::new(site.jetstream(), BUS).await?;
    let repeats = size.of(10, 2);
    let mut took = Samples::default();
    for number in 0..repeats {
        let id = format!("taken-over-{number}");
        let job = Job::ping_with(&id, &json!({"sleep_ms": HELD_MS}), &json!({}));
        let (_, record) = probe.start_one(job).await?;
        let victim = worker_of(&record)?;
        let began = Instant::now();
        site.kill(&victim).await?;
        loop {
            let event = probe.until(RUNNING).await?;
            let is_it = event.subject.ends_with(&format!(".{id}"));
            if is_it && worker_of(&event.payload)? != victim {
                break;
            }
        }
        took.push(began.elapsed().as_secs_f64());
        // The job would keep its slot; its record says what becomes of it.
        let cancel = json!({"id": id}).to_string();
        let cancel = site.client().request("virtbus.jobs.cancel", cancel.into());
        cancel.await?;
        start(site, &victim)?;
        // One that is over before the next worker dies: it must not be lost with it.
        let between = format!("between-{number}");
        let params = json!({"sleep_ms": WORK_MS});
        probe.job(&between, "ping", params).await?;
    }
    for name in WORKERS {
        site.stop(name).await?;
    }
    let mut table = Table::new(&["kill -9 of a worker → its job runs elsewhere", "s"]);
    table.row(vec![format!("{repeats} times"), took.spread(1)]);
    report.table(&table);
    report.text(
        "Two workers of one pool; the lease of the dead one lasts 15 s at most, and its message \
         comes again after 30 s unless the reconciler publishes the job before.",
    );
    Ok(())
}

fn start(site: &mut Site, name: &str) -> Result<(), Failure> {
    let mut more = settings().to_vec();
    let state = site.dir().join(name);
    std::fs::create_dir_all(&state)?;
    more.push(("VIRTBUS__WORKER__ID", name.to_owned()));
    more.push(("VIRTBUS__STATE_DIR", state.to_string_lossy().into_owned()));
    more.push(("VIRTBUS__HTTP__LISTEN", "127.0.0.1:0".to_owned()));
    let pid_file = state.join("pid").to_string_lossy().into_owned();
    more.push(("VIRTBUS__PID_FILE", pid_file));
    site.start_as(name, "storage", &more)
}

fn worker_of(record: &[u8]) -> Result<String, Failure> {
    let record: Value = serde_json::from_slice(record)?;
    let worker = record["worker"].as_str();
    worker
        .map(str::to_owned)
        .ok_or_else(|| failure(format!("nobody has {record}")))
}
