//! The progress that `qemu-img -p` prints: records such as `    (12.34/100%)`, each followed by
//! a carriage return.

/// The percentage of one record, 0 to 100; none if the record is anything else.
pub fn percent(record: &str) -> Option<f64> {
    let number = record.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    // `f64::from_str` also takes "inf", "nan", signs and exponents, which no tool prints.
    if !number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return None;
    }
    number
        .parse()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent))
}

/// Lets only rising values through: tools with several passes start over, progress must not.
#[derive(Debug, Default)]
pub struct Monotonic {
    last: Option<f64>,
}

impl Monotonic {
    /// A filter that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value if it's above all before it.
    pub fn rise(&mut self, value: f64) -> Option<f64> {
        let rises = !value.is_nan() && self.last.is_none_or(|last| value > last);
        rises.then(|| *self.last.insert(value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_of_qemu_img_are_read() {
        assert_eq!(percent("    (0.00/100%)"), Some(0.0));
        assert_eq!(percent("    (12.34/100%)"), Some(12.34));
        assert_eq!(percent("    (100.00/100%)\n"), Some(100.0));
    }

    #[test]
    fn anything_else_is_no_progress() {
        let others = [
            "",
            "()",
            "(/100%)",
            "(inf/100%)",
            "(nan/100%)",
            "(-1/100%)",
            "(1e1/100%)",
        ];
        for other in others {
            assert_eq!(percent(other), None, "{other}");
        }
        assert_eq!(percent("(100.01/100%)"), None);
        assert_eq!(percent("Image resized."), None);
    }

    proptest! {
        #[test]
        fn no_record_makes_it_panic(record in "\\PC*") {
            prop_assert!(percent(&record).is_none_or(|value| (0.0..=100.0).contains(&value)));
        }

        #[test]
        fn what_is_nearly_a_record_is_read_or_refused(number in "[0-9.]{0,9}") {
            let read = percent(&format!("    ({number}/100%)"));
            let fits = number.parse::<f64>().ok().filter(|value| *value <= 100.0);
            prop_assert_eq!(read, fits);
        }

        #[test]
        fn only_rising_values_come_through(values in prop::collection::vec(any::<f64>(), 0..50)) {
            let mut rising = Monotonic::new();
            let seen: Vec<f64> = values.into_iter().filter_map(|value| rising.rise(value)).collect();
            prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
