//! How late jobs start that are to wait for a time, while many others wait for a worker.

use super::{LOW, settings};
use crate::{
    error::{Failure, failure},
    events::{HIGH, Job, Probe, RUNNING},
    site::Site,
    stats::Samples,
};
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};
use virtbus_wire::Timestamp;

/// One of them each second: for longer than core rests between two looks at everything.
const SAMPLES: u32 = 75;

/// Milliseconds from `not_before` to running, by the record.
pub(super) async fn measure(site: &mut Site, name: &str) -> Result<Samples, Failure> {
    ask(site, "pause").await?;
    site.start_again("storage", &settings())?;
    let mut probe = Probe::new(site.jetstream(), LOW).await?;
    let now = Timestamp::now();
    for number in 0..SAMPLES {
        let not_before = now.after(Duration::from_secs(u64::from(5 + number)));
        let more = json!({"not_before": not_before});
        let id = format!("{name}-{number}");
        let job = Job::ping_with(&id, &json!({}), &more).into_payload();
        site.jetstream().publish(HIGH, job).await?.await?;
    }
    let (mut seen, mut late) = (HashSet::new(), Samples::default());
    while seen.len() < SAMPLES as usize {
        let event = probe.until(RUNNING).await?;
        if seen.insert(event.subject.to_string()) {
            late.push(lateness(&serde_json::from_slice(&event.payload)?)?);
        }
    }
    site.stop("storage").await?;
    ask(site, "resume").await?;
    Ok(late)
}

fn lateness(record: &Value) -> Result<f64, Failure> {
    let time = |field: &str| {
        let time = record[field].as_str().and_then(|text| text.parse().ok());
        let time: Option<Timestamp> = time;
        time.map(Timestamp::as_millis)
            .ok_or_else(|| failure(format!("no {field} in {record}")))
    };
    let late = time("started_at")? - time("not_before")?;
    #[expect(clippy::cast_precision_loss, reason = "some seconds")]
    Ok(late as f64)
}

async fn ask(site: &Site, what: &str) -> Result<(), Failure> {
    let question = json!({"queue": LOW.subject, "reason": "bench"}).to_string();
    let subject = format!("virtbus.queues.{what}");
    site.client().request(subject, question.into()).await?;
    Ok(())
}
