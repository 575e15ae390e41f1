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

pub use held::{Head, Held};

use crate::gate::Measured;

use virtbus_wire::{
    Code, DiskId, JobError, JobId, Label, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy, MediaRecord, UseMode},
    envelope::IfInUse,
    record::Record,
    state::WaitReason,
    task::image::{ImageFormat, MediaFormat},
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

/// The intent to change something. What can't be used anyway keeps its state, so that giving it
/// back needs no memory of it.
#[must_use]
pub fn taken<R: Held>(record: &R, job: &JobId, now: Timestamp) -> R {
    let head = record.head();
    let is_ready = head.state == DiskState::Ready;
    let state = if is_ready {
        DiskState::Changing
    } else {
        head.state
    };
    intent(record, state, job, now)
}

/// The intent to change something, shown as this state.
#[must_use]
pub fn intent<R: Held>(record: &R, state: DiskState, job: &JobId, now: Timestamp) -> R {
    let head = Head {
        state,
        owner_job: Some(job.clone()),
        epoch: record.head().epoch + 1,
    };
    record.with_head(head, now)
}

/// Whether a record still is what an intent made of it.
#[must_use]
pub fn is_same_intent<R: Held>(record: &R, intent: &R) -> bool {
    record.head() == intent.head()
}

/// The same thing in another state.
#[must_use]
pub fn in_state<R: Held>(record: &R, state: DiskState, now: Timestamp) -> R {
    let head = Head {
        state,
        ..record.head()
    };
    record.with_head(head, now)
}

/// The result of making or changing a disk, as it was measured.
#[must_use]
pub fn made(record: &DiskRecord, measured: Measured, now: Timestamp) -> DiskRecord {
    DiskRecord {
        state: DiskState::Ready,
        virtual_size: Some(measured.virtual_size),
        actual_size: Some(measured.actual_size),
        updated_at: now,
        ..record.clone()
    }
}

/// A disk whose file holds these snapshots. One with a name that's no id of ours isn't listed.
#[must_use]
pub fn with_snapshots<'a>(record: DiskRecord, names: impl Iterator<Item = &'a str>) -> DiskRecord {
    DiskRecord {
        snapshots: names.filter_map(|name| name.parse().ok()).collect(),
        ..record
    }
}

/// A disk that stands on another one now, or on none, in a file of this format.
#[must_use]
pub fn on_top_of(record: DiskRecord, backing: Option<&DiskId>, format: ImageFormat) -> DiskRecord {
    DiskRecord {
        backing: backing.cloned(),
        format,
        ..record
    }
}

/// A disk whose file isn't there.
#[must_use]
pub fn missing<R: Held>(record: &R, now: Timestamp) -> R {
    in_state(record, DiskState::Missing, now)
}

