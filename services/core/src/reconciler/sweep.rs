//! One look at everything: the streams, the leases, the locks.

use super::{
    exhausted,
    follow::Follower,
    held,
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
    vec,
};
use virtbus_bus::BusError;
use virtbus_wire::{
    BootId, Class, Event, JobId, Record, Timestamp, WorkerId,
    protocol::reconcile::{AGE_MIN, Stray, cycle_error, cycles, stray},
    state::Owner,
};

/// The check that says whether every job can have a record.
const RECORDS: &str = "records";
/// Of how many lost messages is seen to in one part of a sweep.
const LOST_AT_ONCE: usize = 256;

/// The state of the sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    number: u64,
    round: Option<Round>,
}

/// One look at everything, as far as it came. What was written since it began is the next one's.
#[derive(Debug)]
struct Round {
    began: Timestamp,
    /// The last revision that was known before the streams were read.
    known: u64,
    alive: HashMap<WorkerId, BootId>,
    reading: Option<Reading>,
    ahead: std::array::IntoIter<Class, 3>,
    /// Jobs whose message was found nowhere, with their revisions; none before all was read.
    lost: Option<vec::IntoIter<(JobId, u64)>>,
    /// Jobs that stay as they are, since the server refuses what is to be done.
    refused: u64,
}

/// A stream that is being read.
#[derive(Debug)]
struct Reading {
    stream: &'static str,
    from: u64,
    given_up: HashMap<String, u64>,
}

impl Sweep {
    /// Does a part of a look at everything, and says whether it was the last one. A million
    /// messages may lie in the streams: what comes meanwhile is seen to between two parts.
    pub(super) async fn step(
        &mut self,
        stores: &Stores,
        follower: &mut Follower,
        registered: Option<Timestamp>,
    ) -> Result<bool, BusError> {
        let round = match &mut self.round {
            Some(round) => round,
            None => {
                // Records first, then streams.
                follower.catch_up(stores).await?;
                self.number += 1;
                self.round
                    .insert(Round::begin(stores, &follower.index).await?)
            }
        };
        if round.read(stores, &mut follower.index, self.number).await? {
            return Ok(false);
        }
        let lost = round.next_lost(&follower.index, self.number);
        if !lost.is_empty() {
            let known = |lost_at| Known {
                lost_at: Some(lost_at),
                registered,
            };
            let lost = lost.into_iter().map(|(job, at)| (job, known(at)));
            look::look_at_each(stores, lost).await?;
            return Ok(false);
        }
        stores.ready.set(RECORDS, round.all_written());
        self.round = None;
        waiting(stores, &follower.index, registered).await?;
        keep::renew(stores, &follower.index).await?;
        held::all(stores, &mut follower.index).await?;
        Ok(true)
    }
}

impl Round {
    async fn begin(stores: &Stores, index: &Index) -> Result<Self, BusError> {
        Ok(Self {
            began: stores.bus.now(),
            known: index.revision,
            alive: alive(stores).await?,
            reading: None,
            ahead: Class::ALL.into_iter(),
            lost: None,
            refused: 0,
        })
    }

    fn all_written(&self) -> Result<(), String> {
        match self.refused {
            0 => Ok(()),
            jobs => Err(format!(
                "the messaging server takes no record of {jobs} jobs"
            )),
        }
    }

    /// Reads on in the streams; whether there was anything left to read.
    async fn read(
        &mut self,
        stores: &Stores,
        index: &mut Index,
        sweep: u64,
    ) -> Result<bool, BusError> {
        let reading = match self.reading.take() {
            Some(reading) => reading,
            None => match self.ahead.next() {
                Some(class) => Reading::begin(stores, class.stream()).await?,
                None => return Ok(false),
            },
        };
        self.reading = self.page(stores, index, (sweep, reading)).await?;
        Ok(true)
    }

    /// Notes whose message lies in the next part of a stream, and deletes those without a purpose.
    /// None when that was all of it.
    async fn page(
        &mut self,
        stores: &Stores,
        index: &mut Index,
        (sweep, reading): (u64, Reading),
    ) -> Result<Option<Reading>, BusError> {
        let page = stores.bus.browse(reading.stream, ">", reading.from).await?;
        let now = stores.bus.now();
        let (mut odd, mut spent) = (Vec::new(), Vec::new());
        for found in page.items.iter().filter_map(|stored| lying(stored, now)) {
            let (job, subject) = (found.id(), found.arrival.subject);
            let stands = index.found(job, found.generation(), subject, sweep);
            let upto = reading.given_up.get(subject);
            let is_spent = upto.is_some_and(|upto| found.arrival.seq <= *upto);
            if now.since(found.arrival.time) < AGE_MIN {
                continue;
            } else if !stands {
                odd.push(found);
            } else if is_spent {
                spent.push(found);
            }
        }
        self.refused += strays(stores, odd, &self.alive).await?;
        for found in spent {
            per_job(look::see_to_exhausted(stores, found).await)?;
        }
        Ok(page.next.map(|from| Reading { from, ..reading }))
    }

    /// The next of those whose message was found nowhere.
    fn next_lost(&mut self, index: &Index, sweep: u64) -> Vec<(JobId, u64)> {
        let lost = match self.lost.take() {
            Some(lost) => lost,
            None => self.find_lost(index, sweep).into_iter(),
        };
        self.lost.insert(lost).take(LOST_AT_ONCE).collect()
    }

    fn find_lost(&self, index: &Index, sweep: u64) -> Vec<(JobId, u64)> {
        let lost = index.notes().filter(|(_, note)| {
            let needs_one = match &note.doing {
                Doing::Queued => true,
                Doing::Held(owner) => self.alive.get(&owner.worker) != Some(&owner.boot),
                Doing::AfterJob(_) | Doing::UntilTime(_) => false,
                Doing::ForLock(_) | Doing::Otherwise => false,
            };
            let is_old = self.began.since(note.written_at) >= AGE_MIN;
            needs_one && is_old && note.revision <= self.known && note.found_in != sweep
        });
        lost.map(|(job, note)| (job.clone(), note.revision))
            .collect()
    }
}

impl Reading {
    async fn begin(stores: &Stores, stream: &'static str) -> Result<Self, BusError> {
        Ok(Self {
            stream,
            from: 1,
            given_up: exhausted::given_up(stores, stream).await?,
        })
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

#[cfg(test)]
mod tests;
