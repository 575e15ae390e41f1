//! What the catalogue says that jobs have begun, and what is to be done with it.

use crate::{catalog::Hold, domains::Domains, users::domains_on};
use std::{collections::BTreeMap, time::Duration};
use virtbus_bus::{Bucket, BusError, Entry, Row};
use virtbus_wire::{
    Class, DiskId, DomainId, JobId, JobState, Label, MediaId, Object, Record, Timestamp,
    catalog::{DiskRecord, DiskState, DomainRecord, UseMode},
    protocol::{
        leftover::{Intent, Verdict, decide},
        reconcile::AGE_MIN,
    },
};

/// What the catalogue says that a job has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) job: JobId,
    what: What,
    pub(super) revision: u64,
    pub(super) written_at: Timestamp,
}

/// What kind of record says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A disk's.
    Disk(DiskState),
    /// That of a domain that is off.
    Domain,
}

/// What is known of the catalogue.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Up to which revision each bucket was read.
    disks: u64,
    media: u64,
    domains: u64,
    /// By the object's name what was begun there.
    pub(super) begun: BTreeMap<Object, Begun>,
    /// What is held in domains' names.
    pub(super) held: BTreeMap<DomainId, Vec<Hold>>,
}

/// What is to be done with something begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    PutBack,
    /// Its job may be going on, or it's too young to tell.
    Later,
    /// It's as it should be, or another service's.
    Leave,
}

impl Begun {
    /// By its job's record, so long after it was written.
    pub(super) fn verdict(&self, job: &Record, age: Duration) -> Next {
        if age < AGE_MIN || !job.state.name().is_final() {
            return Next::Later;
        }
        let is_left = match self.what {
            What::Disk(state) => {
                let intent = Intent {
                    state,
                    is_in_use: false,
                    age,
                };
                decide(intent, Some(job), Class::Hypervisor) == Verdict::PutBack
            }
            // Without an effect it would have put the record back itself, or removed it.
            What::Domain => {
                let queue = job.queue.queue();
                queue.is_some_and(|queue| queue.class() == Class::Hypervisor)
                    && job.task == "start_domain"
                    && matches!(job.state, JobState::Failed(..) | JobState::Cancelled(..))
            }
        };
        match is_left {
            true => Next::PutBack,
            false => Next::Leave,
        }
    }
}

impl Known {
    /// Reads what was written since the last look.
    pub(super) async fn read(&mut self, domains: &Domains) -> Result<(), BusError> {
        let catalog = &domains.catalog;
        let (here, pool) = (&domains.settings.hypervisor, &domains.settings.pool);
        for row in rows(&catalog.domains, &mut self.domains).await? {
            self.domain(&row, pool);
        }
        for row in rows(&catalog.disks, &mut self.disks).await? {
            let Ok(id) = row.key.parse::<DiskId>() else {
                continue;
            };
            self.disk(&id, &row, pool);
            if let Ok(Some(entry)) = &row.entry {
                let hold = Hold::Disk(id, UseMode::Shared);
                self.hold(domains_on(here, &entry.value.in_use_by), &hold);
            }
        }
        for row in rows(&catalog.media, &mut self.media).await? {
            if let (Ok(id), Ok(Some(entry))) = (row.key.parse::<MediaId>(), &row.entry) {
                let hold = Hold::Media(id);
                self.hold(domains_on(here, &entry.value.in_use_by), &hold);
            }
        }
        Ok(())
    }

    fn domain(&mut self, row: &Row<DomainRecord>, pool: &Label) {
        let Ok(id) = row.key.parse::<DomainId>() else {
            return;
        };
        let of = Object::Domain(id);
        self.begun.remove(&of);
        if let Ok(Some(entry)) = &row.entry
            && !entry.value.state.is_on()
            && let Some(job) = &entry.value.owner_job
            && entry.value.pool == *pool
        {
            let begun = begun(job, What::Domain, entry);
            self.begun.insert(of, begun);
        }
    }

    fn disk(&mut self, id: &DiskId, row: &Row<DiskRecord>, pool: &Label) {
        let of = Object::Disk(id.clone());
        self.begun.remove(&of);
        if let Ok(Some(entry)) = &row.entry
            && Intent::is_begun(entry.value.state)
            && entry.value.pool == *pool
            && let Some(job) = &entry.value.owner_job
        {
            let begun = begun(job, What::Disk(entry.value.state), entry);
            self.begun.insert(of, begun);
        }
    }

    fn hold<'a>(&mut self, domains: impl Iterator<Item = &'a DomainId>, hold: &Hold) {
        for domain in domains {
            self.held
                .entry(domain.clone())
                .or_default()
                .push(hold.clone());
        }
    }
}

fn begun<T>(job: &JobId, what: What, entry: &Entry<T>) -> Begun {
    Begun {
        job: job.clone(),
        what,
        revision: entry.revision,
        written_at: entry.written_at,
    }
}

/// What was written to a bucket from a revision on, which becomes the next one to read from.
async fn rows<T>(bucket: &Bucket<T>, from: &mut u64) -> Result<Vec<Row<T>>, BusError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut rows = Vec::new();
    *from = bucket.each_from(*from, |row| rows.push(row)).await?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use virtbus_wire::{Envelope, Event, Queue, state::Cancel};

    fn job(queue: &str, task: &str) -> Record {
        let envelope = json!({"id": "j1", "task": task, "params": {}});
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        let queue: Queue = queue.parse().unwrap();
        Record::new(
            "j1".parse().unwrap(),
            envelope,
            queue.into(),
            Timestamp::now(),
        )
    }

    fn cancelled(queue: &str, task: &str) -> Record {
        let cancel = Cancel {
            by: None,
            at: Timestamp::now(),
            force: false,
            reason: None,
        };
        let over = job(queue, task).apply(Event::Cancel(cancel), Timestamp::now());
        over.unwrap()
    }

    fn verdict(what: What, age: Duration, job: &Record) -> Next {
        let begun = Begun {
            job: job.id.clone(),
            what,
            revision: 1,
            written_at: Timestamp::now(),
        };
        begun.verdict(job, age)
    }

    const ONE: &str = "hypervisor.hv-1.default";
    const TAKEN: What = What::Disk(DiskState::Changing);

    #[test]
    fn what_an_ended_job_of_a_hypervisor_began_is_put_back() {
        let over = cancelled(ONE, "resize");
        assert_eq!(verdict(TAKEN, AGE_MIN, &over), Next::PutBack);
        let over = cancelled(ONE, "start_domain");
        assert_eq!(verdict(What::Domain, AGE_MIN, &over), Next::PutBack);
    }

    #[test]
    fn what_may_go_on_is_looked_at_again() {
        for what in [TAKEN, What::Domain] {
            let task = "start_domain";
            let young = AGE_MIN - Duration::from_millis(1);
            assert_eq!(verdict(what, young, &cancelled(ONE, task)), Next::Later);
            assert_eq!(verdict(what, AGE_MIN, &job(ONE, task)), Next::Later);
        }
    }

    #[test]
    fn what_other_services_or_other_tasks_wrote_is_left() {
        let storage = cancelled("storage.default.low", "resize");
        assert_eq!(verdict(TAKEN, AGE_MIN, &storage), Next::Leave);
        // A domain that was stopped has its stop's name in its record.
        let stop = cancelled(ONE, "stop_domain");
        assert_eq!(verdict(What::Domain, AGE_MIN, &stop), Next::Leave);
    }
}
