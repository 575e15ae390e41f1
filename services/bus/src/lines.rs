//! Lines for locks that are longer than a lock's record names. Whoever comes to the end of one has
//! to wait in any case, so a worker may take such jobs beyond its slots and send them there.

use crate::{bucket::Bucket, error::BusError, locks::LockSet};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use virtbus_wire::{JobId, protocol::lock::Lock};

/// How long a line is taken for a long one after it was found to be.
const FRESH: Duration = Duration::from_secs(1);

/// How long nobody looks whether it still is: no line drains so fast.
const JUST_MET: Duration = Duration::from_millis(20);

/// The locks with long lines, as far as this process met them just now.
#[derive(Debug, Clone)]
pub struct LongLines {
    records: Bucket<Lock>,
    met: Met,
}

impl LongLines {
    pub(crate) fn new(records: &Bucket<Lock>) -> Self {
        Self {
            records: records.clone(),
            met: Met::default(),
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn any(&self) -> bool {
        self.met.any()
    }

    /// Forgets all, until one is met again: what comes isn't for them.
    pub fn forget(&self) {
        self.met.lock().clear();
    }

    /// Whether a job that needs these locks goes to the end of one. `ticket` is its place if it has
    /// waited before.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn leads_to_one(
        &self,
        set: &LockSet,
        job: &JobId,
        ticket: Option<u64>,
    ) -> Result<bool, BusError> {
        for name in set.keys() {
            let Some(age) = self.met.age(name) else {
                continue;
            };
            if ticket.is_none() && age < JUST_MET {
                return Ok(true);
            }
            let found = self.records.get_latest(name).await?;
            let is_beyond = |lock: Lock| lock.is_beyond(job, ticket.unwrap_or(u64::MAX));
            if found.is_some_and(|entry| is_beyond(entry.value)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn met(&self, name: &str) {
        self.met.lock().insert(name.to_owned(), Instant::now());
    }
}

/// When each was met.
#[derive(Debug, Clone, Default)]
struct Met(Arc<Mutex<HashMap<String, Instant>>>);

impl Met {
    fn any(&self) -> bool {
        let mut met = self.lock();
        met.retain(|_, at| at.elapsed() < FRESH);
        !met.is_empty()
    }

    fn age(&self, name: &str) -> Option<Duration> {
        let met = self.lock();
        let age = met.get(name)?.elapsed();
        Some(age).filter(|age| *age < FRESH)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_a_long_one_for_a_while_after_it_was_met() {
        let met = Met::default();
        assert!(!met.any());
        met.lock().insert("disk.d1".to_owned(), Instant::now());
        assert!(met.any() && met.age("disk.d2").is_none());
        assert_eq!(met.age("disk.d1"), Some(Duration::ZERO));
        tokio::time::advance(FRESH).await;
        assert!(met.age("disk.d1").is_none() && !met.any());
    }
}
