//! The acts on a pool's files, each beneath the pool's root, none through a link.

use super::{
    error::PoolError,
    name::{Folder, Name},
};
use crate::config::{Cache, PoolConfig};
use camino::Utf8PathBuf;
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fstat, fsync,
        linkat, mkdirat, openat2, renameat, renameat_with, statat, unlinkat,
    },
    io::{Errno, read},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// The unit of `st_blocks`, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;

/// Nanoseconds of a second.
const NS_PER_S: i128 = 1_000_000_000;

/// A pool's folder, open. Clones share it.
#[derive(Debug, Clone)]
pub struct Root {
    pub(super) dir: Arc<OwnedFd>,
    path: Utf8PathBuf,
    /// Bytes that a copy may pass in a second.
    pub(super) bandwidth: Option<u64>,
    /// How copies go through the host's cache, where the file system lets them.
    pub(super) cache: Cache,
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Where it ends, in bytes.
    pub length: u64,
    /// The room it takes, in bytes.
    pub allocated: u64,
    /// Device and inode: the file itself, whatever its name.
    pub identity: (u64, u64),
    /// When its bytes, or what is known of it, last changed: nanoseconds since 1970.
    pub changed_ns: i128,
}

impl Root {
    pub(super) fn new(dir: OwnedFd, config: &PoolConfig) -> Self {
        Self {
            dir: Arc::new(dir),
            path: config.root.clone(),
            bandwidth: config.bandwidth.map(|most| most.bytes()),
            cache: config.cache,
        }
    }

    pub(super) fn mark(&self, file: &str, bytes_max: usize) -> Result<String, Errno> {
        let mark = self.beneath(&*self.dir, file, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut text = vec![0; bytes_max];
        let n = read(&mark, &mut text)?;
        Ok(String::from_utf8_lossy(&text[..n]).into_owned())
    }

    /// The absolute path of a file, for tools.
    #[must_use]
    pub fn path(&self, name: &Name) -> Utf8PathBuf {
        self.path.join(name.folder().as_str()).join(name.file())
    }

    /// Opens a plain file for reading; none if there is no such file.
    ///
    /// # Errors
    /// When it's anything but a plain file with one name, or the system refuses.
    pub fn open(&self, name: &Name) -> Result<Option<OwnedFd>, PoolError> {
        self.open_as(name, OFlags::RDONLY)
    }

    /// Opens a plain file for reading and writing; none if there is no such file.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_rw(&self, name: &Name) -> Result<Option<OwnedFd>, PoolError> {
        self.open_as(name, OFlags::RDWR)
    }

