//! `virtbus.jobs.submit`: all jobs of a request are accepted, or none.
//!
//! First everything is looked at: task, parameters, place. Then the records are made, `queued`,
//! and only then the messages are published. What goes wrong before the first message lies there
//! takes the records away again, as nobody can have begun anything: the same ids can be submitted
//! once more. From the first message on all are accepted: what a full queue refuses, or a server
//! that went away, is published by the reconciler.

use super::{
    Caller, Failed, change,
    placement::{self, Site, Spot, Spots},
};
use crate::service::Stores;
use futures_util::{StreamExt as _, stream};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use virtbus_bus::{BusError, WriteError, jobs::PublishError};
use virtbus_wire::{
    Code, JobError, JobId, Label, Object, Queue, Record, Task, Timestamp,
    catalog::{DiskState, HypervisorState},
    control::{Accepted, Cancel, Placed, Submission, SubmitAnswer},
    protocol::arrival::{check_against_id, expired_error},
    record::Trace,
};

/// How long records may take to be made before all is undone; and how long messages may take to be
/// published before the rest is left to the reconciler.
const ACCEPT: Duration = Duration::from_secs(20);
/// Records made at the same time.
const AT_ONCE: usize = 32;

/// A job that can be accepted.
struct Ready {
    record: Record,
    queue: Queue,
}

/// Accepts all jobs of a request, or none.
pub(super) async fn submit(
    stores: &Stores,
    asked: Submission,
    trace: Option<Trace>,
) -> Result<SubmitAnswer, Failed> {
    let ready = prepare(stores, asked.jobs(), trace).await?;
    let made = match timeout(ACCEPT, make(stores, &ready)).await {
        Ok(Ok(made)) => made,
        Ok(Err(Refused { error, made })) => {
            undo(stores, made).await;
            return Err(error);
        }
        Err(_) => {
            // Which were made isn't known.
            undo(stores, ours(stores, &ready).await?).await;
            return Err(JobError::internal("the jobs took too long to be accepted").into());
        }
    };
    let mut accepted = match publish(stores, &ready).await {
        Ok(accepted) => accepted,
        Err(full) => {
            undo(stores, made).await;
            return Err(full.into());
        }
    };
    match asked {
        Submission::Several { .. } => Ok(SubmitAnswer::Several(accepted)),
        Submission::One(_) => {
            let one = accepted.pop();
            let none = || JobError::internal("nothing was accepted").into();
            one.map(SubmitAnswer::One).ok_or_else(none)
        }
    }
}

async fn prepare(
    stores: &Stores,
    jobs: &[Placed],
    trace: Option<Trace>,
) -> Result<Vec<Ready>, Failed> {
    let site = site(stores).await?;
    let mut spots = Spots::new();
    let mut ready = Vec::with_capacity(jobs.len());
    for placed in jobs {
        // Decoding gave every job an id.
        let id = placed.job.id.clone().unwrap_or_default();
        let named = |error: JobError| error.with("job", id.as_str());
        let task = task(placed, &id, stores.bus.now()).map_err(named)?;
        find(stores, &task.objects(), &mut spots).await?;
        let queue = placement::place(&id, &task, &placed.place, &spots, &site);
        let queue = queue.map_err(named)?;
        remember(&task, &queue, &site, &mut spots);
        let now = stores.bus.now();
        let mut record = Record::new(id, placed.job.clone(), queue.clone().into(), now);
        record.params = task.params();
        record.objects = task.objects().iter().map(ToString::to_string).collect();
        record.trace = trace.clone();
        ready.push(Ready { record, queue });
    }
    Ok(ready)
}

/// The task of a job that may be submitted under this id.
fn task(placed: &Placed, id: &JobId, now: Timestamp) -> Result<Task, JobError> {
    let job = &placed.job;
    if !id.is_publishable() {
        let error = JobError::new(Code::JobMalformed, "id: is of the system's own kind");
        return Err(error.with("field", "id"));
    }
    check_against_id(job, id)?;
    if job.expires_at.is_some_and(|end| end <= now) {
        return Err(expired_error());
    }
    let class = placement::class(&job.task, &job.params, &placed.place)?;
    Task::decode(class, &job.task, &job.params)
}

async fn site(stores: &Stores) -> Result<Site, BusError> {
    let catalogue = &stores.catalogue;
    let pools = catalogue.pools.all().await?.into_iter();
    let hosts = catalogue.hypervisors.all().await?.into_iter();
    Ok(Site {
        pools: pools.map(|(_, entry)| entry.value).collect(),
        hosts: hosts.filter_map(|(name, _)| name.parse().ok()).collect(),
        workers: catalogue.alive().await?,
    })
}

/// Looks up where things are. What was deleted is nowhere.
async fn find(stores: &Stores, objects: &[Object], spots: &mut Spots) -> Result<(), BusError> {
    let catalogue = &stores.catalogue;
    let in_pool = |pool, state| (state != DiskState::Deleted).then_some(Spot { pool, host: None });
    for object in objects {
        if spots.contains_key(object) {
            continue;
        }
        let spot = match object {
            Object::Disk(id) => {
                let found = catalogue.disks.get_latest(id.as_str()).await?;
                found.and_then(|entry| in_pool(entry.value.pool, entry.value.state))
            }
            Object::Media(id) => {
                let found = catalogue.media.get_latest(id.as_str()).await?;
                found.and_then(|entry| in_pool(entry.value.pool, entry.value.state))
            }
            Object::Domain(id) => match catalogue.domains.get_latest(id.as_str()).await? {
                Some(entry) => Some(Spot {
                    host: unfenced(stores, entry.value.hypervisor).await?,
                    pool: entry.value.pool,
                }),
                None => None,
            },
        };
        if let Some(spot) = spot {
            spots.insert(object.clone(), spot);
        }
    }
    Ok(())
}

