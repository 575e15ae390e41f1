//! What jobs are about: disks, media, domains.

use crate::id::{DiskId, DomainId, MediaId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// One disk, medium or domain. Written `disk.d7`: also the name of its lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Object {
    /// A disk.
    Disk(DiskId),
    /// A medium.
    Media(MediaId),
    /// A domain.
    Domain(DomainId),
}

/// A text that names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not an object: it must be disk., media. or domain. and an id")]
pub struct InvalidObject;

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(id) => write!(f, "disk.{id}"),
            Self::Media(id) => write!(f, "media.{id}"),
            Self::Domain(id) => write!(f, "domain.{id}"),
        }
    }
}

impl FromStr for Object {
    type Err = InvalidObject;

    fn from_str(text: &str) -> Result<Self, InvalidObject> {
        let object = match text.split_once('.') {
            Some(("disk", id)) => id.parse().map(Self::Disk),
            Some(("media", id)) => id.parse().map(Self::Media),
            Some(("domain", id)) => id.parse().map(Self::Domain),
            _ => return Err(InvalidObject),
        };
        object.map_err(|_| InvalidObject)
    }
}

impl TryFrom<String> for Object {
    type Error = InvalidObject;

    fn try_from(text: String) -> Result<Self, InvalidObject> {
        text.parse()
    }
}

impl From<Object> for String {
    fn from(object: Object) -> Self {
        object.to_string()
    }
}

impl From<&DiskId> for Object {
    fn from(id: &DiskId) -> Self {
        Self::Disk(id.clone())
    }
}

impl From<&MediaId> for Object {
    fn from(id: &MediaId) -> Self {
        Self::Media(id.clone())
    }
}

impl From<&DomainId> for Object {
    fn from(id: &DomainId) -> Self {
        Self::Domain(id.clone())
    }
}

impl JsonSchema for Object {
    fn schema_name() -> Cow<'static, str> {
        "Object".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A disk, a medium or a domain.",
            "type": "string",
            "pattern": "^(disk|media|domain)\\.[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
        })
    }
}

/// What a transfer fills or reads: a disk or a medium. In messages a key of that name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A disk.
    Disk(DiskId),
    /// A medium.
    Media(MediaId),
}

impl From<&DiskId> for Target {
    fn from(id: &DiskId) -> Self {
        Self::Disk(id.clone())
    }
}

impl From<&MediaId> for Target {
    fn from(id: &MediaId) -> Self {
        Self::Media(id.clone())
    }
}

impl From<&Self> for Target {
    fn from(target: &Self) -> Self {
        target.clone()
    }
}

/// As [`Object`] is written: `disk.d7`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Object::from(self).fmt(f)
    }
}

impl From<&Target> for Object {
    fn from(target: &Target) -> Self {
        match target {
            Target::Disk(id) => id.into(),
            Target::Media(id) => id.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_reads_back_from_its_text() {
        for text in ["disk.d7", "media.debian-13", "domain.web_1"] {
            assert_eq!(text.parse::<Object>().unwrap().to_string(), text);
        }
        for text in ["", "disk", "disk.", "disk.a.b", "pool.p", "disk.../x", "d7"] {
            assert!(text.parse::<Object>().is_err(), "{text:?}");
        }
    }
}
