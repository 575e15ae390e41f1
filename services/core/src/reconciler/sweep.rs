//! One look at everything: the streams, the leases, the locks.

use super::{
    exhausted, held,
    index::{Doing, Index},
    keep,
    look::{self, Known},
};
use crate::{
    registrar::{self, Lying, lying},
    service::{Stores, per_job},
};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use virtbus_bus::BusError;
use virtbus_wire::{
    BootId, Class, Event, JobId, Record, Timestamp, WorkerId,
    protocol::reconcile::{AGE_MIN, Stray, cycle_error, cycles, stray},
    state::Owner,
};

/// The check that says whether every job can have a record.
const RECORDS: &str = "records";

/// The state of the sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    number: u64,
}

impl Sweep {
    /// Looks at everything once. The index is up to date already: records first, then streams.
    pub(super) async fn run(
        &mut self,
        stores: &Stores,
        index: &mut Index,
        registered: Option<Timestamp>,
    ) -> Result<(), BusError> {
        self.number += 1;
        let alive = alive(stores).await?;
        let now = stores.bus.now();
        let suspects: Vec<(JobId, u64)> = index
            .notes()
            .filter(|(_, note)| now.since(note.written_at) >= AGE_MIN)
            .filter(|(_, note)| match &note.doing {
                Doing::Queued => true,
                Doing::Held(owner) => alive.get(&owner.worker) != Some(&owner.boot),
                Doing::AfterJob(_) | Doing::UntilTime(_) => false,
                Doing::ForLock(_) | Doing::Otherwise => false,
            })
            .map(|(job, note)| (job.clone(), note.revision))
            .collect();
        let mut refused = 0;
        for class in Class::ALL {
            refused += self.browse(stores, index, class.stream(), &alive).await?;
        }
        let all_written = match refused {
            0 => Ok(()),
            jobs => Err(format!(
                "the messaging server takes no record of {jobs} jobs"
            )),
        };
        stores.ready.set(RECORDS, all_written);
        for (job, revision) in suspects {
            let note = index.note(&job);
            let is_lost = |found_in: u64| found_in != self.number;
            if note.is_some_and(|note| note.revision == revision && is_lost(note.found_in)) {
                let lost_at = Some(revision);
                look::look(
                    stores,
                    &job,
                    Known {
                        lost_at,
                        registered,
                    },
                )
                .await?;
            }
        }
        waiting(stores, index, registered).await?;
        keep::renew(stores, index).await?;
        held::all(stores, index).await
    }

    /// Notes whose message lies in a stream, and deletes those without a purpose. Says how many
    /// jobs stay as they are since the server refuses what is to be done.
    async fn browse(
        &self,
        stores: &Stores,
        index: &mut Index,
        stream: &str,
        alive: &HashMap<WorkerId, BootId>,
    ) -> Result<u64, BusError> {
        let given_up = exhausted::given_up(stores, stream).await?;
        let (mut from, mut refused) = (Some(1), 0);
        while let Some(seq) = from {
            let page = stores.bus.browse(stream, ">", seq).await?;
            let now = stores.bus.now();
            let (mut odd, mut spent) = (Vec::new(), Vec::new());
            for found in page.items.iter().filter_map(|stored| lying(stored, now)) {
                let (job, subject) = (found.id(), found.arrival.subject);
                let stands = index.found(job, found.generation(), subject, self.number);
                let is_spent = given_up
                    .get(subject)
                    .is_some_and(|upto| found.arrival.seq <= *upto);
                if now.since(found.arrival.time) < AGE_MIN {
                    continue;
                } else if !stands {
                    odd.push(found);
                } else if is_spent {
                    spent.push(found);
                }
            }
            refused += strays(stores, odd, alive).await?;
            for found in spent {
                per_job(look::see_to_exhausted(stores, found).await)?;
            }
            from = page.next;
        }
        Ok(refused)
    }
}

/// The workers whose lease is there.
async fn alive(stores: &Stores) -> Result<HashMap<WorkerId, BootId>, BusError> {
    let workers = stores.catalogue.workers.all().await?;
    let workers = workers.into_iter().map(|(_, entry)| entry.value);
    Ok(workers.map(|worker| (worker.worker, worker.boot)).collect())
}