/// A host, unless it's fenced: then any other of the pool does what can be done without it.
async fn unfenced(stores: &Stores, host: Option<Label>) -> Result<Option<Label>, BusError> {
    let Some(host) = host else { return Ok(None) };
    let found = stores.catalogue.hypervisors.get_latest(host.as_str());
    let is_fenced = found
        .await?
        .is_some_and(|entry| entry.value.state == HypervisorState::Fenced);
    Ok((!is_fenced).then_some(host))
}

/// What a job is about will be where the job goes: later ones of the request find it there.
fn remember(task: &Task, queue: &Queue, site: &Site, spots: &mut Spots) {
    let spot = match queue {
        Queue::Storage(place, _) => place.pools().first().map(|pool| Spot {
            pool: (*pool).clone(),
            host: None,
        }),
        Queue::Hypervisor(name, _) => Some(Spot {
            pool: name.clone(),
            host: site.hosts.contains(name).then(|| name.clone()),
        }),
        Queue::Core => None,
    };
    if let Some(spot) = spot {
        for object in task.objects() {
            spots.entry(object).or_insert_with(|| spot.clone());
        }
    }
}

/// A record of this request, as it was made.
struct Made {
    id: JobId,
    revision: u64,
}

/// Why jobs weren't accepted, and which records were made until then.
struct Refused {
    error: Failed,
    made: Vec<Made>,
}

/// Makes the records of all jobs.
async fn make(stores: &Stores, ready: &[Ready]) -> Result<Vec<Made>, Refused> {
    let create = |job: &Ready| {
        let record = job.record.clone();
        async move { (stores.jobs.create(&record).await, record.id) }
    };
    let creations: Vec<_> = ready.iter().map(create).collect();
    let created: Vec<_> = stream::iter(creations).buffered(AT_ONCE).collect().await;
    let mut made = Vec::with_capacity(created.len());
    let mut failed = None;
    for (outcome, id) in created {
        match outcome {
            Ok(revision) => made.push(Made { id, revision }),
            Err(WriteError::Conflict(_)) => failed = Some(taken(&id).into()),
            Err(WriteError::Bus(error)) => failed = Some(error.into()),
        }
    }
    match failed {
        Some(error) => Err(Refused { error, made }),
        None => Ok(made),
    }
}

/// Publishes the jobs in order. An error when the very first queue is full: nothing lies anywhere.
async fn publish(stores: &Stores, ready: &[Ready]) -> Result<Vec<Accepted>, JobError> {
    let mut accepted = Vec::with_capacity(ready.len());
    let mut end = Instant::now() + ACCEPT;
    for Ready { record, queue } in ready {
        let published = match Instant::now() < end {
            true => Some(stores.jobs.publish(record).await),
            false => None,
        };
        let job = &record.id;
        let seq = match published {
            Some(Ok(seq)) => Some(seq),
            Some(Err(PublishError::Full(queue))) if accepted.is_empty() => {
                return Err(full(queue));
            }
            Some(Err(PublishError::Full(queue))) => {
                tracing::warn!(%job, queue, "the queue is full: published later");
                None
            }
            Some(Err(PublishError::Bus(error))) => {
                tracing::warn!(%job, %error, "published later, as all after it");
                end = Instant::now();
                None
            }
            None => None,
        };
        accepted.push(Accepted {
            id: record.id.clone(),
            queue: queue.clone(),
            seq,
        });
    }
    Ok(accepted)
}

fn taken(id: &JobId) -> JobError {
    let message = format!("there is a job with the id {id} already");
    JobError::new(Code::Conflict, message).with("job", id.as_str())
}

fn full(queue: String) -> JobError {
    let full = JobError::new(Code::QueueFull, format!("the queue {queue} is full"));
    full.with("queue", queue)
}

/// Those of the jobs whose record is the one of this request.
async fn ours(stores: &Stores, ready: &[Ready]) -> Result<Vec<Made>, BusError> {
    let mut ours = Vec::new();
    for Ready { record, .. } in ready {
        let found = stores.jobs.get_latest(&record.id).await?;
        let is_ours =
            |found: &Record| found.dedupe.is_none() && found.submitted_at == record.submitted_at;
        if let Some(entry) = found.filter(|entry| is_ours(&entry.value)) {
            ours.push(Made {
                id: entry.value.id,
                revision: entry.revision,
            });
        }
    }
    Ok(ours)
}

/// Removes what was made of a request that is refused. What somebody has changed by now ends like
/// any other job that is cancelled.
async fn undo(stores: &Stores, made: Vec<Made>) {
    for Made { id, revision } in made {
        let removed = match stores.jobs.bucket().remove(id.as_str(), revision).await {
            Ok(()) => Ok(()),
            Err(WriteError::Conflict(_)) => cancel(stores, &id).await,
            Err(WriteError::Bus(error)) => Err(error.into()),
        };
        if let Err(error) = removed {
            tracing::error!(job = %id, %error, "a job of a refused request is left");
        }
    }
}

async fn cancel(stores: &Stores, id: &JobId) -> Result<(), Failed> {
    let caller = Caller {
        by: Some("virtbus.jobs.submit".to_owned()),
    };
    let asked = Cancel {
        id: id.clone(),
        only_waiting: false,
        force: false,
    };
    change::cancel(stores, asked, &caller).await.map(|_| ())
}
