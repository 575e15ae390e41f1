//! From a blueprint to this host: which disks in which way, and which files they are.

use crate::{
    catalog::{Catalog, Disk, Hold, Holder, not_found},
    files::{self, PoolFile},
    users::conflict,
    xml::{Blueprint, ChainFile, Volume},
};
use camino::Utf8PathBuf;
use std::collections::BTreeMap;
use virtbus_bus::locks::LockSet;
use virtbus_inspector::gate::{Expected, Known};
use virtbus_wire::{
    Code, DiskId, JobError, Label, MediaId, Record, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy, MediaRecord, UseMode},
    envelope::IfInUse,
    protocol::lock::Mode as LockMode,
    state::WaitReason,
    task::image::ImageFormat,
};
use virtbus_worker::Stop;

/// By the volume's name its files, the top one first.
pub(crate) type Files = BTreeMap<String, Vec<ChainFile>>;

/// A blueprint's disks as the catalogue has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    /// What the domain holds while it runs.
    pub(crate) holds: Vec<Hold>,
    pub(crate) files: Files,
}

/// The pools' folders on this host.
pub(crate) type Roots = BTreeMap<Label, Utf8PathBuf>;

/// The locks on everything that a blueprint names: alone on what the guest writes.
pub(crate) async fn locks(catalog: &Catalog, blueprint: &Blueprint) -> Result<LockSet, JobError> {
    let mut locks = LockSet::new();
    for volume in &blueprint.volumes {
        match volume {
            Volume::Disk { disk, readonly, .. } => {
                let chain = catalog.chain(disk).await?;
                let below = chain.iter().skip(1);
                for (id, _) in below {
                    locks
                        .entry(format!("disk.{id}"))
                        .or_insert(LockMode::Shared);
                }
                let mode = if *readonly {
                    LockMode::Shared
                } else {
                    LockMode::Exclusive
                };
                let lock = locks.entry(volume.object()).or_insert(mode);
                if mode == LockMode::Exclusive {
                    *lock = mode;
                }
            }
            Volume::Media { .. } => {
                locks.entry(volume.object()).or_insert(LockMode::Shared);
            }
        }
    }
    Ok(locks)
}

/// Looks everything up that a blueprint names, and refuses what can't be used.
pub(crate) async fn place(
    catalog: &Catalog,
    roots: &Roots,
    blueprint: &Blueprint,
    holder: &Holder,
    job: &Record,
) -> Result<Placed, Stop> {
    let mut placed = Placed::default();
    let mut strictest: BTreeMap<DiskId, UseMode> = BTreeMap::new();
    let mut found: Vec<PoolFile> = Vec::new();
    for volume in &blueprint.volumes {
        let files = match volume {
            Volume::Disk {
                disk,
                pool,
                readonly,
            } => {
                let chain = catalog.chain(disk).await?;
                admit_chain(disk, &chain, pool, *readonly)?;
                let mut files = Vec::new();
                for (at, (id, record)) in chain.iter().enumerate() {
                    let writes = at == 0 && !readonly;
                    let mode = if writes {
                        UseMode::Exclusive
                    } else {
                        UseMode::Shared
                    };
                    admit_use(&format!("disk.{id}"), &record.in_use_by, holder, mode, job)?;
                    let strict = strictest.entry(id.clone()).or_insert(mode);
                    if mode == UseMode::Exclusive {
                        *strict = mode;
                    }
                    files.push(disk_file(roots, id, record)?);
                }
                found.extend(chain_files(roots, &chain)?);
                files
            }
            Volume::Media { media, pool } => {
                let entry = catalog.media.get_latest(media.as_str()).await;
                let entry = entry.map_err(crate::catalog::CatalogError::from)?;
                let record = admit_medium(media, entry.as_ref().map(|e| &e.value), pool)?;
                let object = volume.object();
                admit_use(&object, &record.in_use_by, holder, UseMode::Shared, job)?;
                placed.holds.push(Hold::Media(media.clone()));
                let file = medium_file(roots, media, record)?;
                let path = file.path();
                found.push(file);
                vec![ChainFile {
                    path,
                    format: "raw",
                }]
            }
        };
        placed.files.insert(volume.object(), files);
    }
    let disks = strictest.into_iter().map(|(id, mode)| Hold::Disk(id, mode));
    placed.holds.extend(disks);
    files::gate(found).await?;
    Ok(placed)
}

