//! What catalogue and pool say of each other, without reading or writing anything.

use crate::{
    disks::{Disk, Medium},
    pool::{Folder, Name},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_wire::{catalog::DiskState, task::Target};

/// Something on which catalogue and pool don't agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Of what kind.
    pub kind: Kind,
    /// The file, beneath the root of the pool, or of its archive.
    pub file: String,
    /// What it's the file of, such as `disk.d7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// More about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The catalogue says that there is a file, and there is none.
    Missing,
    /// A file that the catalogue doesn't know, or not there.
    Stray,
    /// The file's size, or how many snapshots are in it, isn't what the catalogue says.
    Size,
    /// The file's header isn't what the catalogue says.
    Header,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Stray, Self::Size, Self::Header];

    /// The name as it stands in reports and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stray => "stray",
            Self::Size => "size",
            Self::Header => "header",
        }
    }
}

/// One side of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Pool,
    Archive,
}

/// What the catalogue says of a pool.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) disks: Vec<Disk>,
    pub(super) media: Vec<Medium>,
}

/// What lies in a pool.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) names: BTreeSet<(Side, String)>,
    /// Whether there's an archive that was looked at.
    pub(super) has_archive: bool,
}

/// Where the files of something are by its record; none while a job is at it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    At(Side, Name),
    InTrash,
    Nowhere,
    Anywhere,
}

fn place(state: DiskState, at: Name, packed: Option<Name>) -> Place {
    match state {
        DiskState::Ready | DiskState::Broken => Place::At(Side::Pool, at),
        DiskState::Archived => packed.map_or(Place::Nowhere, |name| Place::At(Side::Archive, name)),
        DiskState::Trashed => Place::InTrash,
        DiskState::Missing | DiskState::Deleted => Place::Nowhere,
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            Place::Anywhere
        }
    }
}

/// Where each thing of the catalogue is to be.
fn places(records: &Records) -> BTreeMap<String, Place> {
    let disks = records.disks.iter().map(|disk| {
        let (id, format) = (&disk.id, disk.record.format);
        let (at, packed) = (Name::disk(id, format), Name::archived(id, format));
        (
            Target::from(id).to_string(),
            place(disk.record.state, at, Some(packed)),
        )
    });
    let media = records.media.iter().map(|medium| {
        let at = Name::media(&medium.id, medium.record.format);
        (
            Target::from(&medium.id).to_string(),
            place(medium.record.state, at, None),
        )
    });
    disks.chain(media).collect()
}

/// What isn't there, and what is there and shouldn't be. Each is to be looked at again before it's
/// told: jobs go on meanwhile.
pub(super) fn compare(records: &Records, files: &Files) -> Vec<(Side, Finding)> {
    let places = places(records);
    let mut found = Vec::new();
    for (object, place) in &places {
        let is_seen = match place {
            Place::At(Side::Archive, _) => files.has_archive,
            Place::At(Side::Pool, _) => true,
            Place::InTrash | Place::Nowhere | Place::Anywhere => false,
        };
        if let Place::At(side, name) = place
            && is_seen
            && !files.names.contains(&(*side, name.to_string()))
        {
            found.push((
                *side,
                finding(Kind::Missing, name.to_string(), Some(object)),
            ));
        }
    }
    for (side, file) in &files.names {
        let object = object_of(file);
        let place = object.as_ref().and_then(|object| places.get(object));
        let is_in_trash = file.starts_with(Folder::Trash.as_str());
        let is_right = match place {
            Some(Place::At(right, name)) => right == side && name.to_string() == *file,
            Some(Place::InTrash) => is_in_trash,
            Some(Place::Anywhere) => true,
            // What is over is removed from the trash.
            Some(Place::Nowhere) => is_in_trash,
            None => false,
        };
        if !is_right {
            found.push((*side, finding(Kind::Stray, file.clone(), object.as_ref())));
        }
    }
    found
}

pub(super) fn finding(kind: Kind, file: String, object: Option<&String>) -> Finding {
    Finding {
        kind,
        file,
        object: object.cloned(),
        detail: None,
    }
}

/// What a file is the file of, by its name.
fn object_of(file: &str) -> Option<String> {
    let (folder, name) = file.split_once('/')?;
    let first = name.split('.').next().filter(|id| !id.is_empty())?;
    match folder {
        "disks" => Some(format!("disk.{first}")),
        "media" => Some(format!("media.{first}")),
        "trash" => {
            let mut tokens = name.rsplitn(3, '.');
            let (_claim, _job) = (tokens.next()?, tokens.next()?);
            tokens.next().map(str::to_owned)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn disk(id: &str, state: &str) -> Disk {
        let record = json!({ "pool": "default", "format": "qcow2", "state": state,
                             "updated_at": "2026-11-21T16:30:00.000Z" });
        Disk {
            id: id.parse().unwrap(),
            record: serde_json::from_value(record).unwrap(),
            revision: 1,
        }
    }

    fn files(names: &[(Side, &str)]) -> Files {
        Files {
            names: names
                .iter()
                .map(|(side, name)| (*side, (*name).to_owned()))
                .collect(),
            has_archive: true,
        }
    }

    fn found(disks: Vec<Disk>, names: &[(Side, &str)]) -> Vec<(Kind, String)> {
        let records = Records {
            disks,
            media: Vec::new(),
        };
        let found = compare(&records, &files(names)).into_iter();
        found
            .map(|(_, finding)| (finding.kind, finding.file))
            .collect()
    }

    #[test]
    fn what_is_where_it_should_be_is_not_told() {
        let disks = vec![
            disk("d1", "ready"),
            disk("d2", "archived"),
            disk("d3", "trashed"),
            disk("d4", "creating"),
            disk("d5", "deleted"),
            disk("d6", "missing"),
        ];
        let names = [
            (Side::Pool, "disks/d1.qcow2"),
            (Side::Archive, "disks/d2.qcow2.zst"),
            (Side::Pool, "trash/disk.d3.j1.1"),
            (Side::Pool, "disks/d4.qcow2"),
            (Side::Pool, "trash/disk.d5.j1.1"),
        ];
        assert_eq!(found(disks, &names), []);
    }

    #[test]
    fn files_that_are_missing_or_too_many_are_told_by_name() {
        let disks = vec![
            disk("d1", "ready"),
            disk("d2", "archived"),
            disk("d3", "ready"),
        ];
        let names = [
            (Side::Pool, "disks/d2.qcow2"),
            (Side::Pool, "disks/d3.raw"),
            (Side::Pool, "disks/d9.qcow2"),
            (Side::Pool, "trash/disk.d3.j1.1"),
            (Side::Pool, "media/m1.iso"),
        ];
        let text = |kind, file: &str| (kind, file.to_owned());
        assert_eq!(
            found(disks, &names),
            [
                text(Kind::Missing, "disks/d1.qcow2"),
                text(Kind::Missing, "disks/d2.qcow2.zst"),
                text(Kind::Missing, "disks/d3.qcow2"),
                text(Kind::Stray, "disks/d2.qcow2"),
                text(Kind::Stray, "disks/d3.raw"),
                text(Kind::Stray, "disks/d9.qcow2"),
                text(Kind::Stray, "media/m1.iso"),
                text(Kind::Stray, "trash/disk.d3.j1.1"),
            ]
        );
    }

    #[test]
    fn an_archive_that_was_not_seen_misses_nothing() {
        let records = Records {
            disks: vec![disk("d1", "archived")],
            media: Vec::new(),
        };
        assert_eq!(compare(&records, &Files::default()), []);
    }
}
