//! Comparing catalogue and pool, and telling of it.

use super::{
    CareError,
    compare::{Files, Finding, Kind, Side, compare, finding},
    sides,
};
use crate::{
    blocking,
    disks::{CatalogError, Disk, Medium},
    gate::{self, Expected, Known},
    pool::{Folder, Name, Pool, PoolError, Root, root::facts_of},
    store::Store,
    task::context,
};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use virtbus_inspector::{Fault, Report as Inspected};
use virtbus_wire::{Code, Label, Timestamp, catalog::DiskState, task::Target};

/// The report's name in the pool's root.
const REPORT: &str = ".virtbus-report.json";
/// The most findings that a report lists; all are counted.
const FINDINGS_MAX: usize = 1_000;
/// The most bytes of a report that are read: far above what so many findings take.
const REPORT_BYTES_MAX: usize = 4 << 20;

/// What catalogue and pool said of each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The pool.
    pub pool: Label,
    /// When it was looked at.
    pub at: Timestamp,
    /// The disks and media that the catalogue has in the pool.
    pub records: u64,
    /// The files that were there.
    pub files: u64,
    /// Whether the pool's archive was looked at too.
    pub archive: bool,
    /// How many findings there are of each kind.
    pub counts: [(Kind, u64); 4],
    /// The first of them.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings of this kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        let mut of_kind = self.counts.iter().filter(|(of, _)| *of == kind);
        of_kind.next().map_or(0, |(_, count)| *count)
    }

    pub(super) fn log(&self) {
        for finding in &self.findings {
            tracing::warn!(pool = %self.pool, kind = finding.kind.as_str(), file = finding.file,
                object = finding.object, detail = finding.detail,
                "catalogue and pool don't agree");
        }
        tracing::info!(pool = %self.pool, records = self.records, files = self.files,
            findings = self.findings.len(), "catalogue and pool were compared");
    }
}

