//! What the records of disks and of media have in common.

use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, str::FromStr};
use virtbus_wire::{
    Code, DiskId, JobId, Label, MediaId, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy, MediaRecord},
    task::Target,
};

/// The record of something that a job can have: of a disk or a medium.
pub trait Held:
    Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned + Send + Sync
{
    /// Its key.
    type Id: Clone + PartialEq + fmt::Debug + fmt::Display + AsRef<str> + FromStr + Send + Sync;

    /// The bucket it's in.
    const BUCKET: &'static str;
    /// The code when there is no such thing.
    const NOT_FOUND: Code;
    /// The code when its id is taken.
    const EXISTS: Code;
    /// The code when somebody else uses it.
    const IN_USE: Code;
    /// The word for it, for people.
    const WORD: &'static str;
    /// The field of an error's detail that names it.
    const KEY: &'static str;

    /// The thing of this id.
    fn target(id: &Self::Id) -> Target;
    /// The pool its file is in.
    fn pool(&self) -> &Label;
    /// When it was written.
    fn written(&self) -> Timestamp;
    /// Who holds it without a lock.
    fn in_use_by(&self) -> &[InUseBy];
    /// Whether it can be used, and who changes it.
    fn head(&self) -> Head;
    /// The same thing with another head, as written now.
    #[must_use]
    fn with_head(&self, head: Head, now: Timestamp) -> Self;
    /// What is left of it when it's gone: `freed` bytes are free again.
    #[must_use]
    fn tombstone(&self, freed: u64, now: Timestamp) -> Self;
}

/// Whether something can be used, and who changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whether it can be used.
    pub state: DiskState,
    /// The job that changes it, or did last.
    pub owner_job: Option<JobId>,
    /// One more with each intent to change it.
    pub epoch: u64,
}

macro_rules! held {
    ($record:ty, $id:ty) => {
        type Id = $id;

        fn target(id: &$id) -> Target {
            id.into()
        }

        fn pool(&self) -> &Label {
            &self.pool
        }

        fn written(&self) -> Timestamp {
            self.updated_at
        }

        fn in_use_by(&self) -> &[InUseBy] {
            &self.in_use_by
        }

        fn head(&self) -> Head {
            Head {
                state: self.state,
                owner_job: self.owner_job.clone(),
                epoch: self.epoch,
            }
        }

        fn with_head(&self, head: Head, now: Timestamp) -> Self {
            Self {
                state: head.state,
                owner_job: head.owner_job,
                epoch: head.epoch,
                updated_at: now,
                ..self.clone()
            }
        }
    };
}

impl Held for DiskRecord {
    const BUCKET: &'static str = "disks";
    const NOT_FOUND: Code = Code::DiskNotFound;
    const EXISTS: Code = Code::DiskExists;
    const IN_USE: Code = Code::DiskInUse;
    const WORD: &'static str = "disk";
    const KEY: &'static str = "disk";

    held!(DiskRecord, DiskId);

    fn tombstone(&self, freed: u64, now: Timestamp) -> Self {
        Self {
            state: DiskState::Deleted,
            actual_size: Some(freed),
            backing: None,
            children: Vec::new(),
            snapshots: Vec::new(),
            in_use_by: Vec::new(),
            updated_at: now,
            ..self.clone()
        }
    }
}

impl Held for MediaRecord {
    const BUCKET: &'static str = "media";
    const NOT_FOUND: Code = Code::MediaNotFound;
    const EXISTS: Code = Code::MediaExists;
    const IN_USE: Code = Code::MediaInUse;
    const WORD: &'static str = "medium";
    const KEY: &'static str = "media";

    held!(MediaRecord, MediaId);

    fn tombstone(&self, freed: u64, now: Timestamp) -> Self {
        Self {
            state: DiskState::Deleted,
            actual_size: Some(freed),
            in_use_by: Vec::new(),
            updated_at: now,
            ..self.clone()
        }
    }
}
