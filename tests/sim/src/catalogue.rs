//! What the catalogue says of a disk: an intent before each effect, the result after it, each by
//! compare-and-set.

use virtbus_bus::{Bucket, Bus, Entry, WriteError};
use virtbus_wire::{
    Code, JobError, JobId, Timestamp,
    catalog::{DiskRecord, DiskState},
    task::image::ImageFormat,
};

/// The bucket.
pub const DISKS: &str = "disks";

/// The catalogue, as one process sees it.
#[derive(Debug, Clone)]
pub struct Catalogue {
    bus: Bus,
    records: Bucket<DiskRecord>,
}

/// A disk that is there from the beginning.
#[must_use]
pub fn ready(size: u64, now: Timestamp) -> DiskRecord {
    DiskRecord {
        pool: "p".parse().expect("a pool's name"),
        format: ImageFormat::Qcow2,
        virtual_size: Some(size),
        actual_size: None,
        backing: None,
        children: Vec::new(),
        state: DiskState::Ready,
        snapshots: Vec::new(),
        in_use_by: Vec::new(),
        owner_job: None,
        epoch: 0,
        tenant: None,
        user: None,
        sha256: None,
        last_used_at: None,
        updated_at: now,
    }
}

/// What became of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It's there, of this size.
    Ready(u64),
    /// It's gone, for good.
    Deleted,
    /// It was never there.
    Nothing,
}

fn failed(error: WriteError) -> JobError {
    match error {
        WriteError::Conflict(_) => JobError::new(Code::DiskBusy, "another job is changing it"),
        WriteError::Bus(error) => JobError::internal(error.to_string()),
    }
}

impl Catalogue {
    /// Nothing is asked of the server yet.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self {
            bus: bus.clone(),
            records: Bucket::new(bus, DISKS),
        }
    }

    /// All of it.
    pub(crate) fn records(&self) -> &Bucket<DiskRecord> {
        &self.records
    }

    /// A disk's record.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn get(&self, disk: &str) -> Result<Option<Entry<DiskRecord>>, JobError> {
        let found = self.records.get_latest(disk).await;
        found.map_err(|error| JobError::internal(error.to_string()))
    }

    /// The record that says that this job changes the disk, or makes it.
    ///
    /// # Errors
    /// `disk.busy` when it was changed since it was read.
    pub async fn intend(
        &self,
        disk: &str,
        seen: Option<&Entry<DiskRecord>>,
        state: DiskState,
        job: &JobId,
    ) -> Result<Entry<DiskRecord>, JobError> {
        let now = self.bus.now();
        let before = seen.map_or_else(|| ready(1, now), |entry| entry.value.clone());
        let record = DiskRecord {
            state,
            owner_job: Some(job.clone()),
            epoch: before.epoch + 1,
            updated_at: now,
            ..before
        };
        let written = match seen {
            Some(entry) => self.records.update(disk, &record, entry.revision).await,
            None => self.records.create(disk, &record).await,
        };
        Ok(Entry {
            value: record,
            revision: written.map_err(failed)?,
            written_at: now,
        })
    }

    /// The result on top of an intent. False when a newer claim has the disk.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn finish(
        &self,
        disk: &str,
        intent: &Entry<DiskRecord>,
        outcome: Outcome,
    ) -> Result<bool, JobError> {
        let (state, virtual_size) = match outcome {
            Outcome::Ready(size) => (DiskState::Ready, Some(size)),
            Outcome::Deleted => (DiskState::Deleted, None),
            Outcome::Nothing => return self.remove(disk, intent).await,
        };
        let record = DiskRecord {
            state,
            virtual_size,
            updated_at: self.bus.now(),
            ..intent.value.clone()
        };
        let written = self.records.update(disk, &record, intent.revision).await;
        is_ours(written.map(|_| ()))
    }

    async fn remove(&self, disk: &str, intent: &Entry<DiskRecord>) -> Result<bool, JobError> {
        is_ours(self.records.remove(disk, intent.revision).await)
    }
}

fn is_ours(written: Result<(), WriteError>) -> Result<bool, JobError> {
    match written {
        Ok(()) => Ok(true),
        Err(WriteError::Conflict(_)) => Ok(false),
        Err(error @ WriteError::Bus(_)) => Err(failed(error)),
    }
}
