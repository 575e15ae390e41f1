//! Files of pools, looked at before a guest gets them.
//!
//! Each is opened beneath its pool's folder without following a link, must be a plain file with
//! one name, and a disk's must be what the catalogue says: a guest can write any header into a raw
//! disk, and whoever has the pool any file.

use camino::Utf8PathBuf;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2},
    io::Errno,
};
use std::{os::fd::OwnedFd, time::Duration};
use tokio::task::spawn_blocking;
use virtbus_inspector::gate::{self, Expected, Known};
use virtbus_wire::{Code, JobError, task::image::ImageFormat};

/// How long a look at a pool may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// A file of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolFile {
    /// The pool's folder.
    pub(crate) root: Utf8PathBuf,
    /// Folder and name beneath it.
    pub(crate) name: String,
    /// What must be in it; none where it doesn't matter.
    pub(crate) content: Option<(Expected, Known)>,
}

impl PoolFile {
    /// Where it is on this host.
    pub(crate) fn path(&self) -> Utf8PathBuf {
        self.root.join(&self.name)
    }

    fn open(&self) -> Result<OwnedFd, JobError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let Ok(root) = open(self.root.as_str(), flags, Mode::empty()) else {
            return Err(self.refuse(Code::PoolUnreachable, "the pool can't be read"));
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        // A FIFO would hang whoever opens it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat2(&root, &self.name, flags, Mode::empty(), resolve) {
            Ok(file) => file,
            Err(Errno::NOENT) => {
                let text = "the disk's file isn't in the pool";
                return Err(self.refuse(Code::DiskWrongState, text));
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path(), "a disk's file can't be opened");
                return Err(self.refuse(Code::DiskWrongState, "the disk's file can't be used"));
            }
        };
        let stat = fstat(&file).map_err(|_| JobError::internal("a file can't be looked at"))?;
        let is_plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_plain || stat.st_nlink != 1 {
            return Err(self.refuse(Code::DiskWrongState, "the disk's file is no plain file"));
        }
        Ok(file)
    }

    fn gate(&self) -> Result<(), JobError> {
        let file = self.open()?;
        let Some((expected, known)) = &self.content else {
            return Ok(());
        };
        let found = gate::look(&file, expected.format).map_err(|errno| self.unreadable(errno))?;
        let checked = gate::check(found, expected, *known);
        checked.map_err(|error| error.with("file", self.file_name()))
    }

    fn unreadable(&self, errno: Errno) -> JobError {
        tracing::warn!(%errno, path = %self.path(), "a disk's file can't be read");
        self.refuse(Code::PoolUnreachable, "the disk's file can't be read")
    }

    fn refuse(&self, code: Code, text: &str) -> JobError {
        JobError::new(code, text).with("file", self.file_name())
    }

    fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
}

/// That each is what it should be.
///
/// # Errors
/// `pool.unreachable`, `disk.wrong_state`, and all that [`gate::check`] says.
pub(crate) async fn gate(files: Vec<PoolFile>) -> Result<(), JobError> {
    look(move || files.iter().try_for_each(PoolFile::gate)).await
}

/// The virtual size that a disk's file says, in bytes.
pub(crate) async fn virtual_size(file: PoolFile, format: ImageFormat) -> Result<u64, JobError> {
    look(move || {
        let found = gate::look(&file.open()?, format).map_err(|errno| file.unreadable(errno))?;
        let report =
            found.map_err(|fault| file.refuse(fault.code(), "its header can't be read"))?;
        Ok(report.virtual_size)
    })
    .await
}

async fn look<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, JobError> + Send + 'static,
) -> Result<T, JobError> {
    match tokio::time::timeout(LOOK_LIMIT, spawn_blocking(look)).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(_)) => Err(JobError::internal("the look at a pool panicked")),
        Err(_) => Err(JobError::new(
            Code::PoolUnreachable,
            "the pool doesn't answer",
        )),
    }
}
