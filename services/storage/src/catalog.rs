//! What happens to a disk's record: pure steps from one record to the next.
//!
//! ```text
//!   (none) ── new ──▶ creating ── made ──▶ ready ◀── made, given back ── changing
//!                        │                  └─────────── taken ────────────▲ │
//!                        └── removed                                         ├─▶ trashed
//!                                                                            └─▶ deleted
//! ```
//! A step that begins a change (an *intent*) names the job and raises the epoch. The job's name
//! stays when the change is done: it's how a later claim of the job knows its own effect.

use virtbus_wire::{
    Code, DiskId, JobError, JobId, Label, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy, UseMode},
    envelope::IfInUse,
    record::Record,
    state::WaitReason,
    task::image::ImageFormat,
};
use virtbus_worker::perform::Stop;

/// What a new disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Where.
    pub pool: Label,
    /// The format of its file.
    pub format: ImageFormat,
    /// What a guest will see, in bytes.
    pub virtual_size: u64,
    /// The disk below.
    pub backing: Option<DiskId>,
}

/// The intent to make a disk.
#[must_use]
pub fn new(disk: NewDisk, job: &Record, now: Timestamp) -> DiskRecord {
    DiskRecord {
        pool: disk.pool,
        format: disk.format,
        virtual_size: Some(disk.virtual_size),
        actual_size: None,
        backing: disk.backing,
        children: Vec::new(),
        state: DiskState::Creating,
        snapshots: Vec::new(),
        in_use_by: Vec::new(),
        owner_job: Some(job.id.clone()),
        epoch: 1,
        tenant: job.tenant.clone(),
        user: job.user.clone(),
        sha256: None,
        last_used_at: None,
        updated_at: now,
    }
}

/// The intent to change a disk. One that can't be used anyway keeps its state, so that giving it
/// back needs no memory of it.
#[must_use]
pub fn taken(record: &DiskRecord, job: &JobId, now: Timestamp) -> DiskRecord {
    let is_ready = record.state == DiskState::Ready;
    DiskRecord {
        state: if is_ready {
            DiskState::Changing
        } else {
            record.state
        },
        owner_job: Some(job.clone()),
        epoch: record.epoch + 1,
        updated_at: now,
        ..record.clone()
    }
}

/// Whether a record still is what an intent made of it.
#[must_use]
pub fn is_same_intent(record: &DiskRecord, intent: &DiskRecord) -> bool {
    record.state == intent.state
        && record.owner_job == intent.owner_job
        && record.epoch == intent.epoch
}

/// The result of making or changing a disk; sizes in bytes, as measured.
#[must_use]
pub fn made(record: &DiskRecord, virtual_size: u64, actual: u64, now: Timestamp) -> DiskRecord {
    DiskRecord {
        state: DiskState::Ready,
        virtual_size: Some(virtual_size),
        actual_size: Some(actual),
        updated_at: now,
        ..record.clone()
    }
}

/// A disk that was to be changed, and wasn't.
#[must_use]
pub fn given_back(record: &DiskRecord, now: Timestamp) -> DiskRecord {
    let is_changing = record.state == DiskState::Changing;
    DiskRecord {
        state: if is_changing {
            DiskState::Ready
        } else {
            record.state
        },
        updated_at: now,
        ..record.clone()
    }
}

/// A disk whose bytes are no longer what they were.
#[must_use]
pub fn broken(record: &DiskRecord, now: Timestamp) -> DiskRecord {
    DiskRecord {
        state: DiskState::Broken,
        updated_at: now,
        ..record.clone()
    }
}

/// A disk whose file is in the trash. It's still a child of its backing.
#[must_use]
pub fn trashed(record: &DiskRecord, now: Timestamp) -> DiskRecord {
    DiskRecord {
        state: DiskState::Trashed,
        updated_at: now,
        ..record.clone()
    }
}

/// The tombstone of a disk: its size is what its end gave free.
#[must_use]
pub fn deleted(record: &DiskRecord, freed: u64, now: Timestamp) -> DiskRecord {
    DiskRecord {
        state: DiskState::Deleted,
        actual_size: Some(freed),
        backing: None,
        children: Vec::new(),
        snapshots: Vec::new(),
        in_use_by: Vec::new(),
        updated_at: now,
        ..record.clone()
    }
}

/// A disk that another one is on top of now; none if it was before.
#[must_use]
pub fn with_child(record: &DiskRecord, child: &DiskId, now: Timestamp) -> Option<DiskRecord> {
    if record.children.contains(child) {
        return None;
    }
    let mut record = record.clone();
    record.children.push(child.clone());
    record.updated_at = now;
    Some(record)
}

/// A disk without one of those on top of it; none if it wasn't there.
#[must_use]
pub fn without_child(record: &DiskRecord, child: &DiskId, now: Timestamp) -> Option<DiskRecord> {
    if !record.children.contains(child) {
        return None;
    }
    let mut record = record.clone();
    record.children.retain(|other| other != child);
    record.updated_at = now;
    Some(record)
}

