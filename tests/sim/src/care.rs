//! What a worker sees to beside its jobs: an intent that came too late, sent by a claim that was
//! cut off, or frozen, or died before it was answered, of a job that is over. Nobody else would
//! ever put it back.

use crate::{catalogue::Catalogue, perform::Work};
use std::time::Duration;
use tokio::time::sleep;
use virtbus_bus::{Bus, Jobs};
use virtbus_wire::{
    Class, JobId, Task,
    protocol::leftover::{Intent, Verdict, decide},
    state::Owner,
};
use virtbus_worker::{Assignment, Confirm, Confirmed, Perform as _, Stop};

/// How often it's looked.
const LOOK: Duration = Duration::from_secs(10);

/// Puts back what is left, for as long as this is polled.
pub async fn run(bus: Bus, work: Work, owner: Owner, keep: Duration) {
    let (catalogue, jobs) = (Catalogue::new(&bus), Jobs::new(&bus, keep));
    loop {
        sleep(LOOK).await;
        for (job, intent) in catalogue.begun(&bus).await.unwrap_or_default() {
            put_back(&jobs, &work, &owner, &job, intent).await;
        }
    }
}

async fn put_back(jobs: &Jobs, work: &Work, owner: &Owner, job: &JobId, intent: Intent) {
    let Ok(Some(entry)) = jobs.get_latest(job).await else {
        return;
    };
    let still = Still {
        jobs,
        job,
        revision: entry.revision,
    };
    let record = entry.value;
    let task = Task::restore(Class::Storage, &record.task, &record.params);
    let verdict = decide(intent, Some(&record), Class::Storage);
    let (Verdict::PutBack, Ok(task)) = (verdict, task) else {
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
    drop(work.abandon(&assignment, &still).await);
}

/// The record of a job that is over, as it was seen: somebody may retry it.
struct Still<'a> {
    jobs: &'a Jobs,
    job: &'a JobId,
    revision: u64,
}

impl Confirm for Still<'_> {
    fn confirm(&self) -> Confirmed<'_> {
        Box::pin(async {
            match self.jobs.get_latest(self.job).await {
                Ok(Some(entry)) if entry.revision == self.revision => Ok(()),
                Ok(_) | Err(_) => Err(Stop::Lost),
            }
        })
    }
}

/// What is being changed, as far as the catalogue says, and by which job.
pub type Begun = Vec<(JobId, Intent)>;

impl Catalogue {
    async fn begun(&self, bus: &Bus) -> Result<Begun, virtbus_bus::BusError> {
        let all = self.records().all().await?.into_iter();
        let begun = all.filter_map(|(_, entry)| {
            let intent = Intent {
                state: entry.value.state,
                is_in_use: !entry.value.in_use_by.is_empty(),
                age: bus.now().since(entry.written_at),
            };
            Some((entry.value.owner_job?, intent))
        });
        Ok(begun.collect())
    }
}
