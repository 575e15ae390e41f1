//! Many jobs that want one lock, and a few that don't.

use super::{Size, settings};
use crate::{
    error::Failure,
    events::{BUS, Job, LOW, Probe, SUCCEEDED},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use serde_json::json;
use tokio::time::Instant;

/// The jobs on locks of their own.
const FREE: u32 = 100;
const REPEATS: u32 = 3;

pub(super) async fn measure(
    site: &mut Site,
    size: Size,
    report: &mut Report,
) -> Result<(), Failure> {
    let many = size.of(17_000, 500);
    site.start_again("storage", &settings())?;
    let mut probe = Probe::new(site.jetstream(), BUS).await?;
    probe.start_one(Job::ping("lock-warm")).await?;
    probe.until(SUCCEEDED).await?;
    let mut alone = Samples::default();
    for repeat in 0..REPEATS {
        alone.push(free_ones(&mut probe, &format!("alone-{repeat}")).await?);
    }
    let crowd = Probe::new(site.jetstream(), LOW).await?;
    let began = Instant::now();
    crowd.publish_all((0..many).map(on_one_lock)).await?;
    let mut beside = Samples::default();
    for repeat in 0..REPEATS {
        beside.push(free_ones(&mut probe, &format!("beside-{repeat}")).await?);
    }
    let mut ended = probe.ended("one-");
    while ended < many {
        probe.until(SUCCEEDED).await?;
        ended = probe.ended("one-");
    }
    let all = began.elapsed().as_secs_f64();
    site.stop("storage").await?;
    let mut table = Table::new(&["jobs", "alone, s", "beside the others, s", "ratio"]);
    table.row(vec![
        format!("{FREE}, each on a free lock"),
        alone.spread(2),
        beside.spread(2),
        format!("{:.2}", beside.median() / alone.median()),
    ]);
    table.row(vec![
        format!("{many} on one lock, on `low`"),
        String::new(),
        format!("{all:.0} ({:.0} jobs/s)", f64::from(many) / all),
        String::new(),
    ]);
    report.table(&table);
    report.text(format!(
        "From the first publish to the end of the last job, {REPEATS} times each, on `default` \
         where nothing else is."
    ));
    Ok(())
}

fn on_one_lock(number: u32) -> Job {
    let locks = json!({"locks": {"exclusive": ["x.one"]}});
    Job::ping_with(&format!("one-{number}"), &json!({}), &locks)
}

/// Seconds for a hundred jobs that nothing keeps.
async fn free_ones(probe: &mut Probe, name: &str) -> Result<f64, Failure> {
    let prefix = format!("{name}-");
    let jobs = (0..FREE).map(|number| {
        let locks = json!({"locks": {"exclusive": [format!("x.free-{number}")]}});
        Job::ping_with(&format!("{prefix}{number}"), &json!({}), &locks)
    });
    probe.work_off(&prefix, jobs).await
}
