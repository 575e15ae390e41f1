//! The pool: files, the locks of the operating system, and what happened to them. It counts
//! effects, and knows nothing of jobs but the names they bring.

use crate::broker::stream::Ms;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A change of the pool that can't be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// When, by the server's clock.
    pub at: Ms,
    /// Whose.
    pub job: String,
    /// Which claim of it.
    pub claim: u64,
    /// The disk.
    pub disk: String,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    made_by: Option<String>,
    size: u64,
}

/// The pool.
#[derive(Debug, Default)]
pub struct Pool {
    files: BTreeMap<String, File>,
    trash: BTreeMap<String, String>,
    parts: BTreeSet<(String, u64)>,
    locked: BTreeMap<String, (u64, String)>,
    locks: u64,
    /// Everything that can't be taken back, in order.
    pub effects: Vec<Effect>,
}

/// The pool, shared by all hosts.
#[derive(Debug, Clone, Default)]
pub struct Disks(Arc<Mutex<Pool>>);

/// The operating system's lock on a disk: gone with its process at the latest.
#[derive(Debug)]
pub struct OsLock {
    disks: Disks,
    disk: String,
    number: u64,
}

impl Drop for OsLock {
    fn drop(&mut self) {
        let mut pool = self.disks.pool();
        let holder = pool.locked.get(&self.disk);
        if holder.is_some_and(|(number, _)| *number == self.number) {
            pool.locked.remove(&self.disk);
        }
    }
}

impl Disks {
    /// The pool itself.
    pub fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk that is there from the beginning.
    pub fn add(&self, disk: &str) {
        let file = File {
            made_by: None,
            size: 1,
        };
        self.pool().files.insert(disk.to_owned(), file);
    }

    /// Begins a file under the claim's own name.
    pub fn begin(&self, job: &str, claim: u64) {
        self.pool().parts.insert((job.to_owned(), claim));
    }

    /// Removes what the claims before this one began, or this one's own too.
    pub fn sweep(&self, job: &str, below: u64) {
        let mut pool = self.pool();
        pool.parts
            .retain(|(of, claim)| of != job || *claim >= below);
    }

    /// Gives the claim's file its own name, unless that is taken: false when there is no file.
    pub fn rename(&self, at: Ms, job: &str, claim: u64, disk: &str) -> bool {
        let mut pool = self.pool();
        let is_taken = pool.files.contains_key(disk);
        if is_taken || !pool.parts.remove(&(job.to_owned(), claim)) {
            return false;
        }
        let file = File {
            made_by: Some(job.to_owned()),
            size: 1,
        };
        pool.files.insert(disk.to_owned(), file);
        pool.happened(at, job, claim, disk);
        true
    }

    /// Whether this job made the file.
    #[must_use]
    pub fn is_made_by(&self, disk: &str, job: &str) -> bool {
        let pool = self.pool();
        let file = pool.files.get(disk);
        file.is_some_and(|file| file.made_by.as_deref() == Some(job))
    }

    /// Takes the operating system's lock.
    ///
    /// # Errors
    /// The job that has it.
    pub fn lock(&self, disk: &str, job: &str) -> Result<OsLock, String> {
        let mut pool = self.pool();
        if let Some((_, holder)) = pool.locked.get(disk) {
            return Err(holder.clone());
        }
        pool.locks += 1;
        let number = pool.locks;
        let holder = (number, job.to_owned());
        pool.locked.insert(disk.to_owned(), holder);
        Ok(OsLock {
            disks: self.clone(),
            disk: disk.to_owned(),
            number,
        })
    }

    /// Changes a disk in place. Nothing happens where it's so already; false when there is none.
    pub fn resize(&self, at: Ms, job: &str, claim: u64, disk: &str, size: u64) -> bool {
        let mut pool = self.pool();
        let Some(file) = pool.files.get_mut(disk) else {
            return false;
        };
        if file.size != size {
            file.size = size;
            pool.happened(at, job, claim, disk);
        }
        true
    }

    /// A disk's size; none if it isn't there.
    #[must_use]
    pub fn size(&self, disk: &str) -> Option<u64> {
        self.pool().files.get(disk).map(|file| file.size)
    }

    /// All disks and their sizes.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<String, u64> {
        let pool = self.pool();
        let sizes = pool
            .files
            .iter()
            .map(|(disk, file)| (disk.clone(), file.size));
        sizes.collect()
    }

    /// Puts a disk into the trash; nothing happens where it's gone already.
    pub fn trash(&self, at: Ms, job: &str, claim: u64, disk: &str) {
        let mut pool = self.pool();
        if pool.files.remove(disk).is_some() {
            pool.trash.insert(disk.to_owned(), job.to_owned());
            pool.happened(at, job, claim, disk);
        }
    }

    /// Whether this job put the disk into the trash.
    #[must_use]
    pub fn is_trashed_by(&self, disk: &str, job: &str) -> bool {
        self.pool().trash.get(disk).is_some_and(|by| by == job)
    }

    /// What was begun and is still there: jobs.
    #[must_use]
    pub fn parts(&self) -> Vec<String> {
        let pool = self.pool();
        pool.parts.iter().map(|(job, _)| job.clone()).collect()
    }
}

impl Pool {
    fn happened(&mut self, at: Ms, job: &str, claim: u64, disk: &str) {
        self.effects.push(Effect {
            at,
            job: job.to_owned(),
            claim,
            disk: disk.to_owned(),
        });
    }
}
