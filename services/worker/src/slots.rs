//! How many jobs of which kind run at once.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};
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
    fn may_use_reserved(self) -> bool {
        self.priority == Priority::High && !self.is_long
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Busy {
    urgent: u32,
    ordinary: u32,
    low: u32,
    long: u32,
}

impl Busy {
    fn add(&mut self, kind: Kind, count: i64) {
        let step = |number: &mut u32, applies: bool| {
            if applies {
                let next = i64::from(*number) + count;
                *number = u32::try_from(next).unwrap_or(0);
            }
        };
        step(&mut self.urgent, kind.may_use_reserved());
        step(&mut self.ordinary, !kind.may_use_reserved());
        step(&mut self.low, kind.priority == Priority::Low);
        step(&mut self.long, kind.is_long);
    }

    fn total(self) -> u32 {
        self.urgent + self.ordinary
    }

    /// Slots for any job that are free: urgent jobs fill the reserved ones first.
    fn open(self, config: SlotsConfig) -> u32 {
        let used = self.ordinary + self.urgent.saturating_sub(config.reserved_high);
        (config.slots - config.reserved_high).saturating_sub(used)
    }
}

/// The slots of a running worker. A slot is had before a job is pulled.
#[derive(Debug, Clone)]
pub struct Slots {
    config: SlotsConfig,
    busy: Arc<Mutex<Busy>>,
    /// Long jobs that may run at once just now.
    long_now: Arc<AtomicU32>,
}

/// A job's slot, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    kind: Kind,
    busy: Arc<Mutex<Busy>>,
}

impl Slots {
    /// All free.
    #[must_use]
    pub fn new(config: SlotsConfig) -> Self {
        Self {
            config,
            busy: Arc::default(),
            long_now: Arc::new(AtomicU32::new(config.long_max)),
        }
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
        }
    }

    /// A slot for a job that was pulled; none when its kind must wait, as a long one may.
    #[must_use]
    pub fn take(&self, kind: Kind) -> Option<Slot> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let free = if kind.may_use_reserved() {
            busy.total() < self.config.slots
        } else {
            busy.open(self.config) > 0
        };
        let long_now = self.long_now.load(Ordering::Relaxed);
        if !free || (kind.is_long && busy.long >= long_now) {
            return None;
        }
        busy.add(kind, 1);
        Some(Slot {
            kind,
            busy: Arc::clone(&self.busy),
        })
    }

    /// How many jobs run.
    #[must_use]
    pub fn busy_count(&self) -> u32 {
        self.busy().total()
    }

    /// How many can.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.config.slots
    }

    fn busy(&self) -> Busy {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(self.kind, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                held.extend(slots.take(kind(Priority::ALL[priority], is_long)));
                let long = held.iter().filter(|slot: &&Slot| slot.kind.is_long).count();
                let ordinary = held.iter().filter(|slot| !slot.kind.may_use_reserved()).count();
                prop_assert!(held.len() <= 5 && long <= 2 && ordinary <= 3);
                prop_assert_eq!(slots.busy_count() as usize, held.len());
            }
        }
    }
}
