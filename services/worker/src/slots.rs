//! How many jobs of which kind run at once.

use crate::held::{Busy, Held};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};
use tokio::time::Instant;
use virtbus_bus::Appetite;
use virtbus_wire::Priority;

/// The slots of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsConfig {
    /// Jobs that run at once.
    pub slots: u32,
    /// Of them, kept for short jobs of priority `high`.
    pub reserved_high: u32,
    /// Long jobs that run at once.
    pub long_max: u32,
    /// Jobs of priority `low` that run even while there are more urgent ones; 0 = strict.
    pub low_floor: u32,
}

impl Default for SlotsConfig {
    fn default() -> Self {
        Self {
            slots: 4,
            reserved_high: 1,
            long_max: 2,
            low_floor: 0,
        }
    }
}

/// What is wrong with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("work.{field} must be {must}")]
pub struct InvalidSlots {
    /// The setting.
    pub field: &'static str,
    /// What it must be.
    pub must: &'static str,
}

impl SlotsConfig {
    /// Checks that every kind of job can run.
    ///
    /// # Errors
    /// The setting that keeps a kind from running.
    pub fn check(&self) -> Result<(), InvalidSlots> {
        let refuse = |field, must| Err(InvalidSlots { field, must });
        match *self {
            Self { slots: 0, .. } => refuse("slots", "at least 1"),
            Self {
                slots,
                reserved_high,
                ..
            } if reserved_high >= slots => refuse("reserved_high", "less than slots"),
            Self { long_max: 0, .. } => refuse("long_max", "at least 1"),
            Self {
                slots,
                reserved_high,
                low_floor,
                ..
            } if low_floor > slots - reserved_high => {
                refuse("low_floor", "at most slots less reserved_high")
            }
            _ => Ok(()),
        }
    }
}

/// What of a job decides which slots it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its priority.
    pub priority: Priority,
    /// Whether it's a long task: such a one never takes a slot reserved for `high`.
    pub is_long: bool,
}

impl Kind {
    pub(crate) fn may_use_reserved(self) -> bool {
        self.priority == Priority::High && !self.is_long
    }
}

/// The slots of a running worker. A slot is had before a job is pulled.
#[derive(Debug, Clone)]
pub struct Slots {
    config: SlotsConfig,
    held: Arc<Mutex<Held>>,
    lent_max: u32,
    /// Long jobs that may run at once just now.
    long_now: Arc<AtomicU32>,
}

/// A job's slot, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    number: u64,
    held: Arc<Mutex<Held>>,
}

impl Slots {
    /// All free.
    #[must_use]
    pub fn new(config: SlotsConfig) -> Self {
        Self {
            config,
            held: Arc::default(),
            lent_max: 0,
            long_now: Arc::new(AtomicU32::new(config.long_max)),
        }
    }

    /// From now on, jobs that have had their ordinary slots for 10 s lend them to others, so many at
    /// most: those who wait for what may hang must not keep out who ends it.
    #[must_use]
    pub fn lending(self, lent_max: u32) -> Self {
        Self { lent_max, ..self }
    }

