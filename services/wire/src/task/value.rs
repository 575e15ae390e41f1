//! Values that only parameters hold: bounded numbers, disk and cluster sizes, names of files.

use crate::id::checked_text;
use crate::size::Size;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::{borrow::Cow, fmt, str::FromStr};

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// This number, or none when it's out of bounds.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        (MIN..=MAX).contains(&number).then_some(Self(number))
    }

    /// The nearest number that is in bounds.
    #[must_use]
    pub const fn nearest(number: u64) -> Self {
        if number < MIN {
            Self(MIN)
        } else if number > MAX {
            Self(MAX)
        } else {
            Self(number)
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        u64::try_from(number)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| D::Error::custom(format!("must be from {MIN} to {MAX}")))
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Bounded<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// The smallest unit of a disk, in bytes.
const SECTOR: u64 = 512;

/// The virtual size of a disk: whole sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DiskSize(Size);

impl DiskSize {
    /// This size, or none when it isn't a whole number of sectors.
    #[must_use]
    pub fn new(size: Size) -> Option<Self> {
        size.bytes().is_multiple_of(SECTOR).then_some(Self(size))
    }

    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl<'de> Deserialize<'de> for DiskSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Size::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("must be a multiple of 512 bytes"))
    }
}

impl JsonSchema for DiskSize {
    fn schema_name() -> Cow<'static, str> {
        "DiskSize".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Size::json_schema(generator);
        schema.insert(
            "description".into(),
            "Bytes, a multiple of 512, or text with an IEC unit; written as an integer.".into(),
        );
        if let Some(integer) = schema
            .pointer_mut("/oneOf/0")
            .and_then(|s| s.as_object_mut())
        {
            integer.insert("minimum".into(), SECTOR.into());
            integer.insert("multipleOf".into(), SECTOR.into());
        }
        schema
    }
}

/// The size of a qcow2 cluster: a power of two from 512 bytes to 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClusterSize(Size);

impl ClusterSize {
    const SHIFT_MIN: u32 = 9;
    const SHIFT_MAX: u32 = 21;
    /// The smallest with which qcow2 can keep sub-clusters (`extended_l2`), in bytes.
    pub const EXTENDED_L2_MIN: u64 = 1 << 14;

    /// This size, or none when it's no cluster size.
    #[must_use]
    pub fn new(size: Size) -> Option<Self> {
        let bytes = size.bytes();
        let fits = bytes.is_power_of_two()
            && (1 << Self::SHIFT_MIN..=1 << Self::SHIFT_MAX).contains(&bytes);
        fits.then_some(Self(size))
    }

    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.bytes()
    }

    /// What JSON Schema says of cluster sizes of at least so many bytes.
    pub(super) fn schema_from(bytes_min: u64) -> Schema {
        let sizes: Vec<u64> = (Self::SHIFT_MIN..=Self::SHIFT_MAX)
            .map(|shift| 1 << shift)
            .filter(|bytes| *bytes >= bytes_min)
            .collect();
        let texts = |shift: u32| {
            let whole = sizes.iter().filter(|b| b.trailing_zeros() >= shift);
            let texts: Vec<String> = whole.map(|bytes| (bytes >> shift).to_string()).collect();
            texts.join("|")
        };
        let pattern = format!("^(({})B|({})KiB|({})MiB)$", texts(0), texts(10), texts(20));
        json_schema!({
            "description": "A power of two from 512 bytes to 2 MiB.",
            "oneOf": [{ "type": "integer", "enum": sizes }, { "type": "string", "pattern": pattern }]
        })
    }
}

impl<'de> Deserialize<'de> for ClusterSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Size::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("must be a power of two from 512 bytes to 2 MiB"))
    }
}

impl JsonSchema for ClusterSize {
    fn schema_name() -> Cow<'static, str> {
        "ClusterSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Self::schema_from(1 << Self::SHIFT_MIN)
    }
}

checked_text!(
    /// The SHA-256 of a file, in lower-case hexadecimal digits.
    Sha256,
    "a SHA-256",
    "^[0-9a-f]{64}$",
    |text| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

checked_text!(
    /// The bare name of a file: no folder, no hidden file, no option of a tool.
    FileName,
    "a file name",
    "^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}$",
    |text| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'+' | b'-');
        (1..=200).contains(&text.len())
            && !text.starts_with(['.', '+', '-'])
            && text.bytes().all(inner)
    }
);

checked_text!(
    /// The name that a browser saves a download as.
    DownloadName,
    "a name for a download",
    r#"^[^\x00-\x20\x7f-\x9f/\\".-][^\x00-\x1f\x7f-\x9f/\\"]{0,199}$"#,
    |text| {
        let inner = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | '"');
        (1..=200).contains(&text.chars().count())
            && !text.starts_with([' ', '.', '-'])
            && text.chars().all(inner)
    }
);

checked_text!(
    /// Where an image is fetched from: http or https, without a user's name in it.
    SourceUrl,
    "an http or https URL",
    r"^https?://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?([/?][!-~]{0,1799})?$",
    url_fits
);

checked_text!(
    /// A word of a closed or agreed vocabulary: a flavour, a capability, a role, a topic.
    Token,
    "a token",
    "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$",
    |text| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
        (1..=128).contains(&text.len())
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && text.bytes().all(inner)
    }
);

fn url_fits(text: &str) -> bool {
    let Some(rest) = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
    else {
        return false;
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    path.len() <= 1_800 && path.bytes().all(|b| b.is_ascii_graphic()) && authority_fits(authority)
}

fn authority_fits(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => {
                let address = |b: u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
                if !(2..=45).contains(&host.len()) || !host.bytes().all(address) {
                    return false;
                }
                (host, port)
            }
            None => return false,
        },
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
            if host.len() > 253 || !host.bytes().all(name) {
                return false;
            }
            (host, port)
        }
    };
    let port_fits = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        });
    !host.is_empty() && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_another_scheme_a_user_or_a_blank_are_refused() {
        for text in [
            "http://a",
            "https://a.example:8443/x?y=1",
            "https://[2001:db8::1]/x",
            "http://a?x",
        ] {
            assert!(text.parse::<SourceUrl>().is_ok(), "{text}");
        }
        for text in [
            "file:///etc/passwd",
            "https://u:p@a/x",
            "https://",
            "https:///x",
            "https://a/ b",
            "https://a:b/",
            "https://[::1",
            "https://[]/x",
            "ftp://a/x",
            "",
        ] {
            assert!(text.parse::<SourceUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn file_names_stay_in_their_folder() {
        for text in ["..", ".x", "-x", "a/b", "", "a b", "a\0"] {
            assert!(text.parse::<FileName>().is_err(), "{text:?}");
        }
        for text in ["../x", "a\"b", "a\r\nb", " a", ""] {
            assert!(text.parse::<DownloadName>().is_err(), "{text:?}");
        }
        assert!("Übung 1 (neu).qcow2".parse::<DownloadName>().is_ok());
    }

    #[test]
    fn cluster_sizes_are_powers_of_two() {
        for json in ["512", "65536", "\"64KiB\"", "\"2MiB\""] {
            assert!(serde_json::from_str::<ClusterSize>(json).is_ok(), "{json}");
        }
        for json in ["256", "65537", "\"96KiB\"", "\"4MiB\"", "0"] {
            assert!(serde_json::from_str::<ClusterSize>(json).is_err(), "{json}");
        }
    }
}
