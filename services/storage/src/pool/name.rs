//! The names of a pool's files: made of ids and nothing else, so that no message can name a path.
//!
//! ```text
//! disks/<id>.<format>                    a disk
//! media/<id>.<format>                    a medium
//! disks/.<job>.<claim>.<id>.part         what a claim is making, in the folder it's made for
//! trash/disk.<id>.<job>.<claim>          a deleted disk, by the claim that deleted it
//! locks/disk.<id>                        the lock on whatever changes the disk in place
//! locks/care                             the lock of whoever cares for the pool
//! locks/leftover                         the lock of whoever puts back what ended jobs began
//! adopt/<name>                           what somebody put there to be adopted
//! space/<token>                          the room that one living service has set aside
//! space/lock                             the lock of whoever counts that
//! ```
//! Media have `media.` where disks have `disk.`. The pool's archive has the same folders; a disk in
//! it is `disks/<id>.<format>.zst`. Neither ids nor jobs have a dot in them, so each name reads
//! back in one way only.

use std::fmt;
use virtbus_wire::{
    DiskId, JobId, MediaId, Object,
    task::{
        Target,
        image::{ImageFormat, MediaFormat},
        value::FileName,
    },
};

/// A folder of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Folder {
    /// Disks, and what is being made for it.
    Disks,
    /// Media, and what is being made for it.
    Media,
    /// What was deleted.
    Trash,
    /// Locks.
    Locks,
    /// What somebody put there to be adopted.
    Adopt,
    /// The room that is set aside.
    Space,
}

impl Folder {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Disks,
        Self::Media,
        Self::Trash,
        Self::Locks,
        Self::Adopt,
        Self::Space,
    ];

    /// The name beneath the pool's root.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disks => "disks",
            Self::Media => "media",
            Self::Trash => "trash",
            Self::Locks => "locks",
            Self::Adopt => "adopt",
            Self::Space => "space",
        }
    }
}

/// One file of a pool: a folder and a bare name in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    folder: Folder,
    file: String,
}

impl Name {
    /// A disk.
    #[must_use]
    pub fn disk(id: &DiskId, format: ImageFormat) -> Self {
        Self {
            folder: Folder::Disks,
            file: format!("{id}.{format}"),
        }
    }

    /// A medium.
    #[must_use]
    pub fn media(id: &MediaId, format: MediaFormat) -> Self {
        Self {
            folder: Folder::Media,
            file: format!("{id}.{format}"),
        }
    }

    /// A disk in the archive.
    #[must_use]
    pub fn archived(id: &DiskId, format: ImageFormat) -> Self {
        Self {
            folder: Folder::Disks,
            file: format!("{id}.{format}.zst"),
        }
    }

    /// A file that is to be adopted.
    #[must_use]
    pub fn adopted(file: &FileName) -> Self {
        Self {
            folder: Folder::Adopt,
            file: file.to_string(),
        }
    }

    /// What this claim of the job is making, to be a disk or a medium.
    #[must_use]
    pub fn part(job: &JobId, claim: u64, of: impl Into<Target>) -> Self {
        let (folder, id) = match of.into() {
            Target::Disk(id) => (Folder::Disks, id.to_string()),
            Target::Media(id) => (Folder::Media, id.to_string()),
        };
        Self {
            folder,
            file: format!(".{job}.{claim}.{id}.part"),
        }
    }

    /// What this claim of the job deleted.
    #[must_use]
    pub fn trash(of: impl Into<Target>, job: &JobId, claim: u64) -> Self {
        Self {
            folder: Folder::Trash,
            file: format!("{}.{job}.{claim}", of.into()),
        }
    }

    /// The lock of a disk or a medium.
    #[must_use]
    pub fn lock(of: impl Into<Target>) -> Self {
        Self {
            folder: Folder::Locks,
            file: of.into().to_string(),
        }
    }

    /// The lock of whoever cares for the pool.
    #[must_use]
    pub fn care() -> Self {
        Self {
            folder: Folder::Locks,
            file: "care".to_owned(),
        }
    }