/// What a job wants of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its bytes.
    Use,
    /// Its end: also of one that can't be used.
    Delete,
}

/// Lets a job have a disk, or says why not.
///
/// # Errors
/// `disk.not_found`, `disk.wrong_pool`, `disk.busy`, `disk.wrong_state`.
pub fn admit<'a>(
    id: &DiskId,
    record: Option<&'a DiskRecord>,
    pool: &Label,
    job: &JobId,
    purpose: Purpose,
) -> Result<&'a DiskRecord, JobError> {
    let refuse = |code, text: &str| JobError::new(code, text).with("disk", id.as_str());
    let not_found = || refuse(Code::DiskNotFound, "no disk has this id");
    let record = record.ok_or_else(not_found)?;
    if record.state == DiskState::Deleted {
        return Err(not_found());
    }
    if record.pool != *pool {
        return Err(refuse(Code::DiskWrongPool, "the disk lies in another pool")
            .with("pool", record.pool.as_str()));
    }
    let is_ours = record.owner_job.as_ref() == Some(job);
    match record.state {
        DiskState::Ready => Ok(record),
        DiskState::Changing if is_ours => Ok(record),
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            Err(refuse(Code::DiskBusy, "another job is changing the disk"))
        }
        DiskState::Archived | DiskState::Trashed | DiskState::Missing | DiskState::Broken
            if purpose == Purpose::Delete =>
        {
            Ok(record)
        }
        DiskState::Archived
        | DiskState::Trashed
        | DiskState::Missing
        | DiskState::Broken
        | DiskState::Deleted => {
            let text = format!("the disk is {}", record.state.as_str());
            Err(refuse(Code::DiskWrongState, &text).with("state", record.state.as_str()))
        }
    }
}

/// Lets a job make a disk of this id: nobody has or had it, or this job has begun to.
///
/// # Errors
/// `disk.exists`, `disk.busy`.
pub fn admit_new(id: &DiskId, record: Option<&DiskRecord>, job: &JobId) -> Result<(), JobError> {
    let Some(record) = record else { return Ok(()) };
    let is_ours = record.owner_job.as_ref() == Some(job);
    let (code, text) = match record.state {
        DiskState::Creating if is_ours => return Ok(()),
        DiskState::Creating | DiskState::Uploading => {
            (Code::DiskBusy, "another job is making a disk of this id")
        }
        DiskState::Ready
        | DiskState::Changing
        | DiskState::Archiving
        | DiskState::Archived
        | DiskState::Trashed
        | DiskState::Missing
        | DiskState::Broken
        | DiskState::Deleted => (Code::DiskExists, "the disk's id is taken"),
    };
    Err(JobError::new(code, text).with("disk", id.as_str()))
}

/// Lets a job write a disk only if nobody else uses it, and read it only if nobody writes it.
///
/// # Errors
/// `disk.in_use`, or a wait until it's free where the job says so.
pub fn admit_use(
    id: &DiskId,
    record: &DiskRecord,
    wants: UseMode,
    if_in_use: IfInUse,
    now: Timestamp,
) -> Result<(), Stop> {
    let conflicts = |user: &&InUseBy| match user {
        InUseBy::Domain { mode, .. } => wants == UseMode::Exclusive || *mode == UseMode::Exclusive,
        InUseBy::Job { expires_at, .. } => wants == UseMode::Exclusive && *expires_at > now,
    };
    let Some(user) = record.in_use_by.iter().find(conflicts) else {
        return Ok(());
    };
    let (holder, error) = match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } => (
            format!("domain.{domain}"),
            JobError::new(Code::DiskInUse, "a domain uses the disk")
                .with("domain", domain.as_str())
                .with("hypervisor", hypervisor.as_str()),
        ),
        InUseBy::Job { job, .. } => (
            format!("job.{job}"),
            JobError::new(Code::DiskInUse, "a download uses the disk").with("job", job.as_str()),
        ),
    };
    match if_in_use {
        IfInUse::Fail => Err(Stop::Failed(error.with("disk", id.as_str()))),
        IfInUse::Wait => Err(Stop::Wait(WaitReason::Lock {
            resource: format!("disk.{id}"),
            holder: Some(holder),
            since: None,
        })),
    }
}

/// Lets a job change a disk's bytes only if no other disk reads them.
///
/// # Errors
/// `disk.has_children`.
pub fn admit_change(id: &DiskId, record: &DiskRecord) -> Result<(), JobError> {
    if record.children.is_empty() {
        return Ok(());
    }
    let children: Vec<&str> = record.children.iter().map(DiskId::as_str).collect();
    let text = "other disks depend on what this one holds";
    Err(JobError::new(Code::DiskHasChildren, text)
        .with("disk", id.as_str())
        .with("children", children))
}

#[cfg(test)]
mod tests;
