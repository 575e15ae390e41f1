//! What qemu's own locks say of a file: whether another program has it open, and may.
//!
//! Each of qemu's programs locks single bytes of an image that it has open: one for each thing that
//! it does with it, and one for each thing that it lets nobody else do meanwhile. So it's seen
//! without a tool whether one would be let in. It's also seen of raw images, which qemu-img reads
//! whoever writes them.

use super::{error::PoolError, name::Name, root::Root};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock},
};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use virtbus_wire::catalog::UseMode;

/// The byte of who writes.
const WRITES: i64 = 101;
/// The byte of who sets the file's size.
const RESIZES: i64 = 103;
/// The byte of who lets nobody read.
const LETS_NOBODY_READ: i64 = 200;
/// The byte of who lets nobody write.
const LETS_NOBODY_WRITE: i64 = 201;
/// The byte of who lets nobody set the size.
const LETS_NOBODY_RESIZE: i64 = 203;

/// What is in the way of who reads.
const BARS_READING: [i64; 3] = [WRITES, RESIZES, LETS_NOBODY_READ];
/// What else is in the way of who changes the file, or takes it away.
const BARS_CHANGING: [i64; 2] = [LETS_NOBODY_WRITE, LETS_NOBODY_RESIZE];

impl Root {
    /// That no other program has a file open in a way that goes not with what is wanted of it. One
    /// that isn't there is in nobody's hands.
    ///
    /// # Errors
    /// [`PoolError::InUse`], or when the system refuses.
    pub(crate) fn idle(&self, name: &Name, wants: UseMode) -> Result<(), PoolError> {
        let Some(file) = self.open(name)? else {
            return Ok(());
        };
        let more: &[i64] = match wants {
            UseMode::Shared => &[],
            UseMode::Exclusive => &BARS_CHANGING,
        };
        for byte in BARS_READING.iter().chain(more) {
            let is_locked = is_locked(&file, *byte).map_err(|source| PoolError::Refused {
                act: "look at the locks of",
                name: name.to_string(),
                source,
            })?;
            if is_locked {
                let name = name.to_string();
                return Err(PoolError::InUse { name });
            }
        }
        Ok(())
    }
}

/// Whether anybody has a lock on a byte of a file.
fn is_locked(file: &OwnedFd, byte: i64) -> Result<bool, Errno> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the constants of the system's own type"
    )]
    let mut lock = flock {
        l_type: F_WRLCK as i16,
        l_whence: SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    Ok(i32::from(lock.l_type) != F_UNLCK)
}
