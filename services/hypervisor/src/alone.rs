//! One process per libvirt daemon: a lock on a local file named by the daemon's URI.
//!
//! Two services that change the same domains would each believe to be alone. The lock ends with
//! the process, however it ends.

use camino::{Utf8Path, Utf8PathBuf};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open},
    io::Errno,
};
use std::os::fd::OwnedFd;

/// Where local locks are on most systems; everybody may make a file there.
const LOCK_DIR: &str = "/run/lock";

/// The lock, while it's held.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AloneError {
    /// Another process has it.
    #[error("another process speaks for this libvirt daemon")]
    Taken,
    /// The file can't be had.
    #[error("the lock file of the libvirt daemon can't be used: {0}")]
    File(Errno),
}

impl Alone {
    /// Takes the lock for the daemon that calls itself `uri`.
    ///
    /// # Errors
    /// When another process has it, or the file can't be had.
    pub(crate) fn take(dir: Option<&Utf8Path>, uri: &str) -> Result<Self, AloneError> {
        let path = dir
            .map_or_else(default_dir, Utf8Path::to_owned)
            .join(file_name(uri));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = open(path.as_str(), flags, Mode::RUSR | Mode::WUSR).map_err(AloneError::File)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(AloneError::Taken),
            Err(error) => Err(AloneError::File(error)),
        }
    }
}

fn default_dir() -> Utf8PathBuf {
    let usual = Utf8PathBuf::from(LOCK_DIR);
    if usual.is_dir() {
        return usual;
    }
    Utf8PathBuf::from_path_buf(std::env::temp_dir()).unwrap_or(usual)
}

/// `virtbus-qemu-session-0.lock`: a user's own daemon is another one than the next user's.
fn file_name(uri: &str) -> String {
    let words = uri.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let mut name = format!("virtbus-{}", words.join("-"));
    if uri.contains("/session") {
        name.push_str(&format!("-{}", rustix::process::getuid().as_raw()));
    }
    const NAME_BYTES_MAX: usize = 200;
    name.truncate(NAME_BYTES_MAX);
    name + ".lock"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_has_one_process_and_another_daemon_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let take = |uri| Alone::take(Some(dir), uri);
        let held = take("qemu:///system").unwrap();
        assert!(matches!(take("qemu:///system"), Err(AloneError::Taken)));
        take("qemu:///session").unwrap();
        drop(held);
        take("qemu:///system").unwrap();
    }
}
