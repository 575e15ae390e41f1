//! Writing files around the host's page cache, where their file system can.

use crate::config::{Cache, Direct};
use rustix::{
    fs::{FsWord, NFS_SUPER_MAGIC, OFlags, fcntl_getfl, fcntl_setfl, fstatfs},
    io::{Errno, pwrite},
};
use std::os::fd::OwnedFd;

/// What the place of a write, its length and the memory it comes from are multiples of, in bytes:
/// the largest blocks of common disks.
const BLOCK_BYTES: usize = 4096;
/// Shorter writes go through the cache, which puts them together: each one around it waits for the
/// disk.
const AROUND_BYTES_MIN: usize = 64 << 10;
/// File systems that are asked to copy by themselves, on the far side: NFS, SMB, Ceph, and those in
/// user space.
const COPY_THEMSELVES: [FsWord; 4] = [NFS_SUPER_MAGIC, 0xFE53_4D42, 0x00C3_6400, 0x6573_5546];

/// Memory that can be written from around the cache.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// So many bytes, zeros at first.
    pub(super) fn new(bytes: usize) -> Self {
        let bytes = vec![0; bytes + BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { bytes, start }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let end = self.start + self.bytes.len() - BLOCK_BYTES;
        &mut self.bytes[self.start..end]
    }
}

/// A file that is written around the cache as far as it can be.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    file: &'a OwnedFd,
    direct: Direct,
}

impl<'a> Writer<'a> {
    /// # Errors
    /// When the system doesn't say what it can.
    pub(super) fn new(file: &'a OwnedFd, cache: Cache) -> Result<Self, Errno> {
        let direct = match cache {
            Cache::Writeback => Direct::Lacks,
            Cache::Writearound | Cache::None if copies_itself(file)? => Direct::Lacks,
            Cache::Writearound | Cache::None => match switch(file, Direct::Has) {
                Ok(()) => Direct::Has,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => Direct::Lacks,
                Err(errno) => return Err(errno),
            },
        };
        Ok(Self { file, direct })
    }

    pub(super) fn file(&self) -> &'a OwnedFd {
        self.file
    }

    pub(super) fn direct(&self) -> Direct {
        self.direct
    }

    /// Writes all of it, best from a [`Buffer`]; what isn't whole blocks goes through the cache.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Errno> {
        let whole = bytes.len() - bytes.len() % BLOCK_BYTES;
        let fits = whole >= AROUND_BYTES_MIN && at.is_multiple_of(BLOCK_BYTES as u64);
        let around = match self.direct {
            Direct::Has if fits => whole,
            Direct::Has | Direct::Lacks => 0,
        };
        match write_all(self.file, &bytes[..around], at) {
            Ok(()) => self.write_through(&bytes[around..], at + around as u64),
            // The disk's blocks are larger, or memory has to lie otherwise.
            Err(Errno::INVAL) if around > 0 => {
                switch(self.file, Direct::Lacks)?;
                self.direct = Direct::Lacks;
                write_all(self.file, bytes, at)
            }
            Err(errno) => Err(errno),
        }
    }

    fn write_through(&self, bytes: &[u8], at: u64) -> Result<(), Errno> {
        match self.direct {
            Direct::Has if !bytes.is_empty() => {
                switch(self.file, Direct::Lacks)?;
                write_all(self.file, bytes, at)?;
                switch(self.file, Direct::Has)
            }
            Direct::Has | Direct::Lacks => write_all(self.file, bytes, at),
        }
    }
}

fn copies_itself(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(COPY_THEMSELVES.contains(&fstatfs(file)?.f_type))
}

fn switch(file: &OwnedFd, direct: Direct) -> Result<(), Errno> {
    let flags = fcntl_getfl(file)?;
    let flags = match direct {
        Direct::Has => flags | OFlags::DIRECT,
        Direct::Lacks => flags - OFlags::DIRECT,
    };
    fcntl_setfl(file, flags)
}

fn write_all(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        done += pwrite(file, &bytes[done..], at + done as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, File, OpenOptions},
        path::Path,
    };

    fn made(path: &Path) -> OwnedFd {
        OwnedFd::from(File::create(path).unwrap())
    }

    /// Where builds are made: a folder in memory may have no disk that has wishes.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn any_length_at_any_place_is_written_as_it_is() {
        let (dir, mut buffer) = (folder(), Buffer::new((1 << 20) + 1));
        let bytes = buffer.bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).unwrap() + 1;
        }
        let lengths = [
            0,
            1,
            4095,
            4096,
            4097,
            AROUND_BYTES_MIN,
            1 << 20,
            (1 << 20) + 1,
        ];
        for cache in [Cache::Writearound, Cache::Writeback] {
            for (length, at) in lengths
                .into_iter()
                .flat_map(|length| [(length, 0), (length, 513)])
            {
                let path = dir.path().join(format!("{cache:?}-{length}-{at}"));
                let file = made(&path);
                let mut writer = Writer::new(&file, cache).unwrap();
                writer.write(&bytes[..length], at).unwrap();
                let end = at + length as u64;
                writer.write(b"end", end).unwrap();
                let written = fs::read(&path).unwrap();
                let at = usize::try_from(at).unwrap();
                assert!(written[..at].iter().all(|byte| *byte == 0), "{length}");
                assert!(written[at..].starts_with(&bytes[..length]), "{length}");
                assert_eq!(&written[at + length..], b"end");
            }
        }
    }

    #[test]
    fn memory_that_lies_badly_is_written_through_the_cache() {
        let (dir, mut buffer) = (folder(), Buffer::new((1 << 20) + 1));
        let bytes = buffer.bytes();
        bytes.fill(7);
        let file = made(&dir.path().join("f"));
        let mut writer = Writer::new(&file, Cache::Writearound).unwrap();
        writer.write(&bytes[1..], 0).unwrap();
        writer.write(&bytes[..1 << 20], 1 << 20).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), [7; 2 << 20]);
    }

    #[test]
    fn a_file_system_that_refuses_is_written_through_the_cache() {
        // Which memory would go into a core dump.
        let path = "/proc/self/coredump_filter";
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = OwnedFd::from(file.unwrap());
        let mut writer = Writer::new(&file, Cache::Writearound).unwrap();
        assert_eq!(writer.direct(), Direct::Lacks);
        writer.write(b"0x23", 0).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "00000023\n");
    }
}