/// The files of all that a blueprint names, whatever may be said against their use: for a domain
/// that isn't started.
pub(crate) async fn files(
    catalog: &Catalog,
    roots: &Roots,
    blueprint: &Blueprint,
) -> Result<Files, JobError> {
    let mut all = Files::new();
    for volume in &blueprint.volumes {
        let files = match volume {
            Volume::Disk { disk, .. } => {
                let chain = catalog.chain(disk).await?;
                let files = chain.iter().map(|(id, disk)| disk_file(roots, id, disk));
                files.collect::<Result<_, _>>()?
            }
            Volume::Media { media, .. } => {
                let entry = catalog.media.get_latest(media.as_str()).await;
                let entry = entry.map_err(crate::catalog::CatalogError::from)?;
                let missing = || not_found(Code::MediaNotFound, "media", media.as_str());
                let record = entry.ok_or_else(missing)?.value;
                vec![ChainFile {
                    path: medium_file(roots, media, &record)?.path(),
                    format: "raw",
                }]
            }
        };
        all.insert(volume.object(), files);
    }
    Ok(all)
}

fn medium_file(roots: &Roots, id: &MediaId, record: &MediaRecord) -> Result<PoolFile, JobError> {
    Ok(PoolFile {
        root: root(roots, &record.pool)?.clone(),
        name: format!("media/{id}.{}", record.format),
        // Given to the guest as bytes, whatever they say.
        content: None,
    })
}

/// That the files of disks, and all below them, are what the catalogue says: before a domain that
/// has them already gets a new process.
pub(crate) async fn gate(
    catalog: &Catalog,
    roots: &Roots,
    disks: &[DiskId],
) -> Result<(), JobError> {
    let mut found = Vec::new();
    for disk in disks {
        found.extend(chain_files(roots, &catalog.chain(disk).await?)?);
    }
    files::gate(found).await
}

/// The virtual size that a disk's own file says, in bytes; none of a disk of plain bytes.
pub(crate) async fn virtual_size(
    catalog: &Catalog,
    roots: &Roots,
    disk: &DiskId,
) -> Result<Option<u64>, JobError> {
    let chain = catalog.chain(disk).await?;
    let top = chain_files(roots, &chain)?.into_iter().next();
    match (top, chain.first()) {
        (Some(file), Some((_, record))) if record.format == ImageFormat::Qcow2 => {
            files::virtual_size(file, record.format).await.map(Some)
        }
        (Some(_) | None, _) => Ok(None),
    }
}

/// The files of a chain, with what the catalogue says of each.
fn chain_files(roots: &Roots, chain: &[Disk]) -> Result<Vec<PoolFile>, JobError> {
    let named = |(id, record): &Disk| format!("{id}.{}", record.format);
    let files = chain.iter().enumerate().map(|(at, disk)| {
        let (_, record) = disk;
        let below = chain.get(at + 1);
        let expected = Expected {
            format: record.format,
            backing: below.map(|below| (named(below), below.1.format)),
        };
        let known = Known {
            // libvirt makes some by itself, and for whoever speaks to it directly.
            snapshots: None,
            ..Known::of(record)
        };
        Ok(PoolFile {
            root: root(roots, &record.pool)?.clone(),
            name: format!("disks/{}", named(disk)),
            content: Some((expected, known)),
        })
    });
    files.collect()
}

fn admit_chain(id: &DiskId, chain: &[Disk], pool: &Label, readonly: bool) -> Result<(), JobError> {
    let Some((_, top)) = chain.first() else {
        return Err(not_found(Code::DiskNotFound, "disk", id.as_str()));
    };
    for (id, record) in chain {
        admit_state("disk", id.as_str(), record.state)?;
        if record.pool != *pool {
            let text = "the disk lies in another pool";
            return Err(JobError::new(Code::DiskWrongPool, text)
                .with("disk", id.as_str())
                .with("pool", record.pool.as_str()));
        }
    }
    if !readonly && !top.children.is_empty() {
        let children: Vec<&str> = top.children.iter().map(DiskId::as_str).collect();
        let text = "other disks depend on what this one holds: it can't be written";
        return Err(JobError::new(Code::DiskHasChildren, text)
            .with("disk", id.as_str())
            .with("children", children));
    }
    Ok(())
}