    /// Opens a file for reading and writing, which is made if there is none.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_or_make(&self, name: &Name) -> Result<OwnedFd, PoolError> {
        self.open_as(name, OFlags::RDWR | OFlags::CREATE)?
            .ok_or_else(|| refused("make", name)(Errno::NOENT))
    }

    fn open_as(&self, name: &Name, flags: OFlags) -> Result<Option<OwnedFd>, PoolError> {
        let folder = self.folder(name.folder())?;
        // A device does something when it's opened, and a socket can't be: neither is tried.
        match statat(&folder, name.file(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !is_plain(&stat) => return Err(not_plain(name)),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(refused("look at", name)(errno)),
        }
        // A FIFO would hang the opener for ever; so would a tool that is given one.
        let file = match self.beneath(&folder, name.file(), flags | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(not_plain(name)),
            Err(errno) => return Err(refused("open", name)(errno)),
        };
        let stat = fstat(&file).map_err(refused("look at", name))?;
        if is_plain(&stat) {
            Ok(Some(file))
        } else {
            Err(not_plain(name))
        }
    }

    /// What is known of a file; none if there is no such file.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn facts(&self, name: &Name) -> Result<Option<Facts>, PoolError> {
        let folder = self.folder(name.folder())?;
        match statat(&folder, name.file(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_plain(&stat) => Ok(Some(facts(&stat))),
            Ok(_) => Err(not_plain(name)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(refused("look at", name)(errno)),
        }
    }

    /// Renames a file to a name that nobody has, for good: both folders are synced.
    ///
    /// # Errors
    /// [`PoolError::Taken`], or when the system refuses.
    pub fn rename_new(&self, from: &Name, to: &Name) -> Result<(), PoolError> {
        self.rename_unsynced(from, to)?;
        self.sync_names(from, to)
    }

    /// Brings a rename to the disk.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync_names(&self, from: &Name, to: &Name) -> Result<(), PoolError> {
        let target = self.folder(to.folder())?;
        fsync(&target).map_err(refused("sync the folder of", to))?;
        if from.folder() != to.folder() {
            let source = self.folder(from.folder())?;
            fsync(&source).map_err(refused("sync the folder of", from))?;
        }
        Ok(())
    }

    /// Renames a file to a name that nobody has; a crash of the host may undo it.
    ///
    /// # Errors
    /// As [`Root::rename_new`].
    pub fn rename_unsynced(&self, from: &Name, to: &Name) -> Result<(), PoolError> {
        let (source, target) = (self.folder(from.folder())?, self.folder(to.folder())?);
        let (old, new) = (from.file(), to.file());
        let renamed = match renameat_with(&source, old, &target, new, RenameFlags::NOREPLACE) {
            // NFS doesn't know the flag; there a link is what never replaces.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                linkat(&source, old, &target, new, AtFlags::empty())
                    .and_then(|()| unlinkat(&source, old, AtFlags::empty()))
            }
            other => other,
        };
        match renamed {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(PoolError::Taken {
                name: to.to_string(),
            }),
            Err(errno) => Err(refused("rename", from)(errno)),
        }
    }

    /// Renames a file to a name that another one has, which is gone then, for good: the folder is
    /// synced. Both lie in one folder.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn replace(&self, from: &Name, to: &Name) -> Result<(), PoolError> {
        let folder = self.folder(to.folder())?;
        renameat(&folder, from.file(), &folder, to.file()).map_err(refused("rename", from))?;
        fsync(&folder).map_err(refused("sync the folder of", to))
    }

    /// Removes a file; false if there was none.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unlink(&self, name: &Name) -> Result<bool, PoolError> {
        let folder = self.folder(name.folder())?;
        match unlinkat(&folder, name.file(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(refused("remove", name)(errno)),
        }
    }

    /// Brings a file's bytes to the disk.
    ///
    /// # Errors
    /// When there is no such file, or the system refuses.
    pub fn sync(&self, name: &Name) -> Result<(), PoolError> {
        let missing = || refused("sync", name)(Errno::NOENT);
        let file = self.open_rw(name)?.ok_or_else(missing)?;
        fsync(&file).map_err(refused("sync", name))
    }

    /// All files of a folder. Names that aren't UTF-8 aren't ours and are left out.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn list(&self, folder: Folder) -> Result<Vec<Name>, PoolError> {
        let failed = |errno| PoolError::Refused {
            act: "list",
            name: folder.as_str().to_owned(),
            source: errno,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(self.folder(folder)?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(file) => names.push(Name::listed(folder, file.to_owned())),
            }
        }
        Ok(names)
    }

    /// Opens a folder of the pool, which is made if it's missing.
    fn folder(&self, folder: Folder) -> Result<OwnedFd, PoolError> {
        let failed = |errno| PoolError::Refused {
            act: "open",
            name: folder.as_str().to_owned(),
            source: errno,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.beneath(&*self.dir, folder.as_str(), flags) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(failed),
        }
        match mkdirat(&*self.dir, folder.as_str(), Mode::from_raw_mode(0o770)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        fsync(&*self.dir).map_err(failed)?;
        self.beneath(&*self.dir, folder.as_str(), flags)
            .map_err(failed)
    }

    pub(super) fn beneath(
        &self,
        dir: impl AsFd,
        file: &str,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let mode = if flags.contains(OFlags::CREATE) {
            Mode::from_raw_mode(0o660)
        } else {
            Mode::empty()
        };
        let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(
            dir,
            file,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
            stay,
        )
    }
}

