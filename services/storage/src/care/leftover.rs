//! Intents in the catalogue whose jobs are over: put back within seconds, or the disk would be
//! busy for good. When that's to be done is decided in `wire`, by [`decide`].
//!
//! What changed in the catalogue is read every few seconds, from where the last look ended. What
//! is to be put back is put back by what the job's task does when it's given up, under the same
//! lock on the file. There's no claim behind it that would keep others out, so job and record are
//! looked at once more when the lock is held: somebody may have retried the job meanwhile, or put
//! the record back. One of the pool's workers does so at a time.

use super::CareError;
use crate::{
    blocking,
    catalog::Held,
    disks::{CatalogError, Disks, Media, Shelf},
    fence::Quiet,
    pool::{Name, PoolError, Root},
    store::Store,
    task::{Known, context::file_of, known_as},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, Entry, Jobs, Row};
use virtbus_daemon::Beat;
use virtbus_wire::{
    Class, Envelope, JobId, Label, Place, Priority, Queue, Record, Task, Timestamp, WorkerId,
    catalog::{DiskRecord, DiskState, MediaRecord},
    protocol::leftover::{Intent, Verdict, decide},
    state::Owner,
    task::Target,
};
use virtbus_worker::{Assignment, Confirm, Confirmed, Stop};

/// Between two looks. The first comes that long after the start: by then the process has its lease.
const LOOK: Duration = Duration::from_secs(10);
/// After how many looks everything is read from the beginning: a bucket that was restored counts
/// anew.
const LOOKS_MAX: u32 = 360;

/// What a job has begun, as far as the catalogue says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    of: Target,
    pool: Label,
    job: JobId,
    state: DiskState,
    is_in_use: bool,
    revision: u64,
    written_at: Timestamp,
}

/// What must be so while something is put back: nobody has written the job's record, nor that of
/// the disk or medium.
#[derive(Debug)]
pub(crate) struct Still {
    disks: Disks,
    media: Media,
    jobs: Jobs,
    job: JobId,
    job_revision: Option<u64>,
    of: Target,
    revision: u64,
}

impl Still {
    /// Whether it's so.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub(crate) async fn holds(&self) -> Result<bool, CatalogError> {
        let job = self.jobs.get_latest(&self.job).await?;
        if job.map(|entry| entry.revision) != self.job_revision {
            return Ok(false);
        }
        let revision = match &self.of {
            Target::Disk(id) => self.disks.get(id).await?.map(|disk| disk.revision),
            Target::Media(id) => self.media.get(id).await?.map(|medium| medium.revision),
        };
        Ok(revision == Some(self.revision))
    }
}

/// The job may have been retried meanwhile, and the record changed.
impl Confirm for Still {
    fn confirm(&self) -> Confirmed<'_> {
        Box::pin(async {
            match self.holds().await? {
                true => Ok(()),
                false => Err(Stop::Lost),
            }
        })
    }
}

/// An intent that is to be put back.
#[derive(Debug)]
pub(crate) struct Leftover {
    begun: Begun,
    /// The job's record; none if it's gone.
    record: Option<Record>,
    still: Still,
}

/// What is begun now, of one kind.
#[derive(Debug, Default)]
struct Followed {
    from: u64,
    begun: BTreeMap<String, Begun>,
}

impl Followed {
    /// Reads what was written since the last look.
    async fn go_on<R: Held>(&mut self, shelf: &Shelf<R>) -> Result<(), CatalogError> {
        let each = |row: Row<R>| match begun(&row) {
            Some(begun) => drop(self.begun.insert(row.key, begun)),
            None => drop(self.begun.remove(&row.key)),
        };
        self.from = shelf.each_from(self.from, each).await?;
        Ok(())
    }
}

fn begun<R: Held>(row: &Row<R>) -> Option<Begun> {
    let Ok(Some(entry)) = &row.entry else {
        return None;
    };
    let (id, head): (R::Id, _) = (row.key.parse().ok()?, entry.value.head());
    let job = head.owner_job.filter(|_| Intent::is_begun(head.state))?;
    Some(Begun {
        of: R::target(&id),
        pool: entry.value.pool().clone(),
        job,
        state: head.state,
        is_in_use: !entry.value.in_use_by().is_empty(),
        revision: entry.revision,
        written_at: entry.written_at,
    })
}

