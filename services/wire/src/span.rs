//! Lengths of time, as text with one unit: `90s`, `2h`, `7d`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// A length of time in whole milliseconds, printed in the largest unit that keeps it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

/// A text that isn't a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a length of time such as \"90s\", \"2h\" or \"7d\"")]
pub struct InvalidSpan;

/// The units, the largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Span {
    /// This many days.
    #[must_use]
    pub const fn days(days: u32) -> Self {
        Self(days as u64 * UNITS[0].1)
    }

    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let plain = number == "0" || !number.starts_with('0');
        if !(1..=9).contains(&number.len()) || !plain {
            return Err(InvalidSpan);
        }
        let (_, millis) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or(InvalidSpan)?;
        let number: u64 = number.parse().map_err(|_| InvalidSpan)?;
        Ok(Self(number * millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(_, millis)| self.0 > 0 && self.0.is_multiple_of(*millis))
        {
            Some((unit, millis)) => write!(f, "{}{unit}", self.0 / millis),
            None => f.write_str("0s"),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidSpan;

    fn try_from(text: String) -> Result<Self, InvalidSpan> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: a whole number and a unit.",
            "type": "string",
            "pattern": "^(0|[1-9][0-9]{0,8})(ms|s|m|h|d)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_back_in_its_largest_unit() {
        for (text, printed) in [("7d", "7d"), ("24h", "1d"), ("90s", "90s"), ("0m", "0s")] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), printed);
        }
        for text in [
            "",
            "7",
            "d",
            "-1s",
            "1.5h",
            "07d",
            "1w",
            "1 h",
            "9999999999s",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }
}
