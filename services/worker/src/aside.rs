//! Long jobs that come while no slot takes such: they are put aside, so that short jobs behind them
//! get through, but only so many in a time, or they would all go round and round.

use std::time::Duration;
use tokio::time::Instant;
use virtbus_bus::Appetite;
use virtbus_wire::Priority;

/// How many long jobs of one priority are put aside per [`ASIDE`].
const ASIDE_MAX: u32 = 16;
/// The time that [`ASIDE_MAX`] counts for.
const ASIDE: Duration = Duration::from_secs(10);

/// How many were put aside lately, by priority.
#[derive(Debug)]
pub(crate) struct Aside {
    since: Instant,
    high: u32,
    default: u32,
    low: u32,
}

impl Aside {
    /// None so far.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            high: 0,
            default: 0,
            low: 0,
        }
    }

    /// Notes that a job of this priority is put aside.
    pub(crate) fn add(&mut self, priority: Priority) {
        match priority {
            Priority::High => self.high += 1,
            Priority::Default => self.default += 1,
            Priority::Low => self.low += 1,
        }
    }

    /// What may be taken: nothing of a priority of which enough were put aside.
    pub(crate) fn curb(&mut self, appetite: Appetite, now: Instant) -> Appetite {
        if now.duration_since(self.since) >= ASIDE {
            *self = Self::new(now);
        }
        let curbed = |count: u32, wanted: u32| if count < ASIDE_MAX { wanted } else { 0 };
        Appetite {
            high: curbed(self.high, appetite.high),
            default: curbed(self.default, appetite.default),
            low: curbed(self.low, appetite.low),
            low_first: appetite.low_first && self.low < ASIDE_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUNGRY: Appetite = Appetite {
        high: 4,
        default: 3,
        low: 2,
        low_first: true,
    };

    #[test]
    fn each_priority_is_curbed_by_itself_and_for_a_time() {
        for priority in Priority::ALL {
            let began = Instant::now();
            let mut aside = Aside::new(began);
            for _ in 1..ASIDE_MAX {
                aside.add(priority);
            }
            assert_eq!(aside.curb(HUNGRY, began), HUNGRY, "{priority}");
            aside.add(priority);
            let curbed = aside.curb(HUNGRY, began + ASIDE - Duration::from_millis(1));
            for other in Priority::ALL {
                let expected = if other == priority {
                    0
                } else {
                    HUNGRY.of(other)
                };
                assert_eq!(curbed.of(other), expected, "{priority} {other}");
            }
            assert_eq!(curbed.low_first, priority != Priority::Low);
            assert_eq!(aside.curb(HUNGRY, began + ASIDE), HUNGRY, "{priority}");
        }
    }
}
