//! What a job costs while few or very many others wait on its queue.

use super::{LOW, Size, punctual, settings, wait_in_line};
use crate::{
    error::Failure,
    events::Probe,
    report::{Report, Table},
    site::Site,
    stats::Samples,
};

/// Jobs that are timed.
const TIMED: u32 = 1_000;
const REPEATS: u32 = 3;

pub(super) async fn measure(
    site: &mut Site,
    size: Size,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "waiting on the queue",
        "jobs/s",
        "core, MiB",
        "feedback, MiB",
        "storage, MiB",
        "late, ms (p50)",
        "(max)",
    ]);
    for waiting in [TIMED, size.of(1_000_000, 5_000)] {
        let mut paces = Samples::default();
        let mut memory = [0.0; 3];
        for repeat in 0..REPEATS {
            // Those that earlier runs left count.
            if waiting == TIMED || repeat == 0 {
                wait_in_line(site, &format!("backlog-{waiting}-{repeat}"), waiting).await?;
            }
            let mut probe = Probe::new(site.jetstream(), LOW).await?;
            site.start_again("storage", &settings())?;
            paces.push(probe.pace(TIMED).await?);
            memory = [
                site.memory("core")?,
                site.memory("feedback")?,
                site.memory("storage")?,
            ];
            site.stop("storage").await?;
        }
        let late = punctual::measure(site, &format!("punctual-{waiting}")).await?;
        let mut row = vec![waiting.to_string(), paces.spread(0)];
        row.extend(memory.map(|mib| format!("{mib:.0}")));
        row.push(format!("{:.0}", late.median()));
        row.push(format!("{:.0}", late.max()));
        table.row(row);
    }
    report.table(&table);
    report.text(format!(
        "Pings, each with its record made by core beforehand; the first {TIMED} are timed, \
         {REPEATS} times. Memory is what the process has resident at the end. Late: jobs on `high` \
         that start by `not_before`, one each second."
    ));
    Ok(())
}
