//! Names and identifiers: text that was checked once, at the edge.
//!
//! Every type here is a string that follows a grammar. Inside the system the type is the proof;
//! a value that could become a wildcard of a subject, an option of a tool or a path can't exist.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A text that doesn't follow the grammar of what it should name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not {what}: it must match {grammar}")]
pub struct InvalidName {
    /// What was expected, with its article ("a job id").
    pub what: &'static str,
    /// The grammar as a regular expression.
    pub grammar: &'static str,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $grammar:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The grammar, as a regular expression that JSON Schema understands.
            pub const GRAMMAR: &'static str = $grammar;

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $crate::id::InvalidName;

            fn from_str(text: &str) -> Result<Self, $crate::id::InvalidName> {
                let fits: fn(&str) -> bool = $fits;
                if fits(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err($crate::id::InvalidName { what: $what, grammar: $grammar })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::id::InvalidName;

            fn try_from(text: String) -> Result<Self, $crate::id::InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $grammar })
            }
        }
    };
}

checked_text!(
    /// A pool or a hypervisor: one token of a subject. Both share one namespace.
    Label,
    "a pool or hypervisor name",
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    |text| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        ends_fit(text, 63, inner, |b| inner(b) || b == b'-')
    }
);

checked_text!(
    /// A job. UUIDv7 by convention.
    JobId,
    "a job id",
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,119}$",
    |text| starts_fit(text, 120, |b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
);

checked_text!(
    /// A disk.
    DiskId,
    "a disk id",
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    object_fits
);

checked_text!(
    /// A medium: an ISO image or a floppy.
    MediaId,
    "a media id",
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    object_fits
);

checked_text!(
    /// A domain, which is also its libvirt name.
    DomainId,
    "a domain id",
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    object_fits
);

checked_text!(
    /// A snapshot of a disk or a domain.
    SnapshotId,
    "a snapshot id",
    "^[A-Za-z0-9]([A-Za-z0-9_-]|\\.(?!\\.)){0,61}[A-Za-z0-9]$|^[A-Za-z0-9]$",
    dotted_fits
);

checked_text!(
    /// A worker: one service process. `<class>-<host name>` by default.
    WorkerId,
    "a worker id",
    "^[A-Za-z0-9]([A-Za-z0-9_-]|\\.(?!\\.)){0,61}[A-Za-z0-9]$|^[A-Za-z0-9]$",
    dotted_fits
);

checked_text!(
    /// A lock of a publisher's own.
    PublisherLock,
    "a lock name",
    "^x\\.[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    |text| text.strip_prefix("x.").is_some_and(object_fits)
);

checked_text!(
    /// A tenant. Never part of a key or a subject.
    Tenant,
    "a tenant",
    "^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}$",
    person_fits
);

checked_text!(
    /// A user. Never part of a key or a subject.
    User,
    "a user",
    "^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}$",
    person_fits
);

pub(crate) use checked_text;

/// One start of a service process. A worker that was started again has another one.
pub type BootId = uuid::Uuid;

impl JobId {
    /// A new id, ordered by time.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// Whether a publisher may choose this id: those of the system's own kind are refused.
    #[must_use]
    pub fn is_publishable(&self) -> bool {
        let numbered = ["storage-", "hypervisor-", "core-"].iter().any(|prefix| {
            self.0.strip_prefix(prefix).is_some_and(|rest| {
                let digits = rest.split('-').next().unwrap_or_default();
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            })
        });
        !numbered && !self.0.ends_with("-finish")
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

fn object_fits(text: &str) -> bool {
    starts_fit(text, 64, |b| {
        b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')
    })
}

fn dotted_fits(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ends_fit(text, 63, |b| b.is_ascii_alphanumeric(), inner) && !text.contains("..")
}

fn person_fits(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'@' | b'+' | b'-');
    starts_fit(text, 128, rest)
}

fn starts_fit(text: &str, length_max: usize, rest: impl Fn(u8) -> bool) -> bool {
    (1..=length_max).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(rest)
}

fn ends_fit(
    text: &str,
    length_max: usize,
    end: impl Fn(u8) -> bool,
    inner: impl Fn(u8) -> bool,
) -> bool {
    let bytes = text.as_bytes();
    (1..=length_max).contains(&bytes.len())
        && end(bytes[0])
        && end(bytes[bytes.len() - 1])
        && bytes.iter().all(|b| inner(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_would_leave_their_place_are_refused() {
        for text in [
            "",
            "-a",
            "../x",
            "a/b",
            "a\n",
            "a b",
            "*",
            ">",
            "a.b",
            &"x".repeat(300),
        ] {
            assert!(text.parse::<DiskId>().is_err(), "{text:?}");
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
        assert!("a..b".parse::<SnapshotId>().is_err());
        assert!("A".parse::<Label>().is_err());
        assert!("a-".parse::<Label>().is_err());
        assert!("a_b".parse::<Label>().is_err());
        assert!("disk.d1".parse::<PublisherLock>().is_err());
        assert!("x.".parse::<PublisherLock>().is_err());
        assert!("x.backup-web1".parse::<PublisherLock>().is_ok());
    }

    #[test]
    fn ids_of_the_systems_own_kind_are_not_a_publishers_to_choose() {
        for own in [
            "storage-812",
            "core-1",
            "hypervisor-7",
            "storage-812-0a1b2c3d",
            "x-finish",
        ] {
            assert!(!own.parse::<JobId>().expect(own).is_publishable(), "{own}");
        }
        for free in ["storage-a", "storage-", "web1", "finish"] {
            assert!(
                free.parse::<JobId>().expect(free).is_publishable(),
                "{free}"
            );
        }
        assert!(JobId::new().is_publishable());
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "[A-Za-z0-9_.-]{1,70}") {
            if let Ok(id) = text.parse::<DiskId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
