//! The buckets `disks` and `media`: reading records and chains, writing them by compare-and-set.

use crate::catalog::{self, Held};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use thiserror::Error;
use virtbus_bus::{Bucket, Bus, BusError, Entry, Row, WriteError};
use virtbus_wire::{
    Code, DiskId, JobError, JobId, Label, Timestamp,
    catalog::{DiskRecord, DiskState, MediaRecord},
    task::Target,
};
use virtbus_worker::perform::Stop;

/// How often a write is tried again because another writer came first.
const WRITES_MAX: u32 = 32;
/// The most disks of a tree, or of a chain that is there: each takes a lock.
const TREE_MAX: usize = 1_024;

/// The catalogue's records of one kind.
#[derive(Debug, Clone)]
pub struct Shelf<R> {
    records: Bucket<R>,
}

/// The catalogue's disks.
pub type Disks = Shelf<DiskRecord>;
/// The catalogue's media.
pub type Media = Shelf<MediaRecord>;

/// A disk or a medium as it was read or written.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept<R: Held> {
    /// Its id.
    pub id: R::Id,
    /// Its record.
    pub record: R,
    /// The record's revision.
    pub revision: u64,
}

/// A disk as it was read or written.
pub type Disk = Kept<DiskRecord>;
/// A medium as it was read or written.
pub type Medium = Kept<MediaRecord>;

/// Why the catalogue couldn't be read or written.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// The server gave no usable answer.
    #[error("use the catalogue")]
    Bus(#[from] BusError),
    /// Somebody else changed the record. With the locks held, only a newer claim can have.
    #[error("write the record of {0}: it was changed by somebody else")]
    Conflict(Target),
    /// Disks lie on top of each other in a circle, or too many.
    #[error("follow the disks below or above {0}")]
    Endless(DiskId),
}

impl From<CatalogError> for JobError {
    fn from(error: CatalogError) -> Self {
        let chain: &dyn std::error::Error = &error;
        tracing::warn!(error = chain, "the catalogue can't be used");
        match error {
            CatalogError::Bus(_) => Self::internal("the catalogue doesn't answer"),
            CatalogError::Conflict(Target::Disk(id)) => {
                Self::new(Code::DiskBusy, "another job is changing the disk")
                    .with("disk", id.as_str())
            }
            CatalogError::Conflict(Target::Media(id)) => {
                Self::new(Code::DiskBusy, "another job is changing the medium")
                    .with("media", id.as_str())
            }
            CatalogError::Endless(id) => {
                Self::new(Code::PoolUnsupported, "the chain of disks is too long")
                    .with("disk", id.as_str())
            }
        }
    }
}

impl From<CatalogError> for Stop {
    fn from(error: CatalogError) -> Self {
        Self::Failed(error.into())
    }
}

impl<R: Held> Shelf<R> {
    /// The bucket. Nothing is asked of the server yet.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self {
            records: Bucket::new(bus, R::BUCKET),
        }
    }

    /// The newest record of one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn get(&self, id: &R::Id) -> Result<Option<Kept<R>>, CatalogError> {
        let entry = self.records.get_latest(id.as_ref()).await?;
        Ok(entry.map(
            |Entry {
                 value, revision, ..
             }| Kept {
                id: id.clone(),
                record: value,
                revision,
            },
        ))
    }

    /// All that a pool has. Records that can't be read are logged and left out.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn of_pool(&self, pool: &Label) -> Result<Vec<Kept<R>>, CatalogError> {
        let mut kept = Vec::new();
        let each = |Row { key, entry, .. }: Row<R>| match (key.parse(), entry) {
            (Ok(id), Ok(Some(entry))) if entry.value.pool() == pool => kept.push(Kept {
                id,
                record: entry.value,
                revision: entry.revision,
            }),
            (Ok(_), Err(error)) => tracing::error!(%error, "a record is left out"),
            (Ok(_) | Err(_), _) => {}
        };
        self.each_from(1, each).await?;
        Ok(kept)
    }

    /// What was written at this revision or later, as any replica has it; with the revision to
    /// read on from.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn each_from(
        &self,
        from: u64,
        each: impl FnMut(Row<R>),
    ) -> Result<u64, CatalogError> {
        Ok(self.records.each_from(from, each).await?)
    }

    /// Makes a record.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] when there is one.
    pub async fn create(&self, id: &R::Id, record: R) -> Result<Kept<R>, CatalogError> {
        let written = self.records.create(id.as_ref(), &record).await;
        done(id, record, written)
    }

    /// Replaces the record of this revision.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] when it has another one by now.
    pub async fn update(&self, kept: &Kept<R>, record: R) -> Result<Kept<R>, CatalogError> {
        let written = self
            .records
            .update(kept.id.as_ref(), &record, kept.revision)
            .await;
        done(&kept.id, record, written)
    }

    /// Removes the record of this revision.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] when it has another one by now.
    pub async fn remove(&self, kept: &Kept<R>) -> Result<(), CatalogError> {
        let removed = self.records.remove(kept.id.as_ref(), kept.revision).await;
        removed.map_err(|error| lost::<R>(&kept.id, error))
    }

    /// Writes an intent: the record says that the job changes it.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] when the record was changed since it was read.
    pub async fn take(&self, kept: &Kept<R>, job: &JobId) -> Result<Kept<R>, CatalogError> {
        let record = catalog::taken(&kept.record, job, Timestamp::now());
        self.update(kept, record).await
    }

    /// Writes an intent that shows as this state.
    ///
    /// # Errors
    /// As [`Shelf::take`].
    pub async fn take_as(
        &self,
        kept: &Kept<R>,
        state: DiskState,
        job: &JobId,
    ) -> Result<Kept<R>, CatalogError> {
        let record = catalog::intent(&kept.record, state, job, Timestamp::now());
        self.update(kept, record).await
    }

    /// Writes the result on top of an intent, also if something else of the record was written
    /// meanwhile. None = the intent isn't the newest any more, so a newer claim has it.
    ///
    /// # Errors
    /// When the server doesn't answer, or others write all the time.
    pub async fn finish(
        &self,
        intent: &Kept<R>,
        step: impl Fn(&R) -> R,
    ) -> Result<Option<Kept<R>>, CatalogError> {
        let mut latest = intent.clone();
        for _ in 0..WRITES_MAX {
            match self.update(&latest, step(&latest.record)).await {
                Err(CatalogError::Conflict(_)) => {}
                other => return other.map(Some),
            }
            match self.get(&intent.id).await? {
                Some(kept) if catalog::is_same_intent(&kept.record, &intent.record) => {
                    latest = kept;
                }
                Some(_) | None => return Ok(None),
            }
        }
        Err(CatalogError::Conflict(R::target(&intent.id)))
    }
}