fn admit_medium<'a>(
    id: &MediaId,
    record: Option<&'a MediaRecord>,
    pool: &Label,
) -> Result<&'a MediaRecord, JobError> {
    let record = record.ok_or_else(|| not_found(Code::MediaNotFound, "media", id.as_str()))?;
    admit_state("media", id.as_str(), record.state)?;
    if record.pool != *pool {
        let text = "the medium lies in another pool";
        return Err(JobError::new(Code::DiskWrongPool, text).with("media", id.as_str()));
    }
    Ok(record)
}

fn admit_state(what: &str, id: &str, state: DiskState) -> Result<(), JobError> {
    let (code, text) = match state {
        DiskState::Ready => return Ok(()),
        DiskState::Deleted if what == "media" => {
            return Err(not_found(Code::MediaNotFound, what, id));
        }
        DiskState::Deleted => return Err(not_found(Code::DiskNotFound, what, id)),
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            (Code::DiskBusy, "another job is changing it".to_owned())
        }
        DiskState::Archived | DiskState::Trashed | DiskState::Missing | DiskState::Broken => {
            (Code::DiskWrongState, format!("it is {}", state.as_str()))
        }
    };
    let text = format!("the {what} can't be used: {text}");
    Err(JobError::new(code, text)
        .with(what, id)
        .with("state", state.as_str()))
}

/// That nobody uses it in a way that goes not with what is wanted; or the wait for that.
fn admit_use(
    object: &str,
    users: &[InUseBy],
    holder: &Holder,
    mode: UseMode,
    job: &Record,
) -> Result<(), Stop> {
    let Some(user) = conflict(users, holder, mode, Timestamp::now()) else {
        return Ok(());
    };
    let (what, id) = object.split_once('.').unwrap_or(("disk", object));
    let code = if what == "media" {
        Code::MediaInUse
    } else {
        Code::DiskInUse
    };
    let error = |text: String| JobError::new(code, text).with(what, id);
    let (by, error) = match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } => {
            let error = error(format!("a domain uses the {what}"))
                .with("domain", domain.as_str())
                .with("hypervisor", hypervisor.as_str());
            (format!("domain.{domain}"), error)
        }
        InUseBy::Job { job, .. } => {
            let error = error(format!("a download uses the {what}")).with("job", job.as_str());
            (format!("job.{job}"), error)
        }
    };
    match job.if_in_use {
        IfInUse::Fail => Err(Stop::Failed(error)),
        IfInUse::Wait => Err(Stop::Wait(WaitReason::Lock {
            resource: object.to_owned(),
            holder: Some(by),
            since: None,
        })),
    }
}

/// A disk's file on this host.
pub(crate) fn disk_file(
    roots: &Roots,
    id: &DiskId,
    record: &DiskRecord,
) -> Result<ChainFile, JobError> {
    let name = format!("{id}.{}", record.format);
    let path = root(roots, &record.pool)?.join("disks").join(name);
    let format = record.format;
    let usable = matches!(format, ImageFormat::Qcow2 | ImageFormat::Raw);
    if !usable {
        let text = format!("a domain can't have a disk of format {format}: convert it first");
        return Err(JobError::new(Code::DomainUnsupported, text).with("disk", id.as_str()));
    }
    Ok(ChainFile {
        path,
        format: format.as_str(),
    })
}

fn root<'a>(roots: &'a Roots, pool: &Label) -> Result<&'a Utf8PathBuf, JobError> {
    roots.get(pool).ok_or_else(|| {
        let text = "this host doesn't have the pool";
        JobError::new(Code::PoolNotFound, text).with("pool", pool.as_str())
    })
}
