//! The catalogue as a hypervisor service needs it: disks and media that domains use, and domains.
//!
//! A running domain holds its disks by `in_use_by`: set before it starts, cleared by what its own
//! host sees. Every write is a compare-and-set.

use crate::users::{freed, held};
use virtbus_bus::{Bucket, Bus, BusError, Slot, WriteError};
use virtbus_wire::{
    Code, DiskId, DomainId, JobError, Label, MediaId, Object, Timestamp,
    catalog::{
        CHAIN_MAX, DiskRecord, DomainRecord, HypervisorRecord, MediaRecord, UseMode, WorkerRecord,
    },
};

/// How often a write is tried again because another writer came first.
const WRITES_MAX: u32 = 32;

/// The buckets.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    pub(crate) disks: Bucket<DiskRecord>,
    pub(crate) media: Bucket<MediaRecord>,
    pub(crate) domains: Bucket<DomainRecord>,
    pub(crate) hypervisors: Bucket<HypervisorRecord>,
    pub(crate) workers: Bucket<WorkerRecord>,
}

/// What a domain holds of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hold {
    /// A disk.
    Disk(DiskId, UseMode),
    /// A medium; always shared.
    Media(MediaId),
}

impl Hold {
    /// What is held.
    pub(crate) fn of(&self) -> Object {
        match self {
            Self::Disk(id, _) => Object::from(id),
            Self::Media(id) => Object::from(id),
        }
    }
}

/// Who holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) domain: DomainId,
    pub(crate) hypervisor: Label,
}

/// A disk as it was read.
pub(crate) type Disk = (DiskId, DiskRecord);

/// Why the catalogue couldn't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogError {
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Others changed it all the time.
    #[error("the record {0} is changed all the time")]
    Contended(String),
    /// What the job wants can't be.
    #[error(transparent)]
    Refused(#[from] JobError),
}

impl From<CatalogError> for JobError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Refused(error) => error,
            CatalogError::Bus(_) | CatalogError::Contended(_) => {
                tracing::warn!(%error, "the catalogue can't be used");
                Self::internal("the catalogue doesn't answer")
            }
        }
    }
}

impl From<CatalogError> for virtbus_worker::Stop {
    fn from(error: CatalogError) -> Self {
        Self::Failed(error.into())
    }
}

impl Catalog {
    /// The buckets. Nothing is asked of the server yet.
    pub(crate) fn new(bus: &Bus) -> Self {
        Self {
            disks: Bucket::new(bus, "disks"),
            media: Bucket::new(bus, "media"),
            domains: Bucket::new(bus, "domains"),
            hypervisors: Bucket::new(bus, "hypervisors"),
            workers: Bucket::new(bus, "workers"),
        }
    }

    /// A disk and all below it, from the top down; empty when there is no such disk.
    pub(crate) async fn chain(&self, id: &DiskId) -> Result<Vec<Disk>, CatalogError> {
        let mut chain: Vec<Disk> = Vec::new();
        let mut next = Some(id.clone());
        while let Some(id) = next.take() {
            let is_circle = chain.iter().any(|(other, _)| *other == id);
            if is_circle || chain.len() >= CHAIN_MAX {
                let text = "the chain of disks is too long";
                let error = JobError::new(Code::PoolUnsupported, text);
                return Err(error.with("disk", id.as_str()).into());
            }
            let Some(entry) = self.disks.get_latest(id.as_str()).await? else {
                if let Some((top, _)) = chain.first() {
                    let text = "a disk below isn't in the catalogue";
                    let error = JobError::new(Code::DiskWrongState, text);
                    return Err(error.with("disk", top.as_str()).into());
                }
                break;
            };
            next = entry.value.backing.clone();
            chain.push((id, entry.value));
        }
        Ok(chain)
    }

    /// A domain's record, to be written back.
    pub(crate) async fn domain(&self, id: &DomainId) -> Result<Slot<DomainRecord>, CatalogError> {
        Ok(self.domains.slot(id.as_str()).await?)
    }

    /// Writes a domain's record over the one that was read.
    ///
    /// # Errors
    /// When somebody else wrote it meanwhile.
    pub(crate) async fn write_domain(
        &self,
        id: &DomainId,
        record: DomainRecord,
        revision: u64,
    ) -> Result<Slot<DomainRecord>, CatalogError> {
        match self.domains.update(id.as_str(), &record, revision).await {
            Ok(revision) => Ok(Slot {
                value: Some(record),
                revision,
            }),
            Err(WriteError::Conflict(key)) => Err(CatalogError::Contended(key)),
            Err(WriteError::Bus(error)) => Err(error.into()),
        }
    }

    /// Holds things for a domain: all, or those before the first that can't be held.
    pub(crate) async fn hold(&self, holder: &Holder, all: &[Hold]) -> Result<(), CatalogError> {
        for hold in all {
            match hold {
                Hold::Disk(id, mode) => {
                    let missing = || not_found(Code::DiskNotFound, "disk", id.as_str());
                    let step = |record: &DiskRecord| {
                        let users = held(&record.in_use_by, holder, *mode, now(), &disk_error(id))?;
                        Ok(users.map(|in_use_by| DiskRecord {
                            in_use_by,
                            ..record.used()
                        }))
                    };
                    change(&self.disks, id.as_str(), missing, step).await?;
                }
                Hold::Media(id) => {
                    let missing = || not_found(Code::MediaNotFound, "media", id.as_str());
                    let step = |record: &MediaRecord| {
                        let (mode, error) = (UseMode::Shared, media_error(id));
                        let users = held(&record.in_use_by, holder, mode, now(), &error)?;
                        Ok(users.map(|in_use_by| MediaRecord {
                            in_use_by,
                            ..record.used()
                        }))
                    };
                    change(&self.media, id.as_str(), missing, step).await?;
                }
            }
        }
        Ok(())
    }

