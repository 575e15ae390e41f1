//! One process per libvirt daemon: a lock on a local file named by the daemon that its URI leads to.
//!
//! Two services that change the same domains would each believe to be alone. The lock ends with
//! the process, however it ends.

use crate::libvirt::Daemon;
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
    /// Takes the lock for a daemon.
    ///
    /// # Errors
    /// When another process has it, or the file can't be had.
    pub(crate) fn take(dir: Option<&Utf8Path>, daemon: &Daemon) -> Result<Self, AloneError> {
        let path = dir
            .map_or_else(default_dir, Utf8Path::to_owned)
            .join(format!("virtbus-{}.lock", daemon.name()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::Asker;

    #[test]
    fn a_daemon_has_one_process_and_another_daemon_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let daemon = |uri: &str| {
            let asker = Asker {
                runtime: Some("/run/user/1000".into()),
                ..Asker::default()
            };
            Daemon::at(&uri.parse().unwrap(), &asker)
        };
        let take = |uri| Alone::take(Some(dir), &daemon(uri));
        let held = take("qemu:///system").unwrap();
        assert!(matches!(take("qemu:///system"), Err(AloneError::Taken)));
        let other = "qemu+unix:///system?socket=/run/libvirt/virtqemud-sock";
        assert!(matches!(take(other), Err(AloneError::Taken)));
        take("qemu:///session").unwrap();
        drop(held);
        take("qemu:///system").unwrap();
    }
}