/// Looks after the intents in all pools of a service.
#[derive(Debug)]
pub struct Leftovers {
    store: Store,
    jobs: Jobs,
    worker: WorkerId,
    looks: u32,
    disks: Followed,
    media: Followed,
}

impl Leftovers {
    /// Nothing is looked at yet. What is put back is put back in this worker's name.
    #[must_use]
    pub fn new(store: Store, jobs: Jobs, worker: WorkerId) -> Self {
        Self {
            store,
            jobs,
            worker,
            looks: 0,
            disks: Followed::default(),
            media: Followed::default(),
        }
    }

    /// Looks until it's told to stop.
    pub async fn watch(mut self, stop: CancellationToken) {
        let mut looks = Beat::after(LOOK, stop);
        while looks.next().await {
            if let Err(error) = self.look(Timestamp::now()).await {
                let chain: &dyn std::error::Error = &error;
                tracing::warn!(error = chain, "what ended jobs began is put back later");
            }
        }
    }

    /// One look: what is to be put back now, is. What can't be is tried again by the next one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn look(&mut self, now: Timestamp) -> Result<(), CareError> {
        for leftover in self.due(now).await? {
            let (of, job) = (leftover.begun.of.clone(), leftover.begun.job.clone());
            if let Err(error) = self.put_back(leftover).await {
                let chain: &dyn std::error::Error = &error;
                tracing::warn!(%of, %job, error = chain,
                    "what an ended job began isn't put back now");
            }
        }
        Ok(())
    }

    /// What is to be put back now.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub(crate) async fn due(&mut self, now: Timestamp) -> Result<Vec<Leftover>, CareError> {
        if self.looks.is_multiple_of(LOOKS_MAX) {
            (self.disks, self.media) = <(Followed, Followed)>::default();
        }
        self.looks = self.looks.wrapping_add(1);
        self.disks.go_on::<DiskRecord>(&self.store.disks).await?;
        self.media.go_on::<MediaRecord>(&self.store.media).await?;
        let mut due = Vec::new();
        for begun in self.disks.begun.values().chain(self.media.begun.values()) {
            if self.store.pools().contains_key(&begun.pool) {
                due.extend(self.store.leftover(&self.jobs, begun, now).await?);
            }
        }
        Ok(due)
    }

    /// Puts one back, unless somebody was faster.
    ///
    /// # Errors
    /// When it can't be put back now.
    pub(crate) async fn put_back(&self, leftover: Leftover) -> Result<(), CareError> {
        // Who has no lease changes nothing.
        match self.store.leases.owner(&self.worker).await? {
            Some(owner) => self.store.put_back(leftover, owner).await,
            None => Ok(()),
        }
    }
}

impl Store {
    /// What was begun, if it's to be put back.
    pub(crate) async fn leftover(
        &self,
        jobs: &Jobs,
        begun: &Begun,
        now: Timestamp,
    ) -> Result<Option<Leftover>, BusError> {
        let intent = Intent {
            state: begun.state,
            is_in_use: begun.is_in_use,
            age: now.since(begun.written_at),
        };
        let entry: Option<Entry<Record>> = jobs.get_latest(&begun.job).await?;
        let record = entry.as_ref().map(|entry| &entry.value);
        Ok(match decide(intent, record, Class::Storage) {
            Verdict::Leave => None,
            Verdict::PutBack => Some(Leftover {
                begun: begun.clone(),
                still: Still {
                    disks: self.disks.clone(),
                    media: self.media.clone(),
                    jobs: jobs.clone(),
                    job: begun.job.clone(),
                    job_revision: entry.as_ref().map(|entry| entry.revision),
                    of: begun.of.clone(),
                    revision: begun.revision,
                },
                record: entry.map(|entry| entry.value),
            }),
        })
    }

