//! The right of way: long work stands still while short urgent jobs run, since both share one disk.
//! It gives at most half of its time, and some seconds at a stretch.

use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// How long one that always went before stands still at a stretch.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of that has to be there again before it stands still once more: fewer, longer stops.
const WORTHWHILE: Duration = Duration::from_millis(50);

/// How many go first just now. Clones share one count.
#[derive(Clone, Debug, Default)]
pub struct Way(watch::Sender<u32>);

/// Goes first until it's dropped.
#[derive(Debug)]
pub struct Urgent(watch::Sender<u32>);

impl Way {
    /// Nobody goes first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets one more go first.
    #[must_use]
    pub fn first(&self) -> Urgent {
        self.0.send_modify(|count| *count += 1);
        Urgent(self.0.clone())
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Whether one that makes way stands still.
#[derive(Debug)]
pub struct Turn {
    /// None for one that makes way for nobody.
    way: Option<watch::Receiver<u32>>,
    stance: Stance,
}

impl Turn {
    pub(super) fn new(way: Option<&Way>) -> Self {
        Self {
            way: way.map(|way| way.0.subscribe()),
            stance: Stance::new(Instant::now()),
        }
    }

    /// Whether to stand still now.
    pub fn stands(&mut self) -> bool {
        let urgent = self.is_urgent();
        self.stance = self.stance.next(urgent, Instant::now());
        self.stance.stands
    }

    /// Ends when the answer may have become another one.
    pub async fn changed(&mut self) {
        let until = self.stance.until(self.is_urgent());
        let over = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let told = async {
            match &mut self.way {
                // Its sender is kept by whoever made this.
                Some(way) => drop(way.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = told => {}
        }
    }

    fn is_urgent(&self) -> bool {
        self.way.as_ref().is_some_and(|way| *way.borrow() > 0)
    }
}

/// Pure: what was given of the patience, and whether more is given now.
#[derive(Clone, Copy, Debug)]
struct Stance {
    stands: bool,
    patience: Duration,
    since: Instant,
}

impl Stance {
    fn new(now: Instant) -> Self {
        Self {
            stands: false,
            patience: PATIENCE,
            since: now,
        }
    }

    fn next(self, urgent: bool, now: Instant) -> Self {
        let took = now.saturating_duration_since(self.since);
        let (patience, least) = if self.stands {
            (self.patience.saturating_sub(took), Duration::from_nanos(1))
        } else {
            ((self.patience + took).min(PATIENCE), WORTHWHILE)
        };
        Self {
            stands: urgent && patience >= least,
            patience,
            since: now,
        }
    }

    /// When there's another answer, should nothing happen until then.
    fn until(self, urgent: bool) -> Option<Instant> {
        match (self.stands, urgent) {
            (true, _) => Some(self.since + self.patience),
            (false, true) => Some(self.since + WORTHWHILE.saturating_sub(self.patience)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_stands_while_somebody_goes_first() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let stands = Stance::new(now).next(true, at(10));
        assert!(stands.stands);
        assert_eq!(stands.until(true), Some(at(10) + PATIENCE));
        let goes = stands.next(false, at(30));
        assert!(!goes.stands && goes.until(false).is_none());
        assert_eq!(goes.patience, PATIENCE - Duration::from_millis(20));
        assert_eq!(goes.next(false, at(1000)).patience, PATIENCE);
    }

    #[test]
    fn it_goes_on_when_its_patience_is_over_and_stands_again_later() {
        let now = Instant::now();
        let stands = Stance::new(now).next(true, now);
        let over = stands.until(true).unwrap();
        let goes = stands.next(true, over);
        assert!(!goes.stands);
        assert_eq!(goes.until(true), Some(over + WORTHWHILE));
        assert!(!goes.next(true, over + WORTHWHILE / 2).stands);
        assert!(goes.next(true, over + WORTHWHILE).stands);
    }

    #[tokio::test(start_paused = true)]
    async fn it_hears_of_who_goes_first_and_of_its_end() {
        let way = Way::new();
        let mut turn = Turn::new(Some(&way));
        assert!(!turn.stands());
        let (one, other) = (way.first(), way.first());
        turn.changed().await;
        assert!(turn.stands());
        drop(one);
        assert!(turn.stands());
        drop(other);
        turn.changed().await;
        assert!(!turn.stands());
        let _long = way.first();
        turn.changed().await;
        assert!(turn.stands());
        let began = Instant::now();
        while turn.stands() {
            turn.changed().await;
        }
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_makes_way_for_nobody_never_stands() {
        let mut turn = Turn::new(None);
        assert!(!turn.stands());
        let waited = tokio::time::timeout(PATIENCE, turn.changed()).await;
        assert!(waited.is_err() && !turn.stands());
    }

    proptest! {
        #[test]
        fn whoever_makes_way_has_half_of_its_time(
            steps in prop::collection::vec((any::<bool>(), 0..7000_u64), 1..60),
        ) {
            let mut now = Instant::now();
            let (mut stance, mut stood, mut went) =
                (Stance::new(now), Duration::ZERO, Duration::ZERO);
            for (urgent, ms) in steps {
                let end = now + Duration::from_millis(ms);
                loop {
                    stance = stance.next(urgent, now);
                    let next = stance.until(urgent).map_or(end, |until| until.min(end));
                    *if stance.stands { &mut stood } else { &mut went } += next - now;
                    now = next;
                    if now >= end {
                        break;
                    }
                }
                prop_assert!(stood <= went + PATIENCE);
            }
        }
    }
}
