//! Long jobs that come while no slot takes such: they are put aside, so that short jobs behind them
//! get through, but only so many in a time, or they would all go round and round.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;
use virtbus_bus::Appetite;
use virtbus_wire::Priority;

/// How many long jobs of one priority are put aside per [`ASIDE`].
const ASIDE_MAX: usize = 16;
/// The time that [`ASIDE_MAX`] counts for.
const ASIDE: Duration = Duration::from_secs(10);

/// When the last ones were put aside, by priority; of each at most [`ASIDE_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Aside {
    high: VecDeque<Instant>,
    default: VecDeque<Instant>,
    low: VecDeque<Instant>,
}

impl Aside {
    /// Notes that a job of this priority is put aside.
    pub(crate) fn add(&mut self, priority: Priority, now: Instant) {
        let times = match priority {
            Priority::High => &mut self.high,
            Priority::Default => &mut self.default,
            Priority::Low => &mut self.low,
        };
        times.push_back(now);
        if times.len() > ASIDE_MAX {
            times.pop_front();
        }
    }

    /// What may be taken now: nothing of a priority of which enough were put aside. With that,
    /// when to ask again if something is curbed.
    pub(crate) fn curb(&self, appetite: Appetite, now: Instant) -> (Appetite, Option<Instant>) {
        let free_at = |times: &VecDeque<Instant>| {
            let oldest = times.front().filter(|_| times.len() >= ASIDE_MAX)?;
            Some(*oldest + ASIDE).filter(|free| *free > now)
        };
        let ends = [&self.high, &self.default, &self.low].map(free_at);
        let curbed = |end: Option<Instant>, wanted: u32| end.map_or(wanted, |_| 0);
        let appetite = Appetite {
            high: curbed(ends[0], appetite.high),
            default: curbed(ends[1], appetite.default),
            low: curbed(ends[2], appetite.low),
            low_first: appetite.low_first && ends[2].is_none(),
            ..appetite
        };
        (appetite, ends.into_iter().flatten().min())
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
        ahead: 0,
    };

    #[test]
    fn each_priority_is_curbed_by_itself_and_for_a_time() {
        for priority in Priority::ALL {
            let began = Instant::now();
            let mut aside = Aside::default();
            let step = Duration::from_millis(500);
            for n in 1..16 {
                aside.add(priority, began + n * step);
            }
            let last = began + 16 * step;
            assert_eq!(aside.curb(HUNGRY, last), (HUNGRY, None), "{priority}");
            aside.add(priority, last);
            let (curbed, free) = aside.curb(HUNGRY, last);
            assert_eq!(free, Some(began + step + ASIDE));
            for other in Priority::ALL {
                let expected = if other == priority {
                    0
                } else {
                    HUNGRY.of(other)
                };
                assert_eq!(curbed.of(other), expected, "{priority} {other}");
            }
            assert_eq!(curbed.low_first, priority != Priority::Low);
            let later = free.unwrap();
            assert_eq!(aside.curb(HUNGRY, later), (HUNGRY, None), "{priority}");
            // One more is put aside, and the next one's time counts.
            aside.add(priority, later);
            let next = aside.curb(HUNGRY, later).1;
            assert_eq!(next, Some(began + 2 * step + ASIDE), "{priority}");
        }
    }
}
