//! Figures out of samples.

/// Samples of one thing, at least one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn min(&self) -> f64 {
        self.percentile(0)
    }

    pub(crate) fn max(&self) -> f64 {
        self.percentile(100)
    }

    /// The nearest-rank percentile; 0 without samples.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    /// The middle one, and the extremes: `1.23 (1.10–1.50)`.
    pub(crate) fn spread(&self, digits: usize) -> String {
        let (median, min, max) = (self.median(), self.min(), self.max());
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    }

    /// Each sample over the one taken next to it.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn percentiles_are_samples_that_were_taken() {
        let hundred = samples(&(1..=100).rev().map(f64::from).collect::<Vec<_>>());
        let of = |percent| hundred.percentile(percent).round();
        assert_eq!([of(0), of(50), of(99), of(100)], [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(samples(&[7.0]).percentile(99).round(), 7.0);
    }

    #[test]
    fn a_ratio_is_that_of_neighbours() {
        let (ours, bare) = (samples(&[2.0, 9.0, 4.0]), samples(&[1.0, 3.0, 4.0]));
        assert_eq!(ours.over(&bare).spread(1), "2.0 (1.0–3.0)");
    }
}
