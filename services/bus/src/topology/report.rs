//! What [`apply`](super::apply) found and did, for people and for programs.

use super::{Change, Effect};
use serde::Serialize;
use std::fmt;

/// Something the server holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Asset {
    /// A stream.
    Stream {
        /// Its name.
        name: String,
    },
    /// A key-value bucket.
    Bucket {
        /// Its name, without `KV_`.
        name: String,
    },
    /// A consumer.
    Consumer {
        /// The stream it is on.
        stream: String,
        /// Its name.
        name: String,
    },
}

impl Asset {
    pub(super) fn stream_named(name: &str) -> Self {
        Self::Stream { name: name.into() }
    }

    pub(super) fn bucket(name: &str) -> Self {
        Self::Bucket { name: name.into() }
    }

    pub(super) fn consumer(stream: &str, name: &str) -> Self {
        Self::Consumer {
            stream: stream.into(),
            name: name.into(),
        }
    }

    /// The stream it is, or lies in.
    #[must_use]
    pub fn stream(&self) -> String {
        match self {
            Self::Stream { name } => name.clone(),
            Self::Bucket { name } => format!("KV_{name}"),
            Self::Consumer { stream, .. } => stream.clone(),
        }
    }
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { name } => write!(f, "stream {name}"),
            Self::Bucket { name } => write!(f, "bucket {name}"),
            Self::Consumer { stream, name } => write!(f, "consumer {stream} {name}"),
        }
    }
}

/// What became of an asset. After a dry run: what would become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be, but for what is [kept](Effect::Kept).
    Same,
    /// Was missing.
    Created,
    /// Differed.
    Updated,
    /// Differs (or is missing), and the server won't have it otherwise. Nothing was changed.
    Refused {
        /// The server's word, or ours where we know that it would refuse.
        reason: String,
    },
}

/// One asset of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    /// Which.
    #[serde(flatten)]
    pub asset: Asset,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Every field that differed, also those that stay.
    pub changes: Vec<Change>,
}

/// All assets, in the order they are made in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// One per asset.
    pub items: Vec<Item>,
}

impl Report {
    /// Those that differed or were missing, refused ones included.
    pub fn drifted(&self) -> impl Iterator<Item = &Item> {
        self.items
            .iter()
            .filter(|item| item.outcome != Outcome::Same)
    }

    /// Those that are not as they should be, and can't be made so.
    pub fn refused(&self) -> impl Iterator<Item = &Item> {
        self.items
            .iter()
            .filter(|item| matches!(item.outcome, Outcome::Refused { .. }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let verb = match (&item.outcome, self.dry_run) {
                (Outcome::Same, _) => "as wanted",
                (Outcome::Created, false) => "created",
                (Outcome::Created, true) => "would be created",
                (Outcome::Updated, false) => "updated",
                (Outcome::Updated, true) => "would be updated",
                (Outcome::Refused { .. }, _) => "REFUSED",
            };
            write!(f, "{}: {verb}", item.asset)?;
            if let Outcome::Refused { reason } = &item.outcome {
                write!(f, ": {reason}")?;
            }
            writeln!(f)?;
            for Change {
                field,
                wanted,
                found,
                effect,
            } in &item.changes
            {
                match effect {
                    Effect::Set => writeln!(f, "  {field}: {found} -> {wanted}")?,
                    Effect::Kept => {
                        writeln!(f, "  {field}: {found} stays, more than the file's {wanted}")?;
                    }
                    Effect::Fixed => {
                        writeln!(
                            f,
                            "  {field}: {found}, should be {wanted}; can't be changed"
                        )?;
                    }
                }
            }
        }
        Ok(())
    }
}
