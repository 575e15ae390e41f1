//! Overwriting a file before it's removed.

use super::{
    copy::next_data,
    error::PoolError,
    name::Name,
    root::{Root, facts_of},
};
use rustix::{
    fs::fsync,
    io::{Errno, pwrite},
};

/// Bytes written at once.
const CHUNK_BYTES: usize = 1 << 20;

impl Root {
    /// Overwrites with zeros all that a file holds, down to the disk; holes hold nothing. `tell`
    /// gets the bytes that were passed, of how many, and says whether to go on. Copies that the
    /// file system or the device keep by themselves aren't reached.
    ///
    /// # Errors
    /// When the system refuses, or it isn't to go on.
    pub fn wipe(
        &self,
        name: &Name,
        mut tell: impl FnMut(u64, u64) -> bool,
    ) -> Result<(), PoolError> {
        let refused = |source| PoolError::Refused {
            act: "overwrite",
            name: name.to_string(),
            source,
        };
        let Some(file) = self.open_rw(name)? else {
            return Ok(());
        };
        let length = facts_of(&file).map_err(refused)?.length;
        let zeros = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while let Some((data, hole)) = next_data(&file, at, length).map_err(refused)? {
            at = data;
            while at < hole {
                let left = usize::try_from(hole - at).unwrap_or(CHUNK_BYTES);
                let chunk = &zeros[..left.min(CHUNK_BYTES)];
                at += pwrite(&file, chunk, at).map_err(refused)? as u64;
                if !tell(at, length) {
                    return Err(refused(Errno::CANCELED));
                }
            }
        }
        fsync(&file).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::made_in;
    use std::os::unix::fs::FileExt;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn all_data_is_overwritten_and_holes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        let name = Name::disk(&"d1".parse().unwrap(), ImageFormat::Raw);
        let file = std::fs::File::from(root.open_or_make(&name).unwrap());
        file.set_len(64 << 20).unwrap();
        for at in [0, 20 << 20, (64 << 20) - 4] {
            file.write_all_at(b"abcd", at).unwrap();
        }
        let before = root.facts(&name).unwrap().unwrap();
        let mut last = 0;
        root.wipe(&name, |done, _| {
            last = done;
            true
        })
        .unwrap();
        let after = root.facts(&name).unwrap().unwrap();
        assert_eq!(std::fs::read(root.path(&name)).unwrap(), vec![0; 64 << 20]);
        assert_eq!(
            (after.length, after.allocated),
            (before.length, before.allocated)
        );
        assert_eq!(last, 64 << 20);
    }
}
