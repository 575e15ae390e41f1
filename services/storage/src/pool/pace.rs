//! How fast a copy may go: as fast as its pools' bandwidth.

use super::copy::Tell;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// The longest sleep at once: how soon a slow copy can be stopped.
const NAP: Duration = Duration::from_millis(100);

/// How long after its begin a copy may have passed so many bytes.
fn due(passed: u64, most: u64) -> Duration {
    let millis = u128::from(passed) * 1000 / u128::from(most.max(1));
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// The same teller, which comes back only when the next bytes may pass. To be called on a thread of
/// its own: it sleeps.
pub(super) fn paced(most: Option<u64>, tell: Tell<'_>) -> impl FnMut(u64, u64) -> bool {
    let began = Instant::now();
    move |passed, total| {
        loop {
            if !tell(passed, total) {
                return false;
            }
            let due = most.map_or(Duration::ZERO, |most| due(passed, most));
            match due.checked_sub(began.elapsed()) {
                None | Some(Duration::ZERO) => return true,
                Some(early) => sleep(early.min(NAP)),
            }
        }
    }
}

/// The slower one of two.
pub(super) fn slower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_to_its_bandwidth() {
        let began = Instant::now();
        let mut told = 0;
        let mut tell = |_: u64, _: u64| {
            told += 1;
            true
        };
        let mut slow = paced(Some(10 << 20), &mut tell);
        for mib in 1..=3 {
            assert!(slow(mib << 20, 4 << 20));
        }
        drop(slow);
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(told >= 3);
    }

    #[test]
    fn a_slow_copy_is_stopped_soon_and_a_free_one_never_waits() {
        let began = Instant::now();
        let mut looks = 3;
        let mut stop = |_: u64, _: u64| {
            looks -= 1;
            looks > 0
        };
        assert!(!paced(Some(1), &mut stop)(1 << 40, 1 << 40));
        let mut go = |_: u64, _: u64| true;
        assert!(paced(None, &mut go)(1 << 40, 1 << 40));
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn the_slower_pool_counts() {
        assert_eq!(slower(None, None), None);
        assert_eq!(slower(Some(3), None), Some(3));
        assert_eq!(slower(Some(3), Some(2)), Some(2));
    }
}
