//! Files in the archive: one zstd frame each, with a label before it that other readers skip.
//!
//! The bytes of a disk's file are kept as they are, with its snapshots and the name of its backing.
//! `zstd -d` gives them back too.

use super::{
    around::{Buffer, Writer},
    copy::{Tell, next_data},
    error::PoolError,
    name::Name,
    pace::{paced, slower},
    root::{Root, facts_of},
    seal::{Seal, Sealing, blocks},
};
use rustix::{
    fs::{Advice, fadvise, fsync, ftruncate},
    io::{Errno, pread},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    os::fd::OwnedFd,
};
use virtbus_wire::{DiskId, task::image::ImageFormat};

/// zstd's own default: near the speed of a disk.
const LEVEL: i32 = 3;
/// Threads that compress one file.
const THREADS: u32 = 2;
/// Bytes read, packed or compared at once.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Blocks of zeros of this size, in bytes, become holes again.
pub(super) const BLOCK_BYTES: usize = 4096;
/// A frame that every reader skips.
const SKIPPED: u32 = 0x184D_2A50;
/// Bytes of a label: far above what is in one.
const LABEL_BYTES_MAX: u32 = 4096;
/// Room beside what a file took before, in bytes: what is written comes in blocks.
const SLACK_BYTES: u64 = 64 << 20;

/// What is packed, at the beginning of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    /// The disk.
    pub(crate) disk: DiskId,
    /// The format of its file.
    pub(crate) format: ImageFormat,
    /// Where its file ends, in bytes.
    pub(crate) length: u64,
    /// The room that its file takes, in bytes.
    pub(crate) allocated: u64,
}

impl Root {
    /// Packs a disk's file into a new one, down to the disk.
    ///
    /// # Errors
    /// When there is no such file, the system refuses, or it isn't to go on.
    pub(crate) fn pack(
        &self,
        name: &Name,
        disk: (&DiskId, ImageFormat),
        to: (&Self, &Name),
        tell: Tell<'_>,
    ) -> Result<(), PoolError> {
        let source = self.open(name)?.ok_or_else(|| missing(name))?;
        let target = to.0.open_or_make(to.1)?;
        let failed = |errno| refused("archive", name, errno);
        ftruncate(&target, 0).map_err(failed)?;
        let facts = facts_of(&source).map_err(failed)?;
        let label = Label {
            disk: disk.0.clone(),
            format: disk.1,
            length: facts.length,
            allocated: facts.allocated,
        };
        let mut target = File::from(target);
        let mut tell = paced(slower(self.bandwidth, to.0.bandwidth), tell);
        write_packed(&source, &label, &mut target, &mut tell)
            .map_err(|error| said(name, &error))?;
        fsync(&target).map_err(failed)
    }

    /// The label of a packed file; none if there is no such file.
    ///
    /// # Errors
    /// [`PoolError::Damaged`] when it has none, or the system refuses.
    pub(crate) fn label(&self, name: &Name) -> Result<Option<Label>, PoolError> {
        let Some(file) = self.open(name)? else {
            return Ok(None);
        };
        let read = read_label(&mut File::from(file));
        read.map(Some).map_err(|error| said(name, &error))
    }

    /// Whether a packed file, read from the disk as far as the system allows, holds what another
    /// one is.
    ///
    /// # Errors
    /// As [`Root::pack`]. A damaged one isn't the same.
    pub(crate) fn is_packed(
        &self,
        name: &Name,
        what: (&Self, &Name),
        tell: Tell<'_>,
    ) -> Result<bool, PoolError> {
        let packed = self.open(name)?.ok_or_else(|| missing(name))?;
        let other = what.0.open(what.1)?.ok_or_else(|| missing(what.1))?;
        let length = facts_of(&other)
            .map_err(|errno| refused("compare", what.1, errno))?
            .length;
        fadvise(&packed, 0, None, Advice::DontNeed).ok();
        let mut same = true;
        let mut tell = paced(slower(self.bandwidth, what.0.bandwidth), tell);
        let mut expected = vec![0; CHUNK_BYTES];
        let ended = unpack_with(packed, &mut |chunk, at, label| {
            let expected = &mut expected[..chunk.len()];
            same &= label.length == length && is_at(&other, expected, at)? && expected == chunk;
            let passed = at + chunk.len() as u64;
            Ok(same && tell(passed, label.length))
        });
        match ended {
            Ok(label) => Ok(same && label.length == length),
            Err(_) if !same => Ok(false),
            Err(error) if Errno::from_io_error(&error).is_none() => Ok(false),
            Err(error) => Err(said(name, &error)),
        }
    }

