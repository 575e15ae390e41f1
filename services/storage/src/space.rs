//! Room in pools: what a job is going to write is set aside before it begins. Pools and archives on
//! the same file system share its room.

use crate::pool::{Name, PoolError, Root};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use thiserror::Error;
use virtbus_wire::{Code, JobError};

/// Room that jobs of this process have set aside. Clones share it. Jobs of other processes are
/// only seen by what they have written.
#[derive(Debug, Clone, Default)]
pub struct Space {
    held: Arc<Mutex<HashMap<u64, Held>>>,
}

#[derive(Debug)]
struct Held {
    /// The file system.
    device: u64,
    bytes: u64,
    /// What the file took when the room was set aside.
    taken: u64,
    root: Root,
    file: Name,
}

/// Room that's set aside until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    space: Space,
    number: u64,
}

/// Why room can't be set aside.
#[derive(Debug, Error)]
pub enum SpaceError {
    /// There isn't enough.
    #[error("set aside {needed} bytes: {free} are left")]
    NotEnough {
        /// Bytes the job needs.
        needed: u64,
        /// Bytes that nobody has and the pool may give.
        free: u64,
    },
    /// It can't be told.
    #[error("measure the pool")]
    Pool(#[from] PoolError),
}

impl From<SpaceError> for JobError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::NotEnough { needed, free } => {
                Self::new(Code::PoolNoSpace, "the pool has not enough room")
                    .with("needed_bytes", needed)
                    .with("free_bytes", free)
            }
            SpaceError::Pool(error) => error.into(),
        }
    }
}

impl Space {
    /// Sets room aside for what will be written to `file`, new or there already, leaving `spare`
    /// bytes free.
    ///
    /// # Errors
    /// When there isn't enough, or it can't be told.
    pub fn reserve(
        &self,
        root: &Root,
        file: &Name,
        needed: u64,
        spare: u64,
    ) -> Result<Reservation, SpaceError> {
        let device = root.device()?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let others = held.values().filter(|other| other.device == device);
        let promised = others.map(Held::still_to_come).fold(0, u64::saturating_add);
        let free = left(root.free_bytes()?, promised, spare);
        if needed > free {
            return Err(SpaceError::NotEnough { needed, free });
        }
        let number = held.keys().max().map_or(0, |last| last.wrapping_add(1));
        let entry = Held {
            device,
            bytes: needed,
            taken: root.facts(file)?.map_or(0, |facts| facts.allocated),
            root: root.clone(),
            file: file.clone(),
        };
        held.insert(number, entry);
        Ok(Reservation {
            space: self.clone(),
            number,
        })
    }
}

impl Held {
    /// What was written already is missing in the pool's free room, and must not count twice.
    fn still_to_come(&self) -> u64 {
        let written = self.root.facts(&self.file).ok().flatten();
        let written = written.map_or(0, |facts| facts.allocated.saturating_sub(self.taken));
        self.bytes.saturating_sub(written)
    }
}

fn left(free: u64, promised: u64, spare: u64) -> u64 {
    free.saturating_sub(promised).saturating_sub(spare)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self
            .space
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::PoolConfig, pool::Pool};
    use camino::Utf8PathBuf;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn room_is_promised_once_and_given_back() {
        let dirs = ["/tmp", "/dev/shm"].map(|dir| tempfile::tempdir_in(dir).unwrap());
        let [root, far] = dirs.each_ref().map(|dir| {
            let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
            let config = PoolConfig {
                create: true,
                ..PoolConfig::at(path)
            };
            let pool = Pool::new("default".parse().unwrap(), config);
            pool.prepare().unwrap();
            pool.reach().unwrap()
        });
        let space = Space::default();
        let file = |id: &str| Name::disk(&id.parse().unwrap(), ImageFormat::Raw);
        // Others use the same file system meanwhile, so the numbers are far apart.
        let half = root.free_bytes().unwrap() / 3 * 2;
        let reserve = |id| space.reserve(&root, &file(id), half, 0);
        let first = reserve("d1").unwrap();
        assert!(matches!(reserve("d2"), Err(SpaceError::NotEnough { .. })));
        // Another file system has room of its own.
        assert!(space.reserve(&far, &file("d3"), 1, 0).is_ok());
        drop(first);
        assert!(reserve("d2").is_ok());
        let spare = space.reserve(&root, &file("d2"), half, half);
        assert_eq!(JobError::from(spare.unwrap_err()).code, Code::PoolNoSpace);
    }
}
