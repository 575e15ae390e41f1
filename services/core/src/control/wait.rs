//! `virtbus.jobs.wait`.

use super::{Failed, jobs};
use crate::service::Stores;
use std::time::Duration;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, jobs::EVENTS};
use virtbus_wire::{Code, JobError, Record, StateName, control::Wait};

/// How often the record is read though no event came: events are hints, at most once.
const LOOK: Duration = Duration::from_secs(5);
/// How long a job that is waited for may be published later than the request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until a job is final.
pub(super) async fn wait(
    stores: &Stores,
    asked: Wait,
    stop: &CancellationToken,
) -> Result<Record, Failed> {
    let subject = format!("{EVENTS}.{}", asked.id);
    let unreachable = |error: &dyn ToString| BusError::Unreachable {
        call: format!("a subscription to {subject}"),
        reason: error.to_string(),
    };
    let events = stores.bus.subscribe(subject.clone()).await;
    let mut events = events.map_err(|error| unreachable(&error))?;
    // What is read after this misses nothing in between.
    let flushed = stores.bus.flush().await;
    flushed.map_err(|error| unreachable(&error))?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(asked.timeout_s.get());
    loop {
        let is_late = begin.elapsed() >= PATIENCE || Instant::now() >= end;
        let found = match stores.jobs.get_latest(&asked.id).await? {
            // Core may be behind.
            None if is_late => jobs::find(stores, &asked.id).await?,
            found => found,
        };
        let found = found.map(|entry| entry.value);
        let state = found.as_ref().map(|record| record.state.name());
        let is_unknown = state.is_none() && is_late;
        match found {
            Some(record) if record.state.name().is_final() => return Ok(record),
            _ if is_unknown || Instant::now() >= end => {
                return Err(not_final(&asked, state).into());
            }
            Some(_) | None => {}
        }
        let look = if state.is_none() { PATIENCE } else { LOOK };
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let message = "the service is stopping: ask again";
                return Err(JobError::new(Code::WorkerShutdown, message).into());
            }
            event = events.next() => if event.is_none() {
                return Err(unreachable(&"the connection was closed").into());
            },
            () = time::sleep_until(end.min(Instant::now() + look)) => {}
        }
    }
}

/// That the time is over, or that there is nothing to wait for.
fn not_final(asked: &Wait, state: Option<StateName>) -> JobError {
    let Some(state) = state else {
        return jobs::not_found(&asked.id);
    };
    let message = format!("the job is still {state}");
    JobError::new(Code::JobTimeout, message)
        .with("job", asked.id.as_str())
        .with("state", state.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::task::value::Bounded;

    #[test]
    fn a_wait_that_ends_without_an_end_says_how_the_job_is() {
        let asked = Wait {
            id: "j".parse().unwrap(),
            timeout_s: Bounded::nearest(1),
        };
        let late = not_final(&asked, Some(StateName::Running));
        assert_eq!(late.code, Code::JobTimeout);
        assert_eq!(late.detail["state"], "running");
        assert_eq!(not_final(&asked, None).code, Code::JobNotFound);
    }
}