    /// When the next slot is lent, should nothing happen until then.
    #[must_use]
    pub fn lends_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.lends_at(self.lent_max, now)
    }

    /// Long jobs that may ever run at once.
    #[must_use]
    pub fn long_max(&self) -> u32 {
        self.config.long_max
    }

    /// From now on only so many long jobs are begun. Those that run go on.
    pub fn allow_long(&self, count: u32) {
        let most = self.config.long_max;
        self.long_now.store(count.min(most), Ordering::Relaxed);
    }

    /// How many jobs of each priority may be pulled now.
    #[must_use]
    pub fn appetite(&self) -> Appetite {
        let busy = self.busy();
        let open = busy.open(self.config);
        Appetite {
            high: self.config.slots.saturating_sub(busy.total()),
            default: open,
            low: open,
            low_first: open > 0 && busy.low < self.config.low_floor,
            ahead: 0,
        }
    }

    /// A slot for a job that was pulled; none when its kind must wait, as a long one may.
    #[must_use]
    pub fn take(&self, kind: Kind) -> Option<Slot> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let busy = held.busy(self.lent_max, now);
        let free = if kind.may_use_reserved() {
            busy.total() < self.config.slots
        } else {
            busy.open(self.config) > 0
        };
        let long_now = self.long_now.load(Ordering::Relaxed);
        if !free || (kind.is_long && busy.long >= long_now) {
            return None;
        }
        Some(Slot {
            number: held.add(kind, now),
            held: Arc::clone(&self.held),
        })
    }

    /// How many jobs run.
    #[must_use]
    pub fn busy_count(&self) -> u32 {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.count()
    }

    /// How many can.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.config.slots
    }

    fn busy(&self) -> Busy {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.busy(self.lent_max, Instant::now())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::OWN;
    use proptest::prelude::*;

    fn kind(priority: Priority, is_long: bool) -> Kind {
        Kind { priority, is_long }
    }

    fn slots(slots: u32, reserved_high: u32, long_max: u32, low_floor: u32) -> Slots {
        Slots::new(SlotsConfig {
            slots,
            reserved_high,
            long_max,
            low_floor,
        })
    }

    #[test]
    fn a_reserved_slot_is_for_short_urgent_jobs_only() {
        let slots = slots(2, 1, 2, 0);
        let low = slots.take(kind(Priority::Low, false)).unwrap();
        assert_eq!(
            slots.appetite(),
            Appetite {
                high: 1,
                ..Appetite::default()
            }
        );
        assert!(slots.take(kind(Priority::Default, false)).is_none());
        assert!(slots.take(kind(Priority::High, true)).is_none());
        let high = slots.take(kind(Priority::High, false)).unwrap();
        assert_eq!(slots.appetite().high, 0);
        drop((low, high));
        assert_eq!(slots.appetite().default, 1);
    }

    #[test]
    fn urgent_jobs_fill_the_reserved_slots_first() {
        let slots = slots(4, 2, 4, 0);
        let urgent = [0; 2].map(|_| slots.take(kind(Priority::High, false)).unwrap());
        assert_eq!(slots.appetite().default, 2);
        drop(urgent);
    }

    #[test]
    fn long_jobs_leave_room_for_short_ones() {
        let slots = slots(4, 0, 1, 0);
        let long = slots.take(kind(Priority::Low, true)).unwrap();
        assert!(slots.take(kind(Priority::Low, true)).is_none());
        assert!(slots.take(kind(Priority::Low, false)).is_some());
        drop(long);
        assert!(slots.take(kind(Priority::Low, true)).is_some());
    }

    #[test]
    fn long_jobs_can_be_held_back_for_a_while() {
        let slots = slots(4, 0, 2, 0);
        let first = slots.take(kind(Priority::Low, true));
        slots.allow_long(0);
        assert!(first.is_some() && slots.take(kind(Priority::Low, true)).is_none());
        assert!(slots.take(kind(Priority::Low, false)).is_some());
        slots.allow_long(9);
        let second = slots.take(kind(Priority::Low, true));
        assert!(second.is_some() && slots.take(kind(Priority::Low, true)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn slots_that_were_had_for_long_are_lent_so_many_at_most() {
        let slots = slots(3, 1, 2, 0).lending(2);
        let default = kind(Priority::Default, false);
        let mut held = vec![slots.take(kind(Priority::High, false)).unwrap()];
        held.extend([0; 2].map(|_| slots.take(default).unwrap()));
        let began = Instant::now();
        assert_eq!(slots.lends_at(), Some(began + OWN));
        assert!(slots.take(default).is_none());
        tokio::time::advance(OWN).await;
        assert_eq!(slots.appetite().default, 2);
        held.extend([0; 2].map(|_| slots.take(default).unwrap()));
        tokio::time::advance(OWN).await;
        assert!(slots.take(default).is_none(), "no more are lent");
        assert_eq!((slots.lends_at(), slots.busy_count()), (None, 5));
        held.truncate(1);
        assert_eq!(slots.appetite().default, 2);
    }

    #[test]
    fn low_goes_first_until_it_has_its_floor() {
        let slots = slots(3, 1, 3, 1);
        assert!(slots.appetite().low_first);
        let _low = slots.take(kind(Priority::Low, false)).unwrap();
        assert!(!slots.appetite().low_first);
    }

    #[test]
    fn numbers_that_would_starve_a_kind_are_refused() {
        let check = |slots, reserved_high, long_max, low_floor| {
            SlotsConfig {
                slots,
                reserved_high,
                long_max,
                low_floor,
            }
            .check()
            .map_err(|e| e.field)
        };
        assert_eq!(check(0, 0, 1, 0), Err("slots"));
        assert_eq!(check(2, 2, 1, 0), Err("reserved_high"));
        assert_eq!(check(2, 0, 0, 0), Err("long_max"));
        assert_eq!(check(2, 1, 1, 2), Err("low_floor"));
        assert_eq!(SlotsConfig::default().check(), Ok(()));
    }

    proptest! {
        #[test]
        fn never_more_jobs_than_slots(
            wanted in prop::collection::vec((0..3usize, any::<bool>(), any::<bool>()), 0..100),
        ) {
            let slots = slots(5, 2, 2, 1);
            let mut held = Vec::new();
            for (priority, is_long, give_back) in wanted {
                if give_back {
                    held.pop();
                }
                let kind = kind(Priority::ALL[priority], is_long);
                held.extend(slots.take(kind).map(|slot| (slot, kind)));
                let kinds = || held.iter().map(|(_, kind): &(Slot, Kind)| *kind);
                let long = kinds().filter(|kind| kind.is_long).count();
                let ordinary = kinds().filter(|kind| !kind.may_use_reserved()).count();
                prop_assert!(held.len() <= 5 && long <= 2 && ordinary <= 3);
                prop_assert_eq!(slots.busy_count() as usize, held.len());
            }
        }
    }
}