    /// Lets a domain hold none of these any longer.
    pub(crate) async fn free(&self, holder: &Holder, all: &[Hold]) -> Result<(), CatalogError> {
        for hold in all {
            match hold {
                Hold::Disk(id, _) => self.free_disk(holder, id).await?,
                Hold::Media(id) => self.free_media(holder, id).await?,
            }
        }
        Ok(())
    }

    /// Lets a domain hold a disk no longer; nothing when it didn't.
    pub(crate) async fn free_disk(&self, holder: &Holder, id: &DiskId) -> Result<(), CatalogError> {
        let step = |record: &DiskRecord| {
            let users = freed(&record.in_use_by, holder);
            Ok(users.map(|in_use_by| DiskRecord {
                in_use_by,
                ..record.used()
            }))
        };
        let gone = || JobError::internal(GONE);
        ignore_gone(change(&self.disks, id.as_str(), gone, step).await)
    }

    /// Lets a domain hold a medium no longer; nothing when it didn't.
    pub(crate) async fn free_media(
        &self,
        holder: &Holder,
        id: &MediaId,
    ) -> Result<(), CatalogError> {
        let step = |record: &MediaRecord| {
            let users = freed(&record.in_use_by, holder);
            Ok(users.map(|in_use_by| MediaRecord {
                in_use_by,
                ..record.used()
            }))
        };
        let gone = || JobError::internal(GONE);
        ignore_gone(change(&self.media, id.as_str(), gone, step).await)
    }

    /// Changes a disk's record, however often others come first. None of `step` = nothing to do.
    pub(crate) async fn change_disk(
        &self,
        id: &DiskId,
        step: impl Fn(&DiskRecord) -> Result<Option<DiskRecord>, JobError>,
    ) -> Result<(), CatalogError> {
        let missing = || not_found(Code::DiskNotFound, "disk", id.as_str());
        change(&self.disks, id.as_str(), missing, step).await
    }

    /// A disk's virtual size is another one now, in bytes.
    pub(crate) async fn resized(&self, id: &DiskId, virtual_size: u64) -> Result<(), CatalogError> {
        let step = |record: &DiskRecord| {
            let known = record.virtual_size == Some(virtual_size);
            Ok((!known).then(|| DiskRecord {
                virtual_size: Some(virtual_size),
                updated_at: Timestamp::now(),
                ..record.clone()
            }))
        };
        self.change_disk(id, step).await
    }

    /// Changes a domain's record, however often others come first. None of `step` = nothing to do.
    pub(crate) async fn change_domain(
        &self,
        id: &DomainId,
        step: impl Fn(&DomainRecord) -> Result<Option<DomainRecord>, JobError>,
    ) -> Result<(), CatalogError> {
        let missing = || not_found(Code::DomainNotFound, "domain", id.as_str());
        change(&self.domains, id.as_str(), missing, step).await
    }
}

/// A record that isn't there has nothing to free.
const GONE: &str = "the record is gone";

fn ignore_gone(changed: Result<(), CatalogError>) -> Result<(), CatalogError> {
    match changed {
        Err(CatalogError::Refused(error)) if error.message == GONE => Ok(()),
        other => other,
    }
}

/// A record that somebody used just now.
trait Used: Clone {
    fn used(&self) -> Self;
}

impl Used for DiskRecord {
    fn used(&self) -> Self {
        Self {
            last_used_at: Some(now()),
            updated_at: now(),
            ..self.clone()
        }
    }
}

impl Used for MediaRecord {
    fn used(&self) -> Self {
        Self {
            last_used_at: Some(now()),
            updated_at: now(),
            ..self.clone()
        }
    }
}

async fn change<T>(
    bucket: &Bucket<T>,
    key: &str,
    missing: impl Fn() -> JobError,
    step: impl Fn(&T) -> Result<Option<T>, JobError>,
) -> Result<(), CatalogError>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    for _ in 0..WRITES_MAX {
        let Some(entry) = bucket.get_latest(key).await? else {
            return Err(missing().into());
        };
        let Some(record) = step(&entry.value)? else {
            return Ok(());
        };
        match bucket.update(key, &record, entry.revision).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict(_)) => {}
            Err(WriteError::Bus(error)) => return Err(error.into()),
        }
    }
    Err(CatalogError::Contended(key.to_owned()))
}

fn now() -> Timestamp {
    Timestamp::now()
}

pub(crate) fn not_found(code: Code, what: &str, id: &str) -> JobError {
    let text = format!("no {what} has this id");
    JobError::new(code, text).with(what, id)
}

fn disk_error(id: &DiskId) -> JobError {
    JobError::new(Code::DiskInUse, "the disk is in use").with("disk", id.as_str())
}

fn media_error(id: &MediaId) -> JobError {
    JobError::new(Code::MediaInUse, "the medium is in use").with("media", id.as_str())
}
