//! What is done again and again until the service stops.

use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Rounds with the same time between their beginnings. One that takes longer is followed by the
/// next at once, and those behind it are that much later: none is made up for.
#[derive(Debug)]
pub struct Beat {
    rounds: Interval,
    stop: CancellationToken,
}

impl Beat {
    /// The first round is now.
    ///
    /// # Panics
    /// When `period` is 0.
    #[must_use]
    pub fn every(period: Duration, stop: CancellationToken) -> Self {
        Self::from(Instant::now(), period, stop)
    }

    /// The first round is after one period.
    ///
    /// # Panics
    /// When `period` is 0.
    #[must_use]
    pub fn after(period: Duration, stop: CancellationToken) -> Self {
        Self::from(Instant::now() + period, period, stop)
    }

    fn from(first: Instant, period: Duration, stop: CancellationToken) -> Self {
        let mut rounds = interval_at(first, period);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { rounds, stop }
    }

    /// Waits for the next round; false once the service stops.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            _ = self.rounds.tick() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn the_first_round_is_at_once_or_after_a_period_and_the_others_each_a_period_later() {
        let began = Instant::now();
        let hour = Duration::from_secs(60 * 60);
        assert!(Beat::every(hour, CancellationToken::new()).next().await);
        let mut beat = Beat::after(PERIOD, CancellationToken::new());
        for round in 1..4 {
            assert!(beat.next().await);
            assert!(began.elapsed() >= PERIOD * round);
        }
    }

    #[tokio::test]
    async fn no_round_begins_once_the_service_stops() {
        let stop = CancellationToken::new();
        let mut beat = Beat::every(PERIOD, stop.clone());
        stop.cancel();
        assert!(!beat.next().await);
    }
}
