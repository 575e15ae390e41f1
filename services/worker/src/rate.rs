//! How fast work goes, and how long it will take: for tasks that only say how far they came.

use std::time::Duration;
use virtbus_wire::state::Progress;

/// How much of a rate is the newest measurement; the rest is what was known before.
const NEWEST: f64 = 0.3;
/// The least time between two measurements.
const WINDOW: Duration = Duration::from_millis(200);

/// The rate of one attempt, smoothed.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    last: Option<(Duration, u64)>,
    bytes_per_s: Option<f64>,
}

impl Rate {
    /// The progress with its rate and the time to go, where the task told bytes but neither.
    /// `now` is the time since the attempt began.
    pub(crate) fn fill(&mut self, progress: Progress, now: Duration) -> Progress {
        let Some(done) = progress.done_bytes else {
            return progress;
        };
        self.measure(done, now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is positive and below 2^53 bytes/s"
        )]
        let whole = |number: f64| number.round() as u64;
        let bytes_per_s = progress.bytes_per_s.or(self.bytes_per_s.map(whole));
        let left = progress.total_bytes.map(|total| total.saturating_sub(done));
        let eta_s = match (progress.eta_s, left, self.bytes_per_s) {
            (Some(known), _, _) => Some(known),
            (None, Some(left), Some(rate)) if rate >= 1.0 => Some(whole(as_f64(left) / rate)),
            (None, _, _) => None,
        };
        Progress {
            bytes_per_s,
            eta_s,
            ..progress
        }
    }

    fn measure(&mut self, done: u64, now: Duration) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, done));
            return;
        };
        let took = now.saturating_sub(then);
        if took < WINDOW {
            return;
        }
        let newest = as_f64(done.saturating_sub(before)) / took.as_secs_f64();
        let smoothed = |known: f64| known * (1.0 - NEWEST) + newest * NEWEST;
        self.bytes_per_s = Some(self.bytes_per_s.map_or(newest, smoothed));
        self.last = Some((now, done));
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes of disks are below 2^53 bytes"
)]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: u64) -> Progress {
        Progress {
            done_bytes: Some(done),
            total_bytes: Some(1000),
            ..Progress::default()
        }
    }

    #[test]
    fn a_steady_copy_has_its_rate_and_its_time_to_go() {
        let mut rate = Rate::default();
        assert_eq!(rate.fill(at(0), Duration::ZERO).bytes_per_s, None);
        for second in 1..=5 {
            let told = rate.fill(at(second * 100), Duration::from_secs(second));
            assert_eq!(told.bytes_per_s, Some(100));
            assert_eq!(told.eta_s, Some(10 - second));
        }
    }

    #[test]
    fn a_copy_that_stands_still_promises_nothing() {
        let mut rate = Rate::default();
        let told: Vec<Progress> = (0..3)
            .map(|second| rate.fill(at(0), Duration::from_secs(second)))
            .collect();
        assert_eq!((told[2].bytes_per_s, told[2].eta_s), (Some(0), None));
    }

    #[test]
    fn what_the_task_knows_better_stays() {
        let mut rate = Rate::default();
        let own = Progress {
            bytes_per_s: Some(7),
            eta_s: Some(9),
            ..at(10)
        };
        assert_eq!(rate.fill(own.clone(), Duration::from_secs(1)), own);
        let percent = Progress {
            percent: Some(3.0),
            ..Progress::default()
        };
        assert_eq!(rate.fill(percent.clone(), Duration::from_secs(2)), percent);
    }
}
