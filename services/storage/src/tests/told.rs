//! What a job tells of its progress, from the first word to the last.

use std::sync::Mutex;
use virtbus_wire::state::Progress;

/// What was told of the progress.
#[derive(Default)]
pub(super) struct Told(Mutex<Vec<Progress>>);

impl Told {
    pub(super) fn note(&self, progress: &Progress) {
        self.0.lock().unwrap().push(progress.clone());
    }

    pub(super) fn percents(&self) -> Vec<f64> {
        let told = self.0.lock().unwrap();
        told.iter().map(|step| step.percent.unwrap()).collect()
    }

    /// The phases as they came, each with the percentage it ended at. Nothing went back in between,
    /// and it was one whole from the first to the last.
    pub(super) fn stages(&self) -> Vec<(String, f64)> {
        let told = self.0.lock().unwrap();
        let mut stages: Vec<(String, f64)> = Vec::new();
        for (number, step) in told.iter().enumerate() {
            let (percent, phase) = (step.percent.unwrap(), step.phase.clone().unwrap());
            let before = told[..number].last().unwrap_or(step);
            assert!(before.percent <= step.percent, "{told:#?}");
            assert!(before.done_bytes <= step.done_bytes, "{told:#?}");
            assert_eq!(before.total_bytes, step.total_bytes, "{told:#?}");
            assert!(step.done_bytes <= step.total_bytes, "{told:#?}");
            match stages.last_mut() {
                Some((last, ended)) if *last == phase => *ended = percent,
                Some(_) | None => stages.push((phase, percent)),
            }
        }
        assert!(stages.last().is_none_or(|(_, ended)| *ended == 100.0));
        stages
    }
}
