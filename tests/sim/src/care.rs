//! What a worker sees to beside its jobs: an intent that came too late, sent by a claim that was
//! cut off, or frozen, or died before it was answered, of a job that is over. Nobody else would
//! ever put it back.

use crate::{broker::stream::Ms, catalogue::Catalogue, perform::Work};
use std::time::Duration;
use tokio::time::sleep;
use virtbus_bus::{Bus, Jobs};
use virtbus_wire::{Class, JobId, Task, Timestamp, catalog::DiskState, state::Owner};
use virtbus_worker::{Assignment, Perform as _};

/// How often it's looked.
const LOOK: Duration = Duration::from_secs(10);
/// How old an intent must be.
const AGE_MIN: Ms = 10_000;

/// Puts back what is left, for as long as this is polled.
pub async fn run(bus: Bus, work: Work, owner: Owner, keep: Duration) {
    let (catalogue, jobs) = (Catalogue::new(&bus), Jobs::new(&bus, keep));
    loop {
        sleep(LOOK).await;
        let begun = catalogue.begun().await.unwrap_or_default();
        let is_old = |at: Timestamp| (bus.now().as_millis() - at.as_millis()) >= AGE_MIN;
        for job in begun.into_iter().filter(|(_, at)| is_old(*at)) {
            put_back(&jobs, &work, &owner, &job.0).await;
        }
    }
}

async fn put_back(jobs: &Jobs, work: &Work, owner: &Owner, job: &JobId) {
    let Ok(Some(entry)) = jobs.get_latest(job).await else {
        return;
    };
    let record = entry.value;
    let task = Task::restore(Class::Storage, &record.task, &record.params);
    let (true, Ok(task)) = (record.state.name().is_final(), task) else {
        return;
    };
    let assignment = Assignment {
        id: record.id.clone(),
        claim: record.claim,
        owner: owner.clone(),
        task,
        record,
    };
    // What can't be done now is done by the next look.
    drop(work.abandon(&assignment).await);
}

/// What is being changed, as far as the catalogue says: by which job, since when.
pub type Begun = Vec<(JobId, Timestamp)>;

impl Catalogue {
    async fn begun(&self) -> Result<Begun, virtbus_bus::BusError> {
        let all = self.records().all().await?.into_iter();
        let begun = all.filter_map(|(_, entry)| {
            let record = entry.value;
            let is_intent = matches!(record.state, DiskState::Creating | DiskState::Changing);
            let owner = record.owner_job.filter(|_| is_intent)?;
            Some((owner, entry.written_at))
        });
        Ok(begun.collect())
    }
}
