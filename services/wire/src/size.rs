//! Sizes: bytes, or text with an IEC unit.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// A number of bytes, at least 1. Read from an integer or from text such as `"10GiB"`; always
/// written as an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Size(u64);

/// What isn't a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a size: it must be a whole number of bytes above 0, or text such as \"10GiB\"")]
pub struct InvalidSize;

/// The largest number that every JSON reader keeps exact (2^53 - 1): more than 8 PiB.
const BYTES_MAX: u64 = (1 << 53) - 1;

const GRAMMAR: &str = "^[1-9][0-9]{0,15}(B|KiB|MiB|GiB|TiB|PiB)$";

impl Size {
    /// A size of this many bytes.
    ///
    /// # Errors
    /// 0, and what JSON readers can't keep exact (2^53 and more).
    pub fn from_bytes(bytes: u64) -> Result<Self, InvalidSize> {
        if (1..=BYTES_MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(InvalidSize)
        }
    }

    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.starts_with('0') || number.len() > 16 {
            return Err(InvalidSize);
        }
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "PiB" => 50,
            _ => return Err(InvalidSize),
        };
        let number: u64 = number.parse().map_err(|_| InvalidSize)?;
        number
            .checked_mul(1 << shift)
            .ok_or(InvalidSize)
            .and_then(Self::from_bytes)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that keeps it a whole number: `10GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ];
        match units
            .iter()
            .find(|(shift, _)| self.0.trailing_zeros() >= *shift)
        {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: a whole number of bytes above 0, or text such as \"10GiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Size::from_bytes(bytes).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map_err(|_| E::custom(InvalidSize))
                    .and_then(|b| self.visit_u64(b))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes, or text with an IEC unit; written as an integer.",
            "oneOf": [
                { "type": "integer", "minimum": 1, "maximum": BYTES_MAX },
                { "type": "string", "pattern": GRAMMAR }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_positive_numbers_with_an_iec_unit_are_sizes() {
        assert_eq!("10GiB".parse::<Size>().unwrap().bytes(), 10 << 30);
        for text in [
            "",
            "0",
            "0B",
            "-1",
            "1G",
            "1G ",
            "1 GiB",
            "+1GiB",
            "0x10B",
            "1.5GiB",
            "GiB",
            "9999999999PiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
        for json in [
            "0",
            "-1",
            "1.5",
            "\"-1\"",
            "\"1G \"",
            "9007199254740992",
            "null",
            "[]",
        ] {
            assert!(serde_json::from_str::<Size>(json).is_err(), "{json}");
        }
        assert_eq!(serde_json::from_str::<Size>("512").unwrap().bytes(), 512);
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes in 1..=BYTES_MAX) {
            let size = Size::from_bytes(bytes).unwrap();
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
    }
}
