//! The pool against what succeeded: each disk's jobs played again in the order they ended.

use super::{Facts, Violation};
use crate::chaos::plan::SOURCES;
use crate::disk;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What the service itself keeps in a pool's root: its mark, and what the care for it found.
const POOLS_OWN: [&str; 2] = [".virtbus-pool", ".virtbus-report.json"];

/// What a disk must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// There, with this format and size.
    There { format: String, size: u64 },
    /// In the trash, by this job.
    Trashed { job: String, format: String },
    /// Deleted for good.
    Gone,
}

/// A job that succeeded.
struct Deed<'a> {
    revision: u64,
    id: &'a str,
    record: &'a Value,
}

/// All disks, as the jobs that succeeded left them.
#[derive(Default)]
struct Replay {
    fates: BTreeMap<String, Fate>,
    copies: BTreeMap<String, String>,
    violations: Vec<Violation>,
}

pub(super) fn judge(facts: &Facts, root: &Path) -> Vec<Violation> {
    let mut deeds: Vec<Deed<'_>> = facts
        .records
        .iter()
        .filter(|(_, held)| held.value["state"] == "succeeded")
        .map(|(id, held)| Deed {
            revision: held.revision,
            id,
            record: &held.value,
        })
        .collect();
    deeds.sort_by_key(|deed| deed.revision);
    let mut replay = Replay::default();
    for deed in &deeds {
        replay.play(deed);
    }
    let mut found = std::mem::take(&mut replay.violations);
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for (id, fate) in &replay.fates {
        found.extend(catalogued(facts, id, fate));
        found.extend(on_disk(facts, root, id, fate));
        expected.extend(file_of(facts, id, fate));
    }
    for (id, held) in &facts.disks {
        if !held.value.is_null() && !replay.fates.contains_key(id) {
            let text = format!("disk {id} is known, and nobody made it: {}", held.value);
            found.push(owned(&held.value, text));
        }
    }
    for (copy, source) in &replay.copies {
        let [one, other] = [source, copy].map(|id| place(root, id, &replay.fates[id]));
        if let (Some(one), Some(other)) = (one, other)
            && other.exists()
            && !disk::same(&one, &other)
        {
            found.push(Violation::general(format!("{copy} is no copy of {source}")));
        }
    }
    let stray = facts.files.iter().filter(|name| !expected.contains(*name));
    // What a dead service had promised of the pool's room goes when the next one promises some.
    let is_the_pools_own = |name: &&String| {
        let is_kept = ["locks/", "space/"].iter().any(|dir| name.starts_with(dir));
        is_kept || POOLS_OWN.contains(&name.as_str())
    };
    let stray = stray.filter(|name| !is_the_pools_own(name));
    found.extend(stray.map(|name| Violation::general(format!("stray file {name}"))));
    found
}

impl Replay {
    fn play(&mut self, deed: &Deed<'_>) {
        let text = |name: &str| deed.record["params"][name].as_str().unwrap_or_default();
        let disk = text("disk").to_owned();
        let format = match text("format") {
            "" => "qcow2",
            named => named,
        };
        let size = deed.record["result"]["virtual_size"].as_u64().unwrap_or(0);
        match deed.record["task"].as_str() {
            Some("create_disk") => self.make(deed, disk, format, size),
            Some("resize") => match self.fates.get_mut(&disk) {
                Some(Fate::There { size: old, .. }) => *old = size,
                other => {
                    let text = format!("resized {disk}, which was {other:?}");
                    self.violations.push(Violation::of(deed.id, text));
                }
            },
            Some("convert") => {
                match self.fates.get(&disk) {
                    Some(Fate::There { size: source, .. }) if *source == size => {}
                    other => {
                        let text = format!("copied {disk} as of {size}, which was {other:?}");
                        self.violations.push(Violation::of(deed.id, text));
                    }
                }
                let to = text("to").to_owned();
                if SOURCES.contains(&disk.as_str()) {
                    self.copies.insert(to.clone(), disk);
                }
                self.make(deed, to, format, size);
            }
            Some("delete_disk") => {
                if let Some(Fate::There { format, .. }) = self.fates.get(&disk) {
                    let (job, format) = (deed.id.to_owned(), format.clone());
                    let fate = match text("mode") {
                        "unlink" | "wipe" => Fate::Gone,
                        _ => Fate::Trashed { job, format },
                    };
                    self.fates.insert(disk, fate);
                }
            }
            Some(_) | None => {}
        }
    }