/// What is known of an open file.
///
/// # Errors
/// When the system refuses.
pub(crate) fn facts_of(file: impl AsFd) -> Result<Facts, Errno> {
    fstat(file).map(|stat| facts(&stat))
}

fn facts(stat: &Stat) -> Facts {
    Facts {
        length: u64::try_from(stat.st_size).unwrap_or_default(),
        allocated: u64::try_from(stat.st_blocks)
            .unwrap_or_default()
            .saturating_mul(BLOCK_BYTES),
        identity: identity_of(stat),
        changed_ns: i128::from(stat.st_ctime) * NS_PER_S + i128::from(stat.st_ctime_nsec),
    }
}

/// Device and inode.
pub(crate) fn identity_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// A file with two names could be changed under the other one.
fn is_plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
}

fn not_plain(name: &Name) -> PoolError {
    let name = name.to_string();
    PoolError::NotPlain { name }
}

fn refused(act: &'static str, name: &Name) -> impl FnOnce(Errno) -> PoolError {
    let name = name.to_string();
    move |source| PoolError::Refused { act, name, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::made_in;
    use std::{fs, os::unix::fs::symlink};
    use virtbus_wire::task::image::ImageFormat;

    fn pool() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        (dir, root)
    }

    fn disk(id: &str) -> Name {
        Name::disk(&id.parse().unwrap(), ImageFormat::Raw)
    }

    fn make(root: &Root, name: &Name, text: &str) {
        root.open_or_make(name).unwrap();
        fs::write(root.path(name), text).unwrap();
    }

    #[test]
    fn links_and_pipes_are_no_disks() {
        let (dir, root) = pool();
        make(&root, &disk("d1"), "one");
        let at = |name: &str| dir.path().join("disks").join(name);
        symlink("/etc/passwd", at("link.raw")).unwrap();
        symlink("d1.raw", at("near.raw")).unwrap();
        fs::hard_link(at("d1.raw"), at("d2.raw")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe.raw"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        for id in ["link", "near", "d1", "d2", "pipe"] {
            let found = root.open(&disk(id)).map(|_| ());
            assert!(
                matches!(found, Err(PoolError::NotPlain { .. })),
                "{id}: {found:?}"
            );
            assert!(root.facts(&disk(id)).is_err(), "{id}");
        }
        assert!(root.open(&disk("d3")).unwrap().is_none());
    }

    #[test]
    fn a_folder_that_is_a_link_is_not_followed() {
        let (dir, root) = pool();
        symlink("/tmp", dir.path().join("disks")).unwrap();
        assert!(matches!(
            root.facts(&disk("d1")),
            Err(PoolError::Refused { .. })
        ));
    }

    #[test]
    fn a_rename_never_replaces() {
        let (_dir, root) = pool();
        make(&root, &disk("d1"), "one");
        make(&root, &disk("d2"), "two");
        let taken = root.rename_new(&disk("d1"), &disk("d2"));
        assert!(matches!(taken, Err(PoolError::Taken { .. })));
        assert_eq!(fs::read_to_string(root.path(&disk("d2"))).unwrap(), "two");
        root.rename_new(&disk("d1"), &disk("d3")).unwrap();
        assert_eq!(fs::read_to_string(root.path(&disk("d3"))).unwrap(), "one");
        assert_eq!(root.facts(&disk("d1")).unwrap(), None);
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let (_dir, root) = pool();
        make(&root, &disk("d1"), "one");
        assert!(root.unlink(&disk("d1")).unwrap());
        assert!(!root.unlink(&disk("d1")).unwrap());
    }
}