/// Messages that stand for no known job: registered, deleted or left. Says how many of them stay
/// since the server refuses what is to be done.
async fn strays(
    stores: &Stores,
    odd: Vec<Lying<'_>>,
    alive: &HashMap<WorkerId, BootId>,
) -> Result<u64, BusError> {
    let mut refused = 0;
    for found in odd {
        match see_to_stray(stores, found, alive).await {
            Err(error @ BusError::Refused { .. }) => {
                tracing::error!(%error, "a job stays without a record");
                refused += 1;
            }
            outcome => {
                per_job(outcome)?;
            }
        }
    }
    Ok(refused)
}

async fn see_to_stray(
    stores: &Stores,
    found: Lying<'_>,
    alive: &HashMap<WorkerId, BootId>,
) -> Result<(), BusError> {
    let entry = stores.jobs.get_latest(found.id()).await?;
    let now = stores.bus.now();
    let record = entry.as_ref().map(|entry| &entry.value);
    let found = found.or_later(record, now);
    let entry = match record {
        Some(record) if record.id != *found.id() => stores.jobs.get_latest(found.id()).await?,
        Some(_) | None => entry,
    };
    let seen = entry
        .as_ref()
        .map(|entry| (&entry.value, now.since(entry.written_at)));
    let age = now.since(found.arrival.time);
    let what = match found.message() {
        Some(message) => {
            let lives = |owner: &Owner| alive.get(&owner.worker) == Some(&owner.boot);
            stray(seen, &message, age, lives)
        }
        // No worker will ever see it.
        None => unserved(seen, age),
    };
    match what {
        Stray::Keep => {}
        Stray::Register => {
            registrar::register(stores, found).await?;
        }
        Stray::Delete => {
            let (stream, seq) = (found.arrival.stream, found.arrival.seq);
            tracing::info!(job = %found.id(), stream, seq, "a message without purpose is deleted");
            registrar::delete(stores, stream, seq).await?;
        }
    }
    Ok(())
}

/// What becomes of a message on a subject that is no queue.
fn unserved(record: Option<(&Record, Duration)>, age: Duration) -> Stray {
    match record {
        None => Stray::Register,
        Some((_, record_age)) if age.min(record_age) >= AGE_MIN => Stray::Delete,
        Some(_) => Stray::Keep,
    }
}

/// Jobs that wait for what isn't there any more, in case a look failed; and circles of jobs that wait for each other.
async fn waiting(
    stores: &Stores,
    index: &Index,
    registered: Option<Timestamp>,
) -> Result<(), BusError> {
    let now = stores.bus.now();
    let mut waits: BTreeMap<JobId, (Timestamp, Vec<JobId>)> = BTreeMap::new();
    let mut old = Vec::new();
    for (job, note) in index.notes() {
        let is_due = match &note.doing {
            Doing::AfterJob(on) => {
                let after = note.after.iter().map(|before| &before.job);
                let open = after.filter(|before| index.note(before).is_some());
                waits.insert(job.clone(), (note.submitted_at, open.cloned().collect()));
                // Perhaps nobody has seen that one, or it's over and the others aren't.
                index.note(on).is_none()
            }
            Doing::UntilTime(until) => *until <= now,
            Doing::Otherwise => true,
            // Each lock is looked at by itself.
            Doing::ForLock(_) | Doing::Queued | Doing::Held(_) => false,
        };
        if is_due && now.since(note.written_at) >= AGE_MIN {
            old.push(job.clone());
        }
    }
    for (youngest, circle) in cycles(&waits) {
        let youngest = per_job(stores.jobs.get_latest(&youngest).await)?;
        if let Some(Some(entry)) = youngest {
            let event = Event::Fail(cycle_error(&circle));
            look::carry_out(stores, &entry, event).await?;
        }
    }
    let known = Known {
        lost_at: None,
        registered,
    };
    look::look_at_all(stores, old, known).await
}
