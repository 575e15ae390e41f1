//! Whole files from one pool to another, or to the archive: cloned where the file system can,
//! else written around the cache, else copied by the kernel where it can; holes left out.

use super::{
    around::{Buffer, Writer},
    error::PoolError,
    name::Name,
    pace::{paced, slower},
    root::{Root, facts_of},
};
use crate::config::Direct;
use rustix::{
    fs::{Advice, SeekFrom, copy_file_range, fadvise, fsync, ftruncate, ioctl_ficlone, seek},
    io::{Errno, pread},
};
use std::os::fd::OwnedFd;

/// Bytes that the kernel copies at once: how soon a copy can be stopped.
const RANGE_BYTES: usize = 8 << 20;
/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// Both have the same blocks now.
    Cloned,
    /// Byte by byte.
    Copied,
}

/// Gets the bytes that were passed, of how many, and says whether to go on.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Root {
    /// Makes a new file of the blocks of another one in this pool, down to the disk; false where
    /// the file system can't, or not with this file.
    ///
    /// # Errors
    /// When there is no such file, or the system refuses.
    pub(crate) fn clone_file(&self, name: &Name, to: &Name) -> Result<bool, PoolError> {
        let missing = || refused("copy", name, Errno::NOENT);
        let source = self.open(name)?.ok_or_else(missing)?;
        let target = self.open_or_make(to)?;
        if ioctl_ficlone(&target, &source).is_err() {
            return Ok(false);
        }
        fsync(&target).map_err(|errno| refused("sync", to, errno))?;
        Ok(true)
    }

    /// Copies a file to a new one, down to the disk.
    ///
    /// # Errors
    /// When there is no such file, the system refuses, or it isn't to go on.
    pub(crate) fn copy(
        &self,
        name: &Name,
        to: (&Self, &Name),
        tell: Tell<'_>,
    ) -> Result<Copied, PoolError> {
        let missing = || refused("copy", name, Errno::NOENT);
        let source = self.open(name)?.ok_or_else(missing)?;
        let target = to.0.open_or_make(to.1)?;
        let failed = |errno| refused("copy", name, errno);
        ftruncate(&target, 0).map_err(failed)?;
        let copied = if ioctl_ficlone(&target, &source).is_ok() {
            Copied::Cloned
        } else {
            let most = slower(self.bandwidth, to.0.bandwidth);
            let mut target = Writer::new(&target, to.0.cache).map_err(failed)?;
            copy_data(&source, &mut target, &mut paced(most, tell)).map_err(failed)?;
            Copied::Copied
        };
        fsync(&target).map_err(|errno| refused("sync", to.1, errno))?;
        Ok(copied)
    }

    /// Whether two files hold the same, read from the disk as far as the system allows.
    ///
    /// # Errors
    /// As [`Root::copy`].
    pub(crate) fn is_same(
        &self,
        name: &Name,
        as_in: (&Self, &Name),
        tell: Tell<'_>,
    ) -> Result<bool, PoolError> {
        let failed = |errno| refused("compare", name, errno);
        let (Some(one), Some(other)) = (self.open(name)?, as_in.0.open(as_in.1)?) else {
            return Err(failed(Errno::NOENT));
        };
        // What was just written is read anew.
        fadvise(&other, 0, None, Advice::DontNeed).ok();
        let most = slower(self.bandwidth, as_in.0.bandwidth);
        compare(&one, &other, &mut paced(most, tell)).map_err(failed)
    }
}

fn copy_data(source: &OwnedFd, target: &mut Writer<'_>, tell: Tell<'_>) -> Result<(), Errno> {
    let facts = facts_of(source)?;
    let total = facts.length.min(facts.allocated);
    ftruncate(target.file(), facts.length)?;
    let mut way = match target.direct() {
        // The kernel's copy goes through the cache, and large ones are slowed down there.
        Direct::Has => Way::ByHand(Buffer::new(CHUNK_BYTES)),
        Direct::Lacks => Way::ByKernel,
    };
    let (mut at, mut passed) = (0, 0);
    while let Some((from, to)) = next_data(source, at, facts.length)? {
        at = from;
        while at < to {
            let n = copy_some(source, target, at, to - at, &mut way)?;
            if n == 0 {
                // Somebody makes it shorter meanwhile.
                return Err(Errno::AGAIN);
            }
            at += n;
            passed += n;
            if !tell(passed.min(total), total) {
                return Err(Errno::CANCELED);
            }
        }
    }
    Ok(())
}

/// Who copies.
enum Way {
    ByKernel,
    ByHand(Buffer),
}