    fn make(&mut self, deed: &Deed<'_>, disk: String, format: &str, size: u64) {
        let wanted = deed.record["params"]["size"].as_u64();
        if wanted.is_some_and(|wanted| wanted != size) {
            let text = format!("{wanted:?} was asked for, and {size} is the result");
            self.violations.push(Violation::of(deed.id, text));
        }
        let format = format.to_owned();
        let before = self.fates.insert(disk, Fate::There { format, size });
        if let Some(before) = before {
            let text = format!("made a disk which was {before:?}");
            self.violations.push(Violation::of(deed.id, text));
        }
    }
}

/// About the job that had it last.
fn owned(record: &Value, text: String) -> Violation {
    match record["owner_job"].as_str() {
        Some(job) => Violation::of(job, text),
        None => Violation::general(text),
    }
}

fn catalogued(facts: &Facts, id: &str, fate: &Fate) -> Option<Violation> {
    let known = facts.disks.get(id).map_or(&Value::Null, |held| &held.value);
    let fits = match fate {
        Fate::There { format, size } => {
            known["state"] == "ready"
                && known["format"] == format.as_str()
                && known["virtual_size"] == *size
        }
        Fate::Trashed { job, .. } => {
            known["state"] == "trashed" && known["owner_job"] == job.as_str()
        }
        Fate::Gone => known["state"] == "deleted",
    };
    (!fits).then(|| owned(known, format!("disk {id} must be {fate:?}, and is {known}")))
}

fn place(root: &Path, id: &str, fate: &Fate) -> Option<std::path::PathBuf> {
    match fate {
        Fate::There { format, .. } => Some(disk::path(root, id, format)),
        Fate::Trashed { .. } | Fate::Gone => None,
    }
}

fn on_disk(facts: &Facts, root: &Path, id: &str, fate: &Fate) -> Option<Violation> {
    let (format, size) = match fate {
        Fate::There { format, size } => (format, size),
        Fate::Trashed { job, .. } => {
            let prefix = trash_prefix(id, job);
            let is_there = facts.files.iter().any(|name| name.starts_with(&prefix));
            return (!is_there).then(|| Violation::of(job, format!("{id} isn't in the trash")));
        }
        Fate::Gone => return None,
    };
    let path = disk::path(root, id, format);
    let found = virtual_size(&path, format);
    let is_right = found.as_ref().is_ok_and(|found| found == size);
    (!is_right).then(|| Violation::general(format!("file of {id} must be {fate:?}: {found:?}")))
}

fn trash_prefix(id: &str, job: &str) -> String {
    format!("trash/disk.{id}.{job}.")
}

/// The one file that a disk must have.
fn file_of(facts: &Facts, id: &str, fate: &Fate) -> Option<String> {
    match fate {
        Fate::There { format, .. } => Some(format!("disks/{id}.{format}")),
        Fate::Trashed { job, .. } => {
            // Whichever claim of that job it was; a second such file is a stray one.
            let prefix = trash_prefix(id, job);
            let found = facts.files.iter().find(|name| name.starts_with(&prefix));
            Some(found.cloned().unwrap_or(prefix))
        }
        Fate::Gone => None,
    }
}

/// What a guest sees, by the file's own head: thousands of qemu-img take minutes.
fn virtual_size(path: &Path, format: &str) -> Result<u64, String> {
    let read = || -> std::io::Result<u64> {
        let mut file = File::open(path)?;
        if format == "raw" {
            return Ok(file.metadata()?.len());
        }
        // Magic, version, backing's place and length, cluster bits; then the size.
        let mut head = [0; 32];
        file.read_exact(&mut head)?;
        let (_, size) = head.split_at(24);
        Ok(size.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    read().map_err(|error| error.to_string())
}
