//! `virtbus.jobs.get`, `list`; and finding the job that a request is about.

use super::Failed;
use crate::{
    registrar::{self, Lying, Unread, lying},
    service::Stores,
};
use std::collections::VecDeque;
use virtbus_bus::{BusError, Entry};
use virtbus_wire::{
    Class, Code, JobError, JobId, JobState, Record, Timestamp,
    control::{JobList, ListJobs, OfJob},
    row::Row,
};

/// Rows of a list, when nothing else is said.
const LIMIT: usize = 100;

/// The job of this id. One that was published may have no record yet: nobody is told that there is
/// no such job, and sees it run afterwards.
pub(super) async fn find(stores: &Stores, id: &JobId) -> Result<Option<Entry<Record>>, BusError> {
    let found = stores.jobs.get_latest(id).await?;
    if found.is_some() {
        return Ok(found);
    }
    register(stores, |lying| lying.id() == id).await?;
    stores.jobs.get_latest(id).await
}

/// Makes the records of the messages that are meant and may have none. While core is behind, as in
/// a flood, there may be many to look through: whoever asks waits, up to the request's deadline.
pub(super) async fn register(
    stores: &Stores,
    is_meant: impl Fn(&Lying<'_>) -> bool,
) -> Result<(), BusError> {
    let unread = Unread::read(stores).await?;
    for class in Class::ALL {
        let stream = class.stream();
        let mut from = Some(unread.of(stream));
        while let Some(seq) = from {
            let page = stores.bus.browse(stream, ">", seq).await?;
            let now = stores.bus.now();
            let found = page.items.iter().filter_map(|stored| lying(stored, now));
            for lying in found.filter(&is_meant) {
                registrar::register(stores, lying).await?;
            }
            from = page.next;
        }
    }
    Ok(())
}

pub(super) async fn get(stores: &Stores, asked: OfJob) -> Result<Record, Failed> {
    let found = find(stores, &asked.id).await?;
    found
        .map(|entry| entry.value)
        .ok_or_else(|| not_found(&asked.id).into())
}

/// That no job has this id.
pub(super) fn not_found(id: &JobId) -> JobError {
    JobError::new(Code::JobNotFound, format!("no job has the id {id}")).with("job", id.as_str())
}

/// The newest jobs that match, those changed last first. The cursor is a revision: what follows
/// is older.
pub(super) async fn list(stores: &Stores, asked: ListJobs) -> Result<JobList, Failed> {
    let limit = asked
        .limit
        .map_or(LIMIT, |limit| usize::try_from(limit.get()).unwrap_or(LIMIT));
    let before: u64 = match &asked.cursor {
        Some(text) => text
            .parse()
            .map_err(|_| JobError::invalid_params("cursor", "is not one of ours"))?,
        None => u64::MAX,
    };
    let now = stores.bus.now();
    let mut newest = VecDeque::new();
    let mut are_more = false;
    let mut from = Some(1);
    while let Some(revision) = from.filter(|revision| *revision < before) {
        let page = stores.jobs.bucket().page(revision).await?;
        let older = page.items.into_iter().filter(|row| row.revision < before);
        for row in older {
            let Ok(Some(entry)) = row.entry else {
                continue;
            };
            if !matches(&asked, &entry.value, entry.written_at, now) {
                continue;
            }
            if newest.len() == limit {
                newest.pop_back();
                are_more = true;
            }
            newest.push_front(Row::new(&entry.value, entry.revision));
        }
        from = page.next;
    }
    let oldest = newest.back().map(|row: &Row| row.seq.to_string());
    Ok(JobList {
        cursor: oldest.filter(|_| are_more),
        jobs: newest.into(),
    })
}

fn matches(asked: &ListJobs, job: &Record, written_at: Timestamp, now: Timestamp) -> bool {
    let code = match &job.state {
        JobState::Failed(_, error) | JobState::Cancelled(_, Some(error)) => Some(error.code),
        JobState::Queued | JobState::Waiting(_) | JobState::Cancelled(_, None) => None,
        JobState::Running(_) | JobState::Cancelling(_) | JobState::Succeeded(..) => None,
    };
    let ended_by = job.state.ended().and_then(|ended| ended.by.as_ref());
    let owner = job.state.hold().map(|hold| &hold.owner).or(ended_by);
    let worker = owner.map(|owner| &owner.worker);
    let object = asked.object.as_ref().map(ToString::to_string);
    let has_label =
        |(name, value): (&String, &String)| job.labels.get(name).is_some_and(|has| has == value);
    (asked.state.is_empty() || asked.state.contains(&job.state.name()))
        && asked.queue.as_ref().is_none_or(|queue| *queue == job.queue)
        && asked.task.as_ref().is_none_or(|task| *task == job.task)
        && (asked.user.is_none() || asked.user == job.user)
        && (asked.tenant.is_none() || asked.tenant == job.tenant)
        && object.is_none_or(|object| job.objects.contains(&object))
        && asked.labels.iter().all(has_label)
        && (asked.worker.is_none() || asked.worker.as_ref() == worker)
        && (asked.code.is_none() || asked.code == code)
        && asked.since.is_none_or(|since| written_at >= since.at(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use virtbus_wire::{BootId, Envelope, Event, state::Cancel, state::Owner};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000 + seconds * 1_000)
    }

    fn queued() -> Record {
        let job = json!({"id": "j1", "task": "resize", "params": {"disk": "d7", "size": "1GiB"},
            "user": "alice", "tenant": "acme", "labels": {"class": "maths-1", "room": "2"}});
        let job = Envelope::decode(job.to_string().as_bytes()).unwrap();
        let queue: virtbus_wire::Queue = "storage.default.low".parse().unwrap();
        let mut record = Record::new("j1".parse().unwrap(), job, queue.into(), at(0));
        record.objects = vec!["disk.d7".to_owned(), "disk.d9".to_owned()];
        record
    }

    fn after(record: &Record, event: Event) -> Record {
        record.apply(event, at(0)).unwrap()
    }

    fn running() -> Record {
        let owner = Owner {
            worker: "st-1".parse().unwrap(),
            boot: BootId::from_u128(1),
        };
        let (seq, begin) = (1, true);
        after(&queued(), Event::Claim { owner, seq, begin })
    }

    fn failed() -> Record {
        let error = JobError::new(Code::DiskNotFound, "it's not there");
        after(&running(), Event::Fail(error))
    }

    /// Of a record that was written ten seconds ago.
    fn is_listed(job: &Record, asked: Value) -> bool {
        let asked: ListJobs = serde_json::from_value(asked).unwrap();
        matches(&asked, job, at(0), at(10))
    }

    #[test]
    fn each_filter_lists_what_it_names_and_nothing_else() {
        let job = failed();
        for (asked, other) in [
            (json!({"state": ["failed"]}), json!({"state": ["running"]})),
            (
                json!({"state": ["queued", "failed"]}),
                json!({"state": ["queued", "succeeded", "cancelled"]}),
            ),
            (
                json!({"queue": "storage.default.low"}),
                json!({"queue": "storage.default.high"}),
            ),
            (
                json!({"queue": "storage.default.low"}),
                json!({"queue": "core"}),
            ),
            (json!({"task": "resize"}), json!({"task": "convert"})),
            (json!({"user": "alice"}), json!({"user": "acme"})),
            (json!({"tenant": "acme"}), json!({"tenant": "alice"})),
            (json!({"object": "disk.d7"}), json!({"object": "disk.d8"})),
            (json!({"object": "disk.d9"}), json!({"object": "media.d7"})),
            (
                json!({"labels": {"class": "maths-1"}}),
                json!({"labels": {"class": "maths-2"}}),
            ),
            (
                json!({"labels": {"class": "maths-1", "room": "2"}}),
                json!({"labels": {"class": "maths-1", "room": "1"}}),
            ),
            (json!({"labels": {}}), json!({"labels": {"floor": ""}})),
            (json!({"worker": "st-1"}), json!({"worker": "st-2"})),
            (
                json!({"code": "disk.not_found"}),
                json!({"code": "disk.exists"}),
            ),
            (json!({"since": "10s"}), json!({"since": "9s"})),
            (json!({"since": at(0)}), json!({"since": at(1)})),
        ] {
            assert!(is_listed(&job, asked.clone()), "{asked}");
            assert!(!is_listed(&job, other.clone()), "{other}");
            // All that is asked for has to be so.
            let mut both = json!({"task": "resize", "user": "alice"});
            let fields = other.as_object().unwrap().clone();
            both.as_object_mut().unwrap().extend(fields);
            assert!(!is_listed(&job, both.clone()), "{both}");
        }
        assert!(is_listed(&job, json!({})));
    }

    #[test]
    fn a_job_has_a_worker_from_its_claim_on_and_a_code_when_it_ended_with_one() {
        let dropped = JobError::new(Code::JobDependencyUnmet, "it failed");
        let cancel = Cancel {
            by: None,
            at: at(0),
            force: false,
            reason: None,
        };
        for (job, worker, code) in [
            (queued(), false, None),
            (running(), true, None),
            (failed(), true, Some("disk.not_found")),
            (after(&queued(), Event::Cancel(cancel)), false, None),
            (
                after(&queued(), Event::Drop(dropped)),
                false,
                Some("job.dependency_unmet"),
            ),
        ] {
            let state = job.state.name();
            let listed = is_listed(&job, json!({"worker": "st-1"}));
            assert_eq!(listed, worker, "{state}");
            for asked in ["disk.not_found", "job.dependency_unmet"] {
                let listed = is_listed(&job, json!({"code": asked}));
                assert_eq!(listed, code == Some(asked), "{state} {asked}");
            }
        }
    }
}