impl Disks {
    /// The disks below one, from the top down. One without a record ends the chain.
    ///
    /// # Errors
    /// [`CatalogError::Endless`], or when the server doesn't answer.
    pub async fn below(&self, disk: &Disk) -> Result<Vec<Disk>, CatalogError> {
        let mut chain: Vec<Disk> = Vec::new();
        let mut next = disk.record.backing.clone();
        while let Some(id) = next {
            let is_circle = id == disk.id || chain.iter().any(|below| below.id == id);
            if is_circle || chain.len() >= TREE_MAX {
                return Err(CatalogError::Endless(disk.id.clone()));
            }
            let Some(below) = self.get(&id).await? else {
                break;
            };
            next = below.record.backing.clone();
            chain.push(below);
        }
        Ok(chain)
    }

    /// The disks above one, each before the one it's on top of.
    ///
    /// # Errors
    /// As [`Disks::below`].
    pub async fn above(&self, disk: &Disk) -> Result<Vec<Disk>, CatalogError> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::from([disk.id.clone()]);
        let mut next: VecDeque<DiskId> = disk.record.children.iter().cloned().collect();
        while let Some(id) = next.pop_front() {
            if !seen.insert(id.clone()) || found.len() >= TREE_MAX {
                return Err(CatalogError::Endless(disk.id.clone()));
            }
            if let Some(above) = self.get(&id).await? {
                next.extend(above.record.children.iter().cloned());
                found.push(above);
            }
        }
        found.reverse();
        Ok(found)
    }

    /// How many disks lie on top of each other above one, where it's most.
    ///
    /// # Errors
    /// As [`Disks::below`].
    pub async fn height(&self, disk: &Disk) -> Result<usize, CatalogError> {
        let mut heights = BTreeMap::from([(disk.id.clone(), 0)]);
        for above in self.above(disk).await?.into_iter().rev() {
            let backing = above.record.backing.as_ref();
            let below = backing.and_then(|id| heights.get(id)).unwrap_or(&0);
            heights.insert(above.id, below + 1);
        }
        Ok(heights.into_values().max().unwrap_or_default())
    }

    /// Puts a disk on top of another one. Idempotent.
    ///
    /// # Errors
    /// When the server doesn't answer, or others write all the time.
    pub async fn add_child(&self, parent: &DiskId, child: &DiskId) -> Result<(), CatalogError> {
        let step = |record: &DiskRecord| catalog::with_child(record, child, Timestamp::now());
        self.change(parent, step).await
    }

    /// Takes a disk off another one. Idempotent.
    ///
    /// # Errors
    /// As [`Disks::add_child`].
    pub async fn drop_child(&self, parent: &DiskId, child: &DiskId) -> Result<(), CatalogError> {
        let step = |record: &DiskRecord| catalog::without_child(record, child, Timestamp::now());
        self.change(parent, step).await
    }

    /// Changes whatever record is there, however often others come first. None = nothing to do.
    ///
    /// # Errors
    /// When the server doesn't answer, or others write all the time.
    pub async fn change(
        &self,
        id: &DiskId,
        step: impl Fn(&DiskRecord) -> Option<DiskRecord>,
    ) -> Result<(), CatalogError> {
        for _ in 0..WRITES_MAX {
            let Some(disk) = self.get(id).await? else {
                return Ok(());
            };
            let Some(record) = step(&disk.record) else {
                return Ok(());
            };
            match self.update(&disk, record).await {
                Err(CatalogError::Conflict(_)) => {}
                other => return other.map(|_| ()),
            }
        }
        Err(CatalogError::Conflict(id.into()))
    }
}

fn done<R: Held>(
    id: &R::Id,
    record: R,
    written: Result<u64, WriteError>,
) -> Result<Kept<R>, CatalogError> {
    match written {
        Ok(revision) => Ok(Kept {
            id: id.clone(),
            record,
            revision,
        }),
        Err(error) => Err(lost::<R>(id, error)),
    }
}

fn lost<R: Held>(id: &R::Id, error: WriteError) -> CatalogError {
    match error {
        WriteError::Conflict(_) => CatalogError::Conflict(R::target(id)),
        WriteError::Bus(error) => CatalogError::Bus(error),
    }
}
