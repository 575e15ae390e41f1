//! Room in pools: what a job is going to write is set aside before it begins. Pools and archives on
//! the same file system share its room.

mod ledger;

use crate::pool::{Name, PoolError, Root};
use ledger::{Ledger, Promise};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use thiserror::Error;
use virtbus_wire::{Code, JobError, JobId};

/// Room that jobs have set aside: those of this process, and in the same pools those of other
/// services. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Space {
    promised: Arc<Mutex<Promised>>,
}

/// What this process has promised.
#[derive(Debug, Default)]
struct Promised {
    held: HashMap<u64, Held>,
    /// By the pool's folder, what others see of it.
    ledgers: HashMap<Place, Ledger>,
}

/// Device and inode of a pool's folder.
type Place = (u64, u64);

#[derive(Debug)]
struct Held {
    place: Place,
    root: Root,
    promise: Promise,
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
        let place = root.place()?;
        let mut promised = self.promised();
        let _counting = ledger::lock(root)?;
        let free = left(root.free_bytes()?, promised.on(place, root)?, spare);
        if needed > free {
            return Err(SpaceError::NotEnough { needed, free });
        }
        let last = promised.held.keys().max();
        let number = last.map_or(0, |last| last.wrapping_add(1));
        let held = Held {
            place,
            root: root.clone(),
            promise: Promise::new(root, file, needed)?,
        };
        promised.held.insert(number, held);
        let reservation = Reservation {
            space: self.clone(),
            number,
        };
        let told = promised.tell(place, root);
        // Given back, if it can't be told, when the reservation goes: not while all is locked.
        drop(promised);
        told?;
        Ok(reservation)
    }

    fn promised(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promised {
    /// Bytes that are promised on the file system of a pool, and not written yet.
    fn on(&self, (device, inode): Place, root: &Root) -> Result<u64, PoolError> {
        let own = self.held.values().filter(|held| held.place.0 == device);
        let own = own.map(|held| held.promise.still_to_come(&held.root));
        let mut all: u64 = own.fold(0, u64::saturating_add);
        let mut pools = HashMap::from([((device, inode), root)]);
        pools.extend(self.held.values().map(|held| (held.place, &held.root)));
        for (place, root) in pools.into_iter().filter(|(place, _)| place.0 == device) {
            let own = self.ledgers.get(&place).map(Ledger::name);
            all = all.saturating_add(ledger::promised_by_others(root, own)?);
        }
        Ok(all)
    }

    /// Tells others what is promised in a pool.
    fn tell(&mut self, place: Place, root: &Root) -> Result<(), PoolError> {
        let in_place = self.held.values().filter(|held| held.place == place);
        let promises: Vec<&Promise> = in_place.map(|held| &held.promise).collect();
        if promises.is_empty() {
            self.ledgers.remove(&place);
            return Ok(());
        }
        if let Some(ledger) = self.ledgers.get(&place) {
            return ledger.write(&promises);
        }
        let ledger = Ledger::begin(root, JobId::new().as_str())?;
        ledger.write(&promises)?;
        self.ledgers.insert(place, ledger);
        Ok(())
    }
}

fn left(free: u64, promised: u64, spare: u64) -> u64 {
    free.saturating_sub(promised).saturating_sub(spare)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self.space.promised();
        let Some(Held { place, root, .. }) = promised.held.remove(&self.number) else {
            return;
        };
        if let Err(error) = promised.tell(place, &root) {
            let chain: &dyn std::error::Error = &error;
            tracing::debug!(error = chain, "others still see room as set aside");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::made_in;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn room_is_promised_once_and_given_back() {
        let dirs = ["/tmp", "/dev/shm"].map(|dir| tempfile::tempdir_in(dir).unwrap());
        let [root, far] = dirs.each_ref().map(made_in);
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

    #[test]
    fn room_is_promised_once_by_all_services_of_a_pool() {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        let file = |id: &str| Name::disk(&id.parse().unwrap(), ImageFormat::Raw);
        let half = root.free_bytes().unwrap() / 3 * 2;
        let (one, other) = (Space::default(), Space::default());
        let first = one.reserve(&root, &file("d1"), half, 0).unwrap();
        let refused = other.reserve(&root, &file("d2"), half, 0);
        assert!(matches!(refused, Err(SpaceError::NotEnough { .. })));
        drop(first);
        let second = other.reserve(&root, &file("d2"), half, 0).unwrap();
        assert!(one.reserve(&root, &file("d1"), half, 0).is_err());
        drop(second);
        let left = std::fs::read_dir(dir.path().join("space")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn what_a_dead_service_promised_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        let file = |id: &str| Name::disk(&id.parse().unwrap(), ImageFormat::Raw);
        let half = root.free_bytes().unwrap() / 3 * 2;
        let (dead, living) = (Space::default(), Space::default());
        let promise = dead.reserve(&root, &file("d1"), half, 0).unwrap();
        let entries = std::fs::read_dir(dir.path().join("space")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let left = paths.find(|path| !path.ends_with("lock")).unwrap();
        let text = std::fs::read(&left).unwrap();
        drop(promise);
        // As it lies there when its service was killed: nobody has the lock on it any more.
        std::fs::write(&left, text).unwrap();
        assert!(living.reserve(&root, &file("d2"), half, 0).is_ok());
        assert!(!left.exists());
    }

    #[test]
    fn what_another_service_has_written_does_not_count_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root = made_in(&dir);
        let file = Name::disk(&"d1".parse().unwrap(), ImageFormat::Raw);
        let one = Space::default();
        let _promise = one.reserve(&root, &file, 8 << 20, 0).unwrap();
        let to_come = || ledger::promised_by_others(&root, None).unwrap();
        assert_eq!(to_come(), 8 << 20);
        root.open_or_make(&file).unwrap();
        std::fs::write(root.path(&file), vec![7; 6 << 20]).unwrap();
        assert!(to_come() <= 2 << 20, "{}", to_come());
    }
}