/// Copies at most so many bytes; 0 at the end of the file.
fn copy_some(
    source: &OwnedFd,
    target: &mut Writer<'_>,
    at: u64,
    bytes: u64,
    way: &mut Way,
) -> Result<u64, Errno> {
    let at_most = |most: usize| usize::try_from(bytes).unwrap_or(most).min(most);
    match way {
        Way::ByKernel => {
            let (mut from, mut to, range) = (at, at, at_most(RANGE_BYTES));
            let file = target.file();
            match copy_file_range(source, Some(&mut from), file, Some(&mut to), range) {
                Ok(n) if n > 0 => Ok(n as u64),
                // Between these two it can't, or not for this kind of file.
                Ok(_)
                | Err(
                    Errno::XDEV
                    | Errno::INVAL
                    | Errno::NOSYS
                    | Errno::OPNOTSUPP
                    | Errno::PERM
                    | Errno::IO,
                ) => {
                    *way = Way::ByHand(Buffer::new(CHUNK_BYTES));
                    copy_some(source, target, at, bytes, way)
                }
                Err(errno) => Err(errno),
            }
        }
        Way::ByHand(buffer) => {
            let chunk = &mut buffer.bytes()[..at_most(CHUNK_BYTES)];
            let n = pread(source, &mut *chunk, at)?;
            target.write(&chunk[..n], at)?;
            Ok(n as u64)
        }
    }
}

fn compare(one: &OwnedFd, other: &OwnedFd, tell: Tell<'_>) -> Result<bool, Errno> {
    let (left, right) = (facts_of(one)?, facts_of(other)?);
    if left.length != right.length {
        return Ok(false);
    }
    let (length, total) = (left.length, left.length.min(left.allocated));
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let (mut at, mut passed) = (0, 0);
    loop {
        let next = [next_data(one, at, length)?, next_data(other, at, length)?];
        let Some(from) = next.iter().flatten().map(|(from, _)| *from).min() else {
            return Ok(true);
        };
        let n = usize::try_from(length - from)
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        read_all(one, &mut left[..n], from)?;
        read_all(other, &mut right[..n], from)?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
        at = from + n as u64;
        passed += n as u64;
        if !tell(passed.min(total), total) {
            return Err(Errno::CANCELED);
        }
    }
}

fn read_all(file: &OwnedFd, chunk: &mut [u8], at: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < chunk.len() {
        match pread(file, &mut chunk[done..], at + done as u64)? {
            0 => return Err(Errno::AGAIN),
            n => done += n,
        }
    }
    Ok(())
}

/// From where to where a file holds something, at `at` or after it; none if only a hole is left.
pub(super) fn next_data(file: &OwnedFd, at: u64, length: u64) -> Result<Option<(u64, u64)>, Errno> {
    if at >= length {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) if from < length => {
            let to = seek(file, SeekFrom::Hole(from))?;
            Ok(Some((from, to.min(length))))
        }
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, length))),
        Err(errno) => Err(errno),
    }
}

fn refused(act: &'static str, name: &Name, source: Errno) -> PoolError {
    let name = name.to_string();
    PoolError::Refused { act, name, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::made_in;
    use std::os::unix::fs::FileExt as _;
    use virtbus_wire::{DiskId, task::image::ImageFormat};

    fn disk(id: &str) -> Name {
        Name::disk(&id.parse::<DiskId>().unwrap(), ImageFormat::Raw)
    }

    /// Of 64 MiB, with something at both ends and, some of it long, in the middle.
    fn sparse(root: &Root, name: &Name) -> std::fs::File {
        let file = std::fs::File::from(root.open_or_make(name).unwrap());
        file.set_len(64 << 20).unwrap();
        for at in [0, 20 << 20, (64 << 20) - 4] {
            file.write_all_at(b"abcd", at).unwrap();
        }
        file.write_all_at(&[5; (1 << 20) + 1], 40 << 20).unwrap();
        file
    }

    #[test]
    fn a_copy_holds_the_same_and_leaves_holes_out() {
        let near = tempfile::tempdir().unwrap();
        // Another file system: the kernel may not copy between the two.
        let far = tempfile::tempdir_in("/dev/shm").unwrap();
        let (root, here) = (made_in(&near), disk("d1"));
        let file = sparse(&root, &here);
        for other in [root.clone(), made_in(&far)] {
            let (to, mut last) = (disk("d2"), 0);
            root.copy(&here, (&other, &to), &mut |passed, total| {
                assert!(last <= passed && passed <= total);
                last = passed;
                true
            })
            .unwrap();
            assert!(
                root.is_same(&here, (&other, &to), &mut |_, _| true)
                    .unwrap()
            );
            let facts = other.facts(&to).unwrap().unwrap();
            assert_eq!(facts.length, 64 << 20);
            assert!(facts.allocated < 2 << 20, "{facts:?}");
        }
        file.write_all_at(b"x", 50 << 20).unwrap();
        assert!(
            !root
                .is_same(&here, (&root, &disk("d2")), &mut |_, _| true)
                .unwrap()
        );
        file.set_len(1).unwrap();
        assert!(
            !root
                .is_same(&here, (&root, &disk("d2")), &mut |_, _| true)
                .unwrap()
        );
    }

    #[test]
    fn a_copy_that_is_to_stop_stops() {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        sparse(&root, &disk("d1"));
        let stopped = root.copy(&disk("d1"), (&root, &disk("d2")), &mut |_, _| false);
        match stopped {
            Err(PoolError::Refused { source, .. }) => assert_eq!(source, Errno::CANCELED),
            // Where it's cloned there's nothing to stop.
            other => assert_eq!(other, Ok(Copied::Cloned)),
        }
    }
}
