//! How far a job came: the stages of its work, one after the other, each with its share of all the
//! bytes that are passed.

use super::Pace;
use virtbus_wire::state::Progress;

/// A stage of a job's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    phase: &'static str,
    /// Bytes that were passed by the stages before.
    before: u64,
    /// Bytes that are passed by this one.
    bytes: u64,
    /// Bytes that are passed by all.
    all: u64,
}

impl Stage {
    /// The only one.
    pub(crate) fn only(phase: &'static str, bytes: u64) -> Self {
        Self::first(phase, bytes, bytes)
    }

    /// The first one; `all` bytes are passed by it and those that come after it.
    pub(crate) fn first(phase: &'static str, bytes: u64, all: u64) -> Self {
        Self {
            phase,
            before: 0,
            bytes,
            all,
        }
    }

    /// The one that comes after this.
    pub(crate) fn then(self, phase: &'static str, bytes: u64) -> Self {
        Self {
            phase,
            before: self.before.saturating_add(self.bytes),
            bytes,
            ..self
        }
    }

    /// Tells that so many percent of this stage are done.
    pub(crate) fn tell(&self, pace: &Pace<'_>, percent: f64) {
        (pace.progress)(self.at(percent));
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a number of bytes, for people"
    )]
    fn at(&self, percent: f64) -> Progress {
        let share = (percent / 100.0).clamp(0.0, 1.0);
        let passed = self.before as f64 + self.bytes as f64 * share;
        let percent = match self.all {
            // Nothing is passed, so what is done is the stage itself.
            0 => share * 100.0,
            all => (passed * 100.0 / all as f64).min(100.0),
        };
        Progress {
            percent: Some(percent),
            phase: Some(self.phase.to_owned()),
            done_bytes: Some((passed as u64).min(self.all)),
            total_bytes: Some(self.all),
            bytes_per_s: None,
            eta_s: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stage: Stage, percent: f64) -> (f64, u64, u64) {
        let told = stage.at(percent);
        (
            told.percent.unwrap(),
            told.done_bytes.unwrap(),
            told.total_bytes.unwrap(),
        )
    }

    #[test]
    fn a_stage_goes_on_where_the_one_before_ended() {
        let copy = Stage::first("copy", 30, 40);
        let verify = copy.then("verify", 10);
        assert_eq!(told(copy, 0.0), (0.0, 0, 40));
        assert_eq!(told(copy, 50.0), (37.5, 15, 40));
        assert_eq!(told(copy, 100.0), told(verify, 0.0));
        assert_eq!(told(verify, 100.0), (100.0, 40, 40));
        assert_eq!(told(Stage::only("convert", 8), 25.0), (25.0, 2, 8));
    }

    #[test]
    fn no_stage_goes_beyond_the_end() {
        // A file that grew since it was measured.
        let late = Stage::first("copy", 30, 40).then("verify", 30);
        assert_eq!(told(late, 100.0), (100.0, 40, 40));
        assert_eq!(told(Stage::only("archive", 0), 100.0), (100.0, 0, 0));
        assert_eq!(told(Stage::only("convert", 8), 120.0), (100.0, 8, 8));
    }
}
