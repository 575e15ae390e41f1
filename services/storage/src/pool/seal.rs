//! What was written to a file, told while it's written and again from what is read back: whether
//! the disk has what it was given, without a second look at where that came from.

use super::{
    copy::{Tell, next_data},
    error::PoolError,
    name::Name,
    pace::paced,
    pack::{BLOCK_BYTES, CHUNK_BYTES, is_at},
    root::{Root, facts_of},
};
use rustix::{
    fs::{Advice, fadvise},
    io::Errno,
};
use std::{
    hash::{DefaultHasher, Hasher},
    os::fd::OwnedFd,
};

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a file holds, as a number: where it ends, and each block that isn't zeros with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal(u64);

/// A seal to be, as blocks come in their order.
#[derive(Debug, Default)]
pub(super) struct Sealing(DefaultHasher);

impl Sealing {
    pub(super) fn add(&mut self, block: &[u8], at: u64) {
        self.0.write_u64(at);
        self.0.write(block);
    }

    pub(super) fn seal(mut self, length: u64) -> Seal {
        self.0.write_u64(length);
        Seal(self.0.finish())
    }
}

/// The blocks of a chunk that hold something, with their places.
pub(super) fn blocks(chunk: &[u8], at: u64) -> impl Iterator<Item = (&[u8], u64)> {
    let blocks = chunk.chunks(BLOCK_BYTES).enumerate();
    let placed = blocks.map(move |(number, block)| (block, at + (number * BLOCK_BYTES) as u64));
    // As one comparison of memory: byte by byte it takes as long as unpacking.
    placed.filter(|(block, _)| *block != &ZEROS[..block.len()])
}

impl Root {
    /// Whether a file, read from the disk as far as the system allows, holds what it was given.
    ///
    /// # Errors
    /// When there is no such file, the system refuses, or it isn't to go on.
    pub(crate) fn is_sealed(
        &self,
        name: &Name,
        seal: Seal,
        tell: Tell<'_>,
    ) -> Result<bool, PoolError> {
        let failed = |source| PoolError::Refused {
            act: "read",
            name: name.to_string(),
            source,
        };
        let file = self.open(name)?.ok_or_else(|| failed(Errno::NOENT))?;
        fadvise(&file, 0, None, Advice::DontNeed).ok();
        let read = read_back(&file, &mut paced(self.bandwidth, tell));
        Ok(read.map_err(failed)? == seal)
    }
}

fn read_back(file: &OwnedFd, tell: Tell<'_>) -> Result<Seal, Errno> {
    let facts = facts_of(file)?;
    let (length, total) = (facts.length, facts.length.min(facts.allocated));
    let (mut sealing, mut chunk) = (Sealing::default(), vec![0; CHUNK_BYTES]);
    let (mut at, mut passed) = (0, 0);
    while let Some((from, _)) = next_data(file, at, length)? {
        // Data may begin within a block.
        at = from - from % BLOCK_BYTES as u64;
        let n = usize::try_from(length - at)
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        if !is_at(file, &mut chunk[..n], at)? {
            return Err(Errno::AGAIN);
        }
        for (block, at) in blocks(&chunk[..n], at) {
            sealing.add(block, at);
        }
        at += n as u64;
        passed += n as u64;
        if !tell(passed.min(total), total) {
            return Err(Errno::CANCELED);
        }
    }
    Ok(sealing.seal(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::made_in;
    use std::{fs::File, os::unix::fs::FileExt as _};
    use virtbus_wire::{DiskId, task::image::ImageFormat};

    const LENGTH: u64 = (5 << 20) + 700;

    /// A disk with something at its ends and in the middle, packed and unpacked again.
    fn unpacked(dir: &tempfile::TempDir) -> (Root, Name, File, Seal) {
        let root = made_in(dir);
        let id: DiskId = "d1".parse().unwrap();
        let disk = Name::disk(&id, ImageFormat::Raw);
        let packed = Name::archived(&id, ImageFormat::Raw);
        let file = File::from(root.open_or_make(&disk).unwrap());
        file.set_len(LENGTH).unwrap();
        for at in [0, 5000, 2 << 20, LENGTH - 4] {
            file.write_all_at(b"abcd", at).unwrap();
        }
        let of = (&id, ImageFormat::Raw);
        root.pack(&disk, of, (&root, &packed), &mut |_, _| true)
            .unwrap();
        let back = Name::disk(&"d2".parse::<DiskId>().unwrap(), ImageFormat::Raw);
        let label = root.label(&packed).unwrap().unwrap();
        let seal = root.unpack((&packed, &label), (&root, &back), &mut |_, _| true);
        let file = File::from(root.open_rw(&back).unwrap().unwrap());
        (root, back, file, seal.unwrap())
    }

    #[test]
    fn what_is_read_back_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (root, name, file, seal) = unpacked(&dir);
        let is_sealed = || root.is_sealed(&name, seal, &mut |_, _| true).unwrap();
        assert!(is_sealed());
        // Zeros that are written are zeros all the same.
        file.write_all_at(&[0; 8192], 3 << 20).unwrap();
        assert!(is_sealed());
        for at in [0, 5003, 3 << 20, LENGTH - 1] {
            let mut before = [0];
            file.read_exact_at(&mut before, at).unwrap();
            file.write_all_at(&[before[0] ^ 1], at).unwrap();
            assert!(!is_sealed(), "{at}");
            file.write_all_at(&before, at).unwrap();
            assert!(is_sealed(), "{at}");
        }
        // A block in another's place, a block lost, another end.
        file.write_all_at(b"abcd", 4096 + 5000).unwrap();
        file.write_all_at(&[0; 4], 5000).unwrap();
        assert!(!is_sealed());
        file.write_all_at(&[0; 4], 4096 + 5000).unwrap();
        assert!(!is_sealed());
        file.write_all_at(b"abcd", 5000).unwrap();
        assert!(is_sealed());
        file.set_len(LENGTH + 1).unwrap();
        assert!(!is_sealed());
    }

    #[test]
    fn reading_back_that_is_to_stop_stops() {
        let dir = tempfile::tempdir().unwrap();
        let (root, name, _, seal) = unpacked(&dir);
        let stopped = root.is_sealed(&name, seal, &mut |_, _| false);
        let Err(PoolError::Refused { source, .. }) = stopped else {
            panic!("{stopped:?}");
        };
        assert_eq!(source, Errno::CANCELED);
    }
}