    /// Unpacks a file with this label into a new one, down to the disk, zeros as holes. It becomes
    /// no longer and takes no more room than the label says. The seal is what the new one must hold
    /// when it's read back.
    ///
    /// # Errors
    /// [`PoolError::Damaged`], or as [`Root::pack`].
    pub(crate) fn unpack(
        &self,
        (name, label): (&Name, &Label),
        to: (&Self, &Name),
        tell: Tell<'_>,
    ) -> Result<Seal, PoolError> {
        let packed = self.open(name)?.ok_or_else(|| missing(name))?;
        let target = to.0.open_or_make(to.1)?;
        let failed = |errno| refused("unpack", name, errno);
        ftruncate(&target, 0).map_err(failed)?;
        let mut writer = Writer::new(&target, to.0.cache).map_err(failed)?;
        let (mut written, mut sealing) = (0, Sealing::default());
        let mut tell = paced(slower(self.bandwidth, to.0.bandwidth), tell);
        let found = unpack_with(packed, &mut |chunk, at, found| {
            if found != label {
                return Err(io::ErrorKind::InvalidData.into());
            }
            written += write_blocks(&mut writer, chunk, at, &mut sealing)?;
            if written > label.allocated.saturating_add(SLACK_BYTES) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(tell(at + chunk.len() as u64, label.length))
        });
        let found = found.map_err(|error| said(name, &error))?;
        if found != *label {
            let name = name.to_string();
            return Err(PoolError::Damaged { name });
        }
        ftruncate(&target, label.length).map_err(failed)?;
        fsync(&target).map_err(failed)?;
        Ok(sealing.seal(label.length))
    }
}

fn write_packed(
    source: &OwnedFd,
    label: &Label,
    target: &mut File,
    tell: Tell<'_>,
) -> io::Result<()> {
    let text = serde_json::to_vec(label)?;
    let bytes = u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    target.write_all(&SKIPPED.to_le_bytes())?;
    target.write_all(&bytes.to_le_bytes())?;
    target.write_all(&text)?;
    let mut packer = zstd::Encoder::new(target, LEVEL)?;
    packer.include_checksum(true)?;
    packer.include_contentsize(true)?;
    packer.set_pledged_src_size(Some(label.length))?;
    packer.multithread(THREADS)?;
    let (mut chunk, zeros) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < label.length {
        let (from, to) = next_data(source, at, label.length)?.unwrap_or((label.length, at));
        let (ends, is_hole) = if at < from { (from, true) } else { (to, false) };
        while at < ends {
            let n = usize::try_from(ends - at)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            if is_hole {
                packer.write_all(&zeros[..n])?;
            } else {
                let is_there = is_at(source, &mut chunk[..n], at)?;
                if !is_there {
                    return Err(Errno::AGAIN.into());
                }
                packer.write_all(&chunk[..n])?;
            }
            at += n as u64;
            if !tell(at, label.length) {
                return Err(Errno::CANCELED.into());
            }
        }
    }
    packer.finish().map(|_| ())
}

fn read_label(file: &mut File) -> io::Result<Label> {
    let mut head = [0; 8];
    file.read_exact(&mut head)?;
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let bytes = number(4);
    if number(0) != SKIPPED || bytes > LABEL_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; bytes as usize];
    file.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Gets a piece of what was packed, where it was, and the label; says whether to go on.
type Take<'a> = &'a mut dyn FnMut(&[u8], u64, &Label) -> io::Result<bool>;

fn unpack_with(packed: OwnedFd, take: Take<'_>) -> io::Result<Label> {
    let mut file = File::from(packed);
    let label = read_label(&mut file)?;
    let mut unpacked = zstd::Decoder::with_buffer(BufReader::with_capacity(CHUNK_BYTES, file))?;
    let mut buffer = Buffer::new(CHUNK_BYTES);
    let chunk = buffer.bytes();
    let mut at = 0;
    loop {
        let mut n = 0;
        while n < chunk.len() {
            match unpacked.read(&mut chunk[n..])? {
                0 => break,
                more => n += more,
            }
        }
        if n == 0 {
            break;
        }
        if at + n as u64 > label.length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !take(&chunk[..n], at, &label)? {
            return Err(Errno::CANCELED.into());
        }
        at += n as u64;
    }
    if at == label.length {
        Ok(label)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads a whole chunk; false if the file ends before.
pub(super) fn is_at(file: &OwnedFd, chunk: &mut [u8], at: u64) -> Result<bool, Errno> {
    let mut done = 0;
    while done < chunk.len() {
        match pread(file, &mut chunk[done..], at + done as u64)? {
            0 => return Ok(false),
            n => done += n,
        }
    }
    Ok(true)
}

/// Writes all blocks that hold something; their bytes.
fn write_blocks(
    target: &mut Writer<'_>,
    chunk: &[u8],
    at: u64,
    sealing: &mut Sealing,
) -> Result<u64, Errno> {
    let mut written = 0;
    let blocks: Vec<(&[u8], u64)> = blocks(chunk, at).collect();
    let follows = |one: &(&[u8], u64), next: &(&[u8], u64)| one.1 + BLOCK_BYTES as u64 == next.1;
    // One write for all that follow each other.
    for run in blocks.chunk_by(follows) {
        for (block, at) in run {
            sealing.add(block, *at);
        }
        let bytes: usize = run.iter().map(|(block, _)| block.len()).sum();
        let from = usize::try_from(run[0].1 - at).unwrap_or(chunk.len());
        target.write(&chunk[from..from + bytes], run[0].1)?;
        written += bytes as u64;
    }
    Ok(written)
}

fn missing(name: &Name) -> PoolError {
    refused("open", name, Errno::NOENT)
}

/// What the system said, or that the file isn't what it should be.
fn said(name: &Name, error: &io::Error) -> PoolError {
    match Errno::from_io_error(error) {
        Some(errno) => refused("use", name, errno),
        None => PoolError::Damaged {
            name: name.to_string(),
        },
    }
}

fn refused(act: &'static str, name: &Name, source: Errno) -> PoolError {
    let name = name.to_string();
    PoolError::Refused { act, name, source }
}
