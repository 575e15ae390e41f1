//! Lines for locks that are longer than a lock's record names. Whoever comes to the end of one has
//! to wait in any case, so a worker may take such jobs beyond its slots and send them there; and
//! it may read on past as many of them as there are, to those that needn't wait.

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

/// How many messages are read ahead at once, at most.
const WINDOW_MAX: u32 = 512;

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
        self.met.lock().any()
    }

    /// Forgets all, until one is met again: what comes isn't for them.
    pub fn forget(&self) {
        *self.met.lock() = Seen::default();
    }

    /// How many messages may be read ahead at once: the more, the more of those before were for
    /// one of them.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.met.lock().window
    }

    /// Whether one of these locks has one. It needn't be what a job that names them waits for: that
    /// is looked at when it's to be put in line. If so, more may be read ahead.
    pub fn has_one<'a>(&self, locks: impl IntoIterator<Item = &'a str>) -> bool {
        self.met.lock().has_one(locks)
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
            let Some(age) = self.met.lock().age(name) else {
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
        let now = Instant::now();
        self.met.lock().at.insert(name.to_owned(), now);
    }
}

#[derive(Debug, Clone, Default)]
struct Met(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// When each was met.
    at: HashMap<String, Instant>,
    window: u32,
}

impl Met {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn any(&mut self) -> bool {
        self.at.retain(|_, at| at.elapsed() < FRESH);
        if self.at.is_empty() {
            self.window = 0;
        }
        !self.at.is_empty()
    }

    fn has_one<'a>(&mut self, locks: impl IntoIterator<Item = &'a str>) -> bool {
        let found = locks.into_iter().any(|name| self.age(name).is_some());
        if found {
            self.window = (self.window + 1).min(WINDOW_MAX);
        }
        found
    }

    fn age(&self, name: &str) -> Option<Duration> {
        let age = self.at.get(name)?.elapsed();
        Some(age).filter(|age| *age < FRESH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_a_long_one_for_a_while_after_it_was_met() {
        let mut seen = Seen::default();
        assert!(!seen.any());
        seen.at.insert("disk.d1".to_owned(), Instant::now());
        assert!(seen.any() && seen.age("disk.d2").is_none());
        assert_eq!(seen.age("disk.d1"), Some(Duration::ZERO));
        tokio::time::advance(FRESH).await;
        assert!(seen.age("disk.d1").is_none() && !seen.any());
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_are_for_a_line_the_more_are_read_ahead() {
        let mut seen = Seen::default();
        assert!(!seen.has_one(["disk.d1"]));
        assert_eq!(seen.window, 0);
        seen.at.insert("disk.d1".to_owned(), Instant::now());
        for window in 1..=WINDOW_MAX {
            assert!(!seen.has_one(["disk.d2"]) && seen.has_one(["disk.d2", "disk.d1"]));
            assert_eq!(seen.window, window);
        }
        assert!(seen.has_one(["disk.d1"]));
        assert_eq!(seen.window, WINDOW_MAX);
        tokio::time::advance(FRESH).await;
        assert!(!seen.has_one(["disk.d1"]) && !seen.any());
        assert_eq!(seen.window, 0);
    }
}