    /// The lock of whoever puts back what jobs that are over had begun.
    #[must_use]
    pub fn leftover() -> Self {
        Self {
            folder: Folder::Locks,
            file: "leftover".to_owned(),
        }
    }

    /// The room that the service with this token has set aside.
    #[must_use]
    pub fn promises(token: &str) -> Self {
        Self {
            folder: Folder::Space,
            file: token.to_owned(),
        }
    }

    /// The lock of whoever counts the room that all have set aside.
    #[must_use]
    pub fn promises_lock() -> Self {
        Self::promises("lock")
    }

    /// A name that was listed in a folder.
    pub(crate) fn listed(folder: Folder, file: String) -> Self {
        Self { folder, file }
    }

    /// The folder it lies in.
    #[must_use]
    pub fn folder(&self) -> Folder {
        self.folder
    }

    /// The bare name: what an overlay calls its backing.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Who is making it, if it's something being made.
    #[must_use]
    pub fn as_part(&self) -> Option<(JobId, u64)> {
        let inner = self.file.strip_prefix('.')?.strip_suffix(".part")?;
        let mut tokens = inner.split('.');
        let (job, claim) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let id: DiskId = tokens.next()?.parse().ok()?;
        (tokens.next().is_none() && !id.as_str().is_empty()).then_some((job, claim))
    }

    /// What it was and who deleted it, if it's something deleted.
    #[must_use]
    pub fn as_trash(&self) -> Option<(Target, JobId, u64)> {
        if self.folder != Folder::Trash {
            return None;
        }
        let mut tokens = self.file.rsplitn(3, '.');
        let claim = tokens.next()?.parse().ok()?;
        let job = tokens.next()?.parse().ok()?;
        let target = match tokens.next()?.parse().ok()? {
            Object::Disk(id) => Target::Disk(id),
            Object::Media(id) => Target::Media(id),
            Object::Domain(_) => return None,
        };
        Some((target, job, claim))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.folder.as_str(), self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The longest name that common file systems take, in bytes.
    const FILE_NAME_BYTES_MAX: usize = 255;

    #[test]
    fn names_are_those_of_the_contract() {
        let (disk, job): (DiskId, JobId) = ("d7".parse().unwrap(), "j-1".parse().unwrap());
        let names = [
            Name::disk(&disk, ImageFormat::Qcow2),
            Name::part(&job, 3, &disk),
            Name::trash(&disk, &job, 3),
            Name::lock(&disk),
        ];
        assert_eq!(
            names.map(|name| name.to_string()),
            [
                "disks/d7.qcow2",
                "disks/.j-1.3.d7.part",
                "trash/disk.d7.j-1.3",
                "locks/disk.d7"
            ]
        );
    }

    proptest! {
        #[test]
        fn names_of_claims_read_back_and_fit_a_file_system(
            disk in "[A-Za-z0-9][A-Za-z0-9_-]{0,63}",
            job in "[A-Za-z0-9][A-Za-z0-9_-]{0,119}",
            claim in any::<u64>(),
        ) {
            let (disk, job): (DiskId, JobId) = (disk.parse().unwrap(), job.parse().unwrap());
            let part = Name::part(&job, claim, &disk);
            let trash = Name::trash(&disk, &job, claim);
            prop_assert!(part.file().len() <= FILE_NAME_BYTES_MAX);
            prop_assert!(trash.file().len() <= FILE_NAME_BYTES_MAX);
            prop_assert_eq!(part.as_part(), Some((job.clone(), claim)));
            prop_assert_eq!(trash.as_trash(), Some(((&disk).into(), job, claim)));
        }

        #[test]
        fn no_other_name_is_taken_for_one(file in "[.a-z0-9]{0,20}") {
            let name = Name::listed(Folder::Disks, file.clone());
            if name.as_part().is_some() {
                prop_assert!(file.starts_with('.') && file.ends_with(".part"));
            }
            prop_assert_eq!(name.as_trash(), None);
        }
    }
}