/// The intent to register a medium.
#[must_use]
pub fn new_medium(
    pool: Label,
    format: MediaFormat,
    virtual_size: u64,
    job: &Record,
    now: Timestamp,
) -> MediaRecord {
    MediaRecord {
        pool,
        format,
        virtual_size: Some(virtual_size),
        actual_size: None,
        state: DiskState::Creating,
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

/// What was to be changed, and wasn't.
#[must_use]
pub fn given_back<R: Held>(record: &R, now: Timestamp) -> R {
    let state = record.head().state;
    let is_changing = state == DiskState::Changing;
    let state = if is_changing { DiskState::Ready } else { state };
    in_state(record, state, now)
}

/// A disk whose bytes a job has left between two states.
#[must_use]
pub fn broken<R: Held>(record: &R, now: Timestamp) -> R {
    in_state(record, DiskState::Broken, now)
}

/// A disk that was found damaged: that is no job's doing.
#[must_use]
pub fn damaged(record: &DiskRecord, now: Timestamp) -> DiskRecord {
    DiskRecord {
        owner_job: None,
        ..broken(record, now)
    }
}

/// Something whose file is in the trash. A disk is still a child of its backing.
#[must_use]
pub fn trashed<R: Held>(record: &R, now: Timestamp) -> R {
    in_state(record, DiskState::Trashed, now)
}

/// The tombstone of what is gone: its size is what its end gave free.
#[must_use]
pub fn deleted<R: Held>(record: &R, freed: u64, now: Timestamp) -> R {
    record.tombstone(freed, now)
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

/// What a job wants of a disk or a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its bytes.
    Use,
    /// Its end: also of one that can't be used.
    Delete,
    /// Its way out of the trash.
    Restore,
    /// Its way out of the archive.
    Unarchive,
    /// To be looked at: also of what can't be used.
    Check,
}

impl Purpose {
    /// Whether it's what something in this state, of no other job, is for.
    fn takes(self, state: DiskState) -> bool {
        match state {
            DiskState::Ready => matches!(self, Self::Use | Self::Delete | Self::Check),
            DiskState::Archived => matches!(self, Self::Delete | Self::Unarchive),
            DiskState::Trashed => matches!(self, Self::Delete | Self::Restore),
            DiskState::Missing | DiskState::Broken => matches!(self, Self::Delete | Self::Check),
            DiskState::Changing
            | DiskState::Archiving
            | DiskState::Creating
            | DiskState::Uploading
            | DiskState::Deleted => false,
        }
    }
}

/// Lets a job have a disk or a medium, or says why not.
///
/// # Errors
/// `disk.not_found`, `media.not_found`, `disk.wrong_pool`, `disk.busy`, `disk.wrong_state`.
pub fn admit<'a, R: Held>(
    id: &R::Id,
    record: Option<&'a R>,
    pool: &Label,
    job: &JobId,
    purpose: Purpose,
) -> Result<&'a R, JobError> {
    let word = R::WORD;
    let refuse = |code, text: &str| JobError::new(code, text).with(R::KEY, id.as_ref());
    let not_found = || refuse(R::NOT_FOUND, &format!("no {word} has this id"));
    let record = record.ok_or_else(not_found)?;
    let head = record.head();
    if head.state == DiskState::Deleted {
        return Err(not_found());
    }
    if record.pool() != pool {
        let text = format!("the {word} lies in another pool");
        let refusal = refuse(Code::DiskWrongPool, &text);
        return Err(refusal.with("pool", record.pool().as_str()));
    }
    let is_ours = head.owner_job.as_ref() == Some(job);
    match head.state {
        DiskState::Changing | DiskState::Archiving if is_ours => Ok(record),
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            let text = format!("another job is changing the {word}");
            Err(refuse(Code::DiskBusy, &text))
        }
        DiskState::Ready
        | DiskState::Archived
        | DiskState::Trashed
        | DiskState::Missing
        | DiskState::Broken
        | DiskState::Deleted => {
            let state = head.state;
            if purpose.takes(state) {
                return Ok(record);
            }
            let text = format!("the {word} is {}", state.as_str());
            Err(refuse(Code::DiskWrongState, &text).with("state", state.as_str()))
        }
    }
}

/// Lets a job make a disk or a medium of this id: nobody has or had it, or this job has begun to.
///
/// # Errors
/// `disk.exists`, `media.exists`, `disk.busy`.
pub fn admit_new<R: Held>(id: &R::Id, record: Option<&R>, job: &JobId) -> Result<(), JobError> {
    let Some(head) = record.map(Held::head) else {
        return Ok(());
    };
    let is_ours = head.owner_job.as_ref() == Some(job);
    let word = R::WORD;
    let (code, text) = match head.state {
        DiskState::Creating if is_ours => return Ok(()),
        DiskState::Creating | DiskState::Uploading => (
            Code::DiskBusy,
            format!("another job is making a {word} of this id"),
        ),
        DiskState::Ready
        | DiskState::Changing
        | DiskState::Archiving
        | DiskState::Archived
        | DiskState::Trashed
        | DiskState::Missing
        | DiskState::Broken
        | DiskState::Deleted => (R::EXISTS, format!("the {word}'s id is taken")),
    };
    Err(JobError::new(code, text).with(R::KEY, id.as_ref()))
}

/// Lets a job write something only if nobody else uses it, and read it only if nobody writes it.
///
/// # Errors
/// `disk.in_use`, `media.in_use`, or a wait until it's free where the job says so.
pub fn admit_use<R: Held>(
    id: &R::Id,
    record: &R,
    wants: UseMode,
    if_in_use: IfInUse,
    now: Timestamp,
) -> Result<(), Stop> {
    let conflicts = |user: &&InUseBy| match user {
        InUseBy::Domain { mode, .. } => wants == UseMode::Exclusive || *mode == UseMode::Exclusive,
        InUseBy::Job { expires_at, .. } => wants == UseMode::Exclusive && *expires_at > now,
    };
    let Some(user) = record.in_use_by().iter().find(conflicts) else {
        return Ok(());
    };
    let word = R::WORD;
    let (holder, error) = match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } => (
            format!("domain.{domain}"),
            JobError::new(R::IN_USE, format!("a domain uses the {word}"))
                .with("domain", domain.as_str())
                .with("hypervisor", hypervisor.as_str()),
        ),
        InUseBy::Job { job, .. } => (
            format!("job.{job}"),
            JobError::new(R::IN_USE, format!("a download uses the {word}"))
                .with("job", job.as_str()),
        ),
    };
    match if_in_use {
        IfInUse::Fail => Err(Stop::Failed(error.with(R::KEY, id.as_ref()))),
        IfInUse::Wait => Err(Stop::Wait(WaitReason::Lock {
            resource: R::target(id).to_string(),
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

mod held;
#[cfg(test)]
mod tests;