    /// Puts it back, unless somebody was faster.
    pub(crate) async fn put_back(
        &self,
        Leftover {
            begun,
            record,
            still,
        }: Leftover,
        owner: Owner,
    ) -> Result<(), CareError> {
        let Some(pool) = self.pools().get(&begun.pool).cloned() else {
            return Ok(());
        };
        let root: Result<Root, PoolError> = blocking::look(move || pool.reach()).await;
        let root = root?;
        let Some(_lock) = Quiet::take(&root, Name::leftover()).await? else {
            return Ok(());
        };
        let claim = record.as_ref().map_or(0, |record| record.claim);
        if let Some(record) = record {
            let Ok(task) = Task::restore(Class::Storage, &record.task, &record.params) else {
                // Another version's, which knows what to do.
                return Ok(());
            };
            if !self
                .abandon_while(assign(record, task, &owner), &still)
                .await?
            {
                return Ok(());
            }
        }
        // The job isn't known any more, or its task sees to what it began as a whole, and this
        // came alone.
        if !self.is_made(&root, &begun).await?
            && still.holds().await?
            && let Some((record, task)) = by_state(&begun, claim)
        {
            self.abandon_while(assign(record, task, &owner), &still)
                .await?;
        }
        if !still.holds().await? {
            tracing::info!(of = %begun.of, job = %begun.job,
                "what a job that is over had begun was put back");
        }
        Ok(())
    }

    /// Whether what is being made is there all the same. Only its own task may judge that.
    async fn is_made(&self, root: &Root, begun: &Begun) -> Result<bool, CareError> {
        let Target::Disk(id) = &begun.of else {
            return Ok(false);
        };
        let disk = self.disks.get(id).await?;
        let disk = disk.filter(|disk| disk.record.state == DiskState::Creating);
        let Some(file) = disk.as_ref().map(file_of) else {
            return Ok(false);
        };
        let at = root.clone();
        let facts: Result<_, PoolError> = blocking::look(move || at.facts(&file)).await;
        let is_made = facts?.is_some();
        if is_made {
            tracing::error!(%id, job = %begun.job,
                "the job that began to make the disk is over, and the file is there: it's left");
        }
        Ok(is_made)
    }

    /// Gives a job up, as long as it's so. False if its task isn't known here.
    async fn abandon_while(&self, job: Assignment, still: &Still) -> Result<bool, CareError> {
        let Ok(Known::Steps(steps)) = known_as(self, &job, Some(still)) else {
            return Ok(false);
        };
        match steps.abandon().await {
            // Somebody was faster.
            Ok(()) | Err(Stop::Lost) => Ok(true),
            Err(Stop::Failed(error) | Stop::Earlier(error)) => Err(CareError::Busy(error)),
            Err(Stop::Stopped | Stop::Wait(_)) => Ok(true),
        }
    }
}

fn assign(record: Record, task: Task, owner: &Owner) -> Assignment {
    Assignment {
        id: record.id.clone(),
        claim: record.claim,
        owner: owner.clone(),
        task,
        record,
    }
}

/// A job of that id whose end puts back what is in such a state, by what lies in the pool.
fn by_state(begun: &Begun, claim: u64) -> Option<(Record, Task)> {
    let (name, params): (&str, Value) = match (&begun.of, begun.state) {
        (Target::Disk(disk), DiskState::Creating) => {
            ("create_disk", json!({ "disk": disk, "size": 1 << 20 }))
        }
        (Target::Disk(disk), DiskState::Changing) => {
            ("delete_disk", json!({ "disk": disk, "mode": "trash" }))
        }
        (Target::Disk(disk), DiskState::Archiving) => ("archive_disk", json!({ "disk": disk })),
        (Target::Media(media), DiskState::Creating) => {
            ("adopt_media", json!({ "media": media, "format": "iso" }))
        }
        (Target::Media(media), DiskState::Changing) => {
            ("delete_media", json!({ "media": media, "mode": "trash" }))
        }
        (
            Target::Disk(_) | Target::Media(_),
            DiskState::Uploading
            | DiskState::Ready
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken
            | DiskState::Deleted,
        ) => return None,
    };
    let task = Task::restore(Class::Storage, name, &params).ok()?;
    let envelope = json!({ "id": begun.job, "task": name, "params": params });
    let envelope: Envelope = serde_json::from_value(envelope).ok()?;
    let queue = Queue::Storage(Place::Pool(begun.pool.clone()), Priority::Default);
    let mut record = Record::new(begun.job.clone(), envelope, queue.into(), begun.written_at);
    record.claim = claim;
    Some((record, task))
}