/// The last report of a pool, if there's one that can be read.
pub(super) async fn last(root: &Root) -> Result<Option<Report>, PoolError> {
    let root = root.clone();
    let text = blocking::look(move || root.read_note(REPORT, REPORT_BYTES_MAX)).await?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

impl Store {
    /// Compares, and writes what was found to the pool.
    pub(super) async fn reconcile(&self, pool: &Pool, root: &Root) -> Result<Report, CareError> {
        let sides = sides(pool, root).await;
        // The files first: what is made after that is not missed.
        let mut files = Files::default();
        for (side, root) in &sides {
            files.has_archive |= *side == Side::Archive;
            let at = root.clone();
            let listed = blocking::look(move || names(&at)).await?;
            files
                .names
                .extend(listed.into_iter().map(|name| (*side, name)));
        }
        let records = self.records(pool).await?;
        let mut findings = Vec::new();
        for (side, found) in compare(&records, &files) {
            let root = sides
                .iter()
                .find(|(of, _)| *of == side)
                .map(|(_, root)| root);
            if let Some(root) = root
                && self.is_still(root, &found).await?
            {
                findings.push(found);
            }
        }
        for disk in &records.disks {
            findings.extend(self.inspect(root, disk).await?);
        }
        for medium in &records.media {
            findings.extend(self.inspect_medium(root, medium).await?);
        }
        findings.sort();
        let count = |kind| {
            findings
                .iter()
                .filter(|finding| finding.kind == kind)
                .count() as u64
        };
        let report = Report {
            pool: pool.name.clone(),
            at: Timestamp::now(),
            records: (records.disks.len() + records.media.len()) as u64,
            files: files.names.len() as u64,
            archive: files.has_archive,
            counts: Kind::ALL.map(|kind| (kind, count(kind))),
            findings: findings.iter().take(FINDINGS_MAX).cloned().collect(),
        };
        let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
        let root = root.clone();
        let written: Result<(), PoolError> =
            blocking::act(move || root.write_note(REPORT, &text)).await;
        written?;
        Ok(report)
    }

    /// Whether something that was found is so still, though nobody changes it.
    async fn is_still(&self, root: &Root, found: &Finding) -> Result<bool, CareError> {
        let Some((folder, file)) = found.file.split_once('/') else {
            return Ok(false);
        };
        let folder = Folder::ALL.into_iter().find(|of| of.as_str() == folder);
        let Some(name) = folder.map(|folder| Name::listed(folder, file.to_owned())) else {
            return Ok(false);
        };
        let before = self.revision(found).await?;
        let at = root.clone();
        // What isn't a plain file is there as well.
        let is_there: Result<bool, PoolError> = blocking::look(move || match at.facts(&name) {
            Ok(facts) => Ok(facts.is_some()),
            Err(PoolError::NotPlain { .. }) => Ok(true),
            Err(error) => Err(error),
        })
        .await;
        let is_so = is_there? == (found.kind == Kind::Stray);
        let after = self.revision(found).await?;
        Ok(is_so && before == after && !after.is_some_and(|(_, state)| is_changing(state)))
    }

    async fn revision(&self, found: &Finding) -> Result<Option<(u64, DiskState)>, CatalogError> {
        let object = found
            .object
            .as_ref()
            .and_then(|object| object.split_once('.'));
        Ok(match object {
            Some(("disk", id)) => match id.parse() {
                Ok(id) => {
                    let disk = self.disks.get(&id).await?;
                    disk.map(|disk| (disk.revision, disk.record.state))
                }
                Err(_) => None,
            },
            Some(("media", id)) => match id.parse() {
                Ok(id) => {
                    let medium = self.media.get(&id).await?;
                    medium.map(|medium| (medium.revision, medium.record.state))
                }
                Err(_) => None,
            },
            Some(_) | None => None,
        })
    }

    /// What a disk's header says that the catalogue doesn't, if nobody is at it.
    async fn inspect(&self, root: &Root, disk: &Disk) -> Result<Option<Finding>, CareError> {
        let is_idle = disk.record.state == DiskState::Ready && disk.record.in_use_by.is_empty();
        if !is_idle {
            return Ok(None);
        }
        let below = match &disk.record.backing {
            Some(backing) => self.disks.get(backing).await?,
            None => None,
        };
        let (file, format) = (context::file_of(disk), disk.record.format);
        let looked = looked_at(root, &file, move |file| gate::look(file, format)).await;
        let expected = context::expected(disk, below.as_ref());
        let of_any_size = Expected {
            known: Known::default(),
            ..expected.clone()
        };
        let found = match looked {
            Ok(None) => None,
            Ok(Some((found, _))) => match gate::check(found.clone(), &of_any_size) {
                Err(error) => Some((Kind::Header, error.code.to_string())),
                Ok(_) => gate::check(found, &expected)
                    .err()
                    .map(|error| (Kind::Size, error.code.to_string())),
            },
            Err(error @ PoolError::NotPlain { .. }) => {
                Some((Kind::Header, error.code().to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        let Some((kind, detail)) = found else {
            return Ok(None);
        };
        let newest = self.disks.get(&disk.id).await?;
        if newest.is_none_or(|newest| newest.revision != disk.revision) {
            return Ok(None);
        }
        Ok(Some(detailed(kind, &file, (&disk.id).into(), detail)))
    }

    /// What a medium's file is that the catalogue doesn't say, if nobody is at it.
    async fn inspect_medium(
        &self,
        root: &Root,
        medium: &Medium,
    ) -> Result<Option<Finding>, CareError> {
        let (id, record) = (&medium.id, &medium.record);
        if record.state != DiskState::Ready {
            return Ok(None);
        }
        let file = Name::media(id, record.format);
        let found = match looked_at(root, &file, gate::look_at_foreign).await {
            Ok(None) => None,
            Ok(Some((found, length))) => {
                match gate::check_foreign(found, record.format, u64::MAX) {
                    Err(error) => Some((Kind::Header, error.code)),
                    Ok(_) if record.virtual_size == Some(length) => None,
                    Ok(_) => Some((Kind::Size, Code::ImageFormatMismatch)),
                }
            }
            Err(error @ PoolError::NotPlain { .. }) => Some((Kind::Header, error.code())),
            Err(error) => return Err(error.into()),
        };
        let Some((kind, code)) = found else {
            return Ok(None);
        };
        let newest = self.media.get(id).await?;
        if newest.is_none_or(|newest| newest.revision != medium.revision) {
            return Ok(None);
        }
        Ok(Some(detailed(kind, &file, id.into(), code.to_string())))
    }
}

/// What is found in a file, and its length in bytes; none if it isn't there, which is told as
/// missing.
async fn looked_at(
    root: &Root,
    name: &Name,
    look: impl FnOnce(&OwnedFd) -> gate::Found + Send + 'static,
) -> Result<Option<(Result<Inspected, Fault>, u64)>, PoolError> {
    let (root, name) = (root.clone(), name.clone());
    blocking::look(move || {
        let Some(file) = root.open(&name)? else {
            return Ok(None);
        };
        let refused = |source| PoolError::Refused {
            act: "read",
            name: name.to_string(),
            source,
        };
        let found = look(&file).map_err(refused)?;
        let length = facts_of(&file).map_err(refused)?.length;
        Ok(Some((found, length)))
    })
    .await
}

fn detailed(kind: Kind, file: &Name, of: Target, detail: String) -> Finding {
    Finding {
        detail: Some(detail),
        ..finding(kind, file.to_string(), Some(&of.to_string()))
    }
}

fn is_changing(state: DiskState) -> bool {
    match state {
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            true
        }
        DiskState::Ready
        | DiskState::Archived
        | DiskState::Trashed
        | DiskState::Missing
        | DiskState::Broken
        | DiskState::Deleted => false,
    }
}

/// What lies in the folders that the catalogue knows of; what jobs are making is left out.
fn names(root: &Root) -> Result<Vec<String>, PoolError> {
    let mut names = Vec::new();
    for folder in [Folder::Disks, Folder::Media, Folder::Trash] {
        let listed = root.list(folder)?;
        let listed = listed.iter().filter(|name| name.as_part().is_none());
        names.extend(listed.map(ToString::to_string));
    }
    Ok(names)
}
