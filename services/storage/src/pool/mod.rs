//! Pools: folders of this host that hold disks.
//!
//! A pool is opened anew for each step of a job, as its file system may go and come back. Its mark
//! (`.virtbus-pool`, holding the pool's name) tells an absent file from a pool that isn't mounted.

mod around;
mod copy;
mod direct;
pub mod error;
mod idle;
pub mod name;
mod note;
mod pace;
mod pack;
mod room;
pub(crate) mod root;
mod seal;
mod wipe;

pub(crate) use copy::Tell;
pub use error::PoolError;
pub use name::{Folder, Name};
pub(crate) use pack::Label as PackedLabel;
pub use root::{Facts, Root};

use crate::{config::PoolConfig, shared_look::SharedLook};
use camino::Utf8Path;
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};
use std::{
    fs, io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use virtbus_wire::Label;

/// The mark of a pool's folder.
const MARK: &str = ".virtbus-pool";
/// Bytes read of a mark: more than the longest name.
const MARK_BYTES_MAX: usize = 128;

/// A pool of this service.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub name: Label,
    /// How this host has it.
    pub config: PoolConfig,
    /// Looks at whether it works.
    pub(crate) looks: Arc<SharedLook>,
    /// Bytes that were free at the last look; [`NEVER_SEEN`] before.
    free: Arc<AtomicU64>,
    /// Whether it was said that its file system lacks what `cache` asks for.
    is_told: Arc<AtomicBool>,
}

/// In place of a number of bytes that nobody knows.
const NEVER_SEEN: u64 = u64::MAX;

impl Pool {
    /// A pool that was configured. Nothing is looked at yet.
    #[must_use]
    pub fn new(name: Label, config: PoolConfig) -> Self {
        let looks = Arc::default();
        let free = Arc::new(AtomicU64::new(NEVER_SEEN));
        Self {
            name,
            config,
            looks,
            free,
            is_told: Arc::default(),
        }
    }

    /// Bytes that were free when the pool was last looked at; none while it's away.
    #[must_use]
    pub fn free(&self) -> Option<u64> {
        let free = self.free.load(Ordering::Relaxed);
        (free != NEVER_SEEN).then_some(free)
    }

    /// Looks whether the pool can be reached, and how many bytes are free in it. Says once in the
    /// log if its file system can't copy as configured.
    ///
    /// # Errors
    /// As [`Pool::reach`].
    pub fn look(&self) -> Result<(), PoolError> {
        let free = self.reach().and_then(|root| {
            self.tell_cache(&root);
            root.free_bytes()
        });
        let known = free.as_ref().copied().unwrap_or(NEVER_SEEN);
        self.free.store(known, Ordering::Relaxed);
        free.map(|_| ())
    }

    fn tell_cache(&self, root: &Root) {
        let lacks = root.cache().is_ok_and(|had| had != self.config.cache);
        if lacks && !self.is_told.swap(true, Ordering::Relaxed) {
            let text = "copies go through the cache: the file system has no O_DIRECT";
            tracing::warn!(pool = %self.name, "{text}");
        }
    }

    /// The pool's archive, if it has one: a folder like the pool's own.
    #[must_use]
    pub fn archive(&self) -> Option<Self> {
        let root = self.config.archive.clone()?;
        let config = PoolConfig {
            root,
            archive: None,
            ..self.config.clone()
        };
        Some(Self::new(self.name.clone(), config))
    }

    /// Makes folder and mark where they are missing, those of the archive too, if the
    /// configuration says so.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn prepare(&self) -> io::Result<()> {
        if !self.config.create {
            return Ok(());
        }
        if let Some(archive) = self.archive() {
            archive.prepare()?;
        }
        fs::create_dir_all(&self.config.root)?;
        let mark = self.config.root.join(MARK);
        match fs::File::create_new(mark) {
            Ok(file) => {
                io::Write::write_all(&mut &file, format!("{}\n", self.name).as_bytes())?;
                file.sync_all()
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens the pool's folder, if it's there and is this pool's.
    ///
    /// # Errors
    /// [`PoolError::Away`], [`PoolError::Foreign`].
    pub fn reach(&self) -> Result<Root, PoolError> {
        let away = |source| PoolError::Away {
            pool: self.name.to_string(),
            source,
        };
        let dir = open_folder(&self.config.root).map_err(away)?;
        let root = Root::new(dir, &self.config);
        let mark = root.mark(MARK, MARK_BYTES_MAX).map_err(away)?;
        if mark.trim() == self.name.as_str() {
            Ok(root)
        } else {
            Err(PoolError::Foreign {
                pool: self.name.to_string(),
                found: mark.trim().to_owned(),
            })
        }
    }
}

fn open_folder(path: &Utf8Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path.as_str(), flags, Mode::empty())
}

/// A new pool in a folder, ready to be used.
#[cfg(test)]
pub(crate) fn made_in(dir: &tempfile::TempDir) -> Root {
    let root = camino::Utf8Path::from_path(dir.path()).unwrap();
    let config = PoolConfig {
        create: true,
        ..PoolConfig::at(root.to_owned())
    };
    let pool = Pool::new("default".parse().unwrap(), config);
    pool.prepare().unwrap();
    pool.reach().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(dir: &tempfile::TempDir, create: bool) -> Pool {
        let root = Utf8Path::from_path(dir.path()).unwrap().join("p");
        let config = PoolConfig {
            create,
            ..PoolConfig::at(root)
        };
        Pool::new("default".parse().unwrap(), config)
    }

    #[test]
    fn an_empty_mount_point_is_a_pool_that_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(&dir, false);
        assert!(matches!(pool.reach(), Err(PoolError::Away { .. })));
        fs::create_dir(&pool.config.root).unwrap();
        pool.prepare().unwrap();
        assert!(matches!(pool.reach(), Err(PoolError::Away { .. })));
    }

    #[test]
    fn a_folder_of_another_pool_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(&dir, true);
        pool.prepare().unwrap();
        pool.prepare().unwrap();
        assert!(pool.reach().is_ok());
        fs::write(pool.config.root.join(MARK), "other\n").unwrap();
        assert!(matches!(pool.reach(), Err(PoolError::Foreign { found, .. }) if found == "other"));
    }
}
