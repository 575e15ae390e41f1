//! The locks, each looked at once per sweep, and not each job that waits for one: a thousand may
//! stand in one line.

use super::{
    index::{Doing, Index},
    look::{self, Known},
    refill::refill,
};
use crate::service::{Stores, per_job};
use std::collections::{HashMap, HashSet};
use virtbus_bus::{Bucket, BusError, Entry, WriteError, browse::PAGE_MAX, locks};
use virtbus_wire::{
    JobId, Timestamp,
    protocol::{
        lock::{Lock, Mode, WAKE_PATIENCE},
        reconcile::{AGE_MIN, tidy},
    },
};

/// Removes from every lock what can't be held or waited for any more, and looks at those who may
/// be next: somebody may have failed to wake them, or they overslept.
pub(super) async fn all(stores: &Stores, index: &mut Index) -> Result<(), BusError> {
    let records: Bucket<Lock> = Bucket::new(&stores.bus, locks::BUCKET);
    let now = stores.bus.now();
    let found = records.all().await?;
    let locks: HashMap<&str, &Lock> = found
        .iter()
        .map(|(name, entry)| (name.as_str(), &entry.value))
        .collect();
    let mut due: Vec<JobId> = Vec::new();
    for resource in index.lines.locks() {
        let lock = locks.get(resource.as_str());
        let line = lock.map(|lock| &lock.waiters);
        let line: HashSet<&JobId> = line.into_iter().flatten().map(|one| &one.job).collect();
        // Those beyond the list have their turn when it's filled up.
        let named = index
            .lines
            .before(resource, lock.and_then(|lock| lock.beyond));
        due.extend(named.filter(|job| !line.contains(*job)).cloned());
    }
    for (name, entry) in &found {
        if now.since(entry.written_at) >= AGE_MIN {
            due.extend(see_to(stores, &records, name, entry, now).await?);
        }
    }
    // One after the other: those of one lock would only get in each other's way.
    for job in due.iter().filter(|job| waits(index, job, now)) {
        look::look(stores, job, Known::default()).await?;
    }
    for (name, _) in found
        .iter()
        .filter(|(_, entry)| entry.value.beyond.is_some())
    {
        refill(stores, index, name).await?;
    }
    Ok(())
}

/// Whether a job has been waiting for a lock for long enough.
fn waits(index: &Index, job: &JobId, now: Timestamp) -> bool {
    let note = index.note(job);
    note.is_some_and(|note| {
        let is_old = now.since(note.written_at) >= AGE_MIN;
        is_old && matches!(note.doing, Doing::ForLock(_))
    })
}

/// Tidies a lock, and says who may be next.
async fn see_to(
    stores: &Stores,
    records: &Bucket<Lock>,
    name: &str,
    entry: &Entry<Lock>,
    now: Timestamp,
) -> Result<Vec<JobId>, BusError> {
    let Some(tidied) = per_job(tidied(stores, &entry.value).await)? else {
        return Ok(Vec::new());
    };
    let limit = stores.locks.limits().of_lock(name).await?;
    let Some(tidied) = tidied else {
        return Ok(candidates(&entry.value, limit, now));
    };
    let next = tidied.next_in_line(limit);
    let tidied = tidied.woken(&next, now);
    let written = if tidied.is_unused() {
        records.remove(name, entry.revision).await
    } else {
        let written = records.update(name, &tidied, entry.revision).await;
        written.map(|_| ())
    };
    match written {
        Ok(()) => tracing::info!(lock = name, "a lock was tidied"),
        // Somebody is at it: it's in good hands.
        Err(WriteError::Conflict(_)) => return Ok(Vec::new()),
        Err(WriteError::Bus(error)) => return Err(error),
    }
    Ok(next)
}

/// Who may be next: the first in line, and with it those who share with it; and who stands behind
/// those that were woken and didn't come.
fn candidates(lock: &Lock, limit: Option<u32>, now: Timestamp) -> Vec<JobId> {
    let mut next = Vec::new();
    let is_full = limit
        .is_some_and(|limit| usize::try_from(limit).is_ok_and(|limit| lock.shared.len() >= limit));
    if lock.exclusive.is_some() || is_full {
        return next;
    }
    let mut line = lock.waiters.iter().peekable();
    while let Some(waiter) = line.next() {
        next.push(waiter.job.clone());
        let overslept = waiter
            .woken_at
            .is_some_and(|at| now.since(at) > WAKE_PATIENCE);
        let shares = waiter.mode == Mode::Shared
            && line.peek().is_some_and(|other| other.mode == Mode::Shared);
        if !overslept && !shares {
            break;
        }
    }
    next
}

/// The lock as it should be, if it isn't. A record that can't be read is an error: its job may
/// well hold the lock.
async fn tidied(stores: &Stores, lock: &Lock) -> Result<Option<Lock>, BusError> {
    let jobs: Vec<&JobId> = lock.jobs().collect();
    let mut states = HashMap::new();
    for jobs in jobs.chunks(PAGE_MAX) {
        let keys: Vec<&str> = jobs.iter().map(|job| job.as_str()).collect();
        for row in stores.jobs.bucket().of_keys(&keys).await? {
            if let Some(found) = row.entry? {
                let record = found.value;
                states.insert(record.id, record.state.name());
            }
        }
    }
    if tidy(lock, |job| states.get(job).copied()) == *lock {
        return Ok(None);
    }
    // A replica may be late: only the leader's word takes a lock away.
    for job in jobs {
        let found = stores.jobs.get_latest(job).await?.map(|entry| entry.value);
        match found {
            Some(record) => states.insert(job.clone(), record.state.name()),
            None => states.remove(job),
        };
    }
    let tidied = tidy(lock, |job| states.get(job).copied());
    Ok((tidied != *lock).then_some(tidied))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use virtbus_wire::protocol::lock::{Holder, Waiter};

    #[test]
    fn of_a_thousand_in_line_only_those_are_looked_at_who_may_be_next() {
        let woken: Timestamp = "2026-06-01T00:00:00.000Z".parse().unwrap();
        let now = woken.after(WAKE_PATIENCE + Duration::from_secs(1));
        let waiter = |job: &str, mode, woken_at| Waiter {
            job: job.parse().unwrap(),
            ticket: 1,
            mode,
            woken_at,
        };
        let (alone, shared) = (Mode::Exclusive, Mode::Shared);
        for (waiters, expected) in [
            (vec![("a", alone, None), ("b", alone, None)], vec!["a"]),
            (
                vec![
                    ("a", alone, Some(woken)),
                    ("b", alone, None),
                    ("c", alone, None),
                ],
                vec!["a", "b"],
            ),
            (
                vec![("a", shared, None), ("b", shared, None), ("c", alone, None)],
                vec!["a", "b"],
            ),
        ] {
            let waiters = waiters
                .into_iter()
                .map(|(job, mode, woken_at)| waiter(job, mode, woken_at));
            let mut lock = Lock {
                waiters: waiters.collect(),
                ..Lock::default()
            };
            let found = candidates(&lock, None, now);
            let found: Vec<&str> = found.iter().map(JobId::as_str).collect();
            assert_eq!(found, expected);
            lock.exclusive = Some(Holder {
                job: "h".parse().unwrap(),
                claim: 1,
                since: None,
            });
            assert!(candidates(&lock, None, now).is_empty());
        }
    }
}
