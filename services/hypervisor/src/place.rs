//! From a blueprint to this host: which disks in which way, and which files they are.

use crate::{
    catalog::{Catalog, Disk, Hold, Holder, not_found},
    users::conflict,
    xml::{Blueprint, ChainFile, Volume},
};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2},
    io::Errno,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::task::spawn_blocking;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError, Label, MediaId, Record, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy, MediaRecord, UseMode},
    envelope::IfInUse,
    protocol::lock::Mode as LockMode,
    state::WaitReason,
    task::image::ImageFormat,
};
use virtbus_worker::Stop;

/// How long a look at a pool may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// A blueprint's disks as the catalogue has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    /// What the domain holds while it runs.
    pub(crate) holds: Vec<Hold>,
    /// By the volume's name its files, the top one first.
    pub(crate) files: BTreeMap<String, Vec<ChainFile>>,
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
                files
            }
            Volume::Media { media, pool } => {
                let found = catalog.media.get_latest(media.as_str()).await;
                let found = found.map_err(crate::catalog::CatalogError::from)?;
                let record = admit_medium(media, found.as_ref().map(|e| &e.value), pool)?;
                let object = volume.object();
                admit_use(&object, &record.in_use_by, holder, UseMode::Shared, job)?;
                placed.holds.push(Hold::Media(media.clone()));
                let name = format!("{media}.{}", record.format);
                vec![ChainFile {
                    path: path(roots, pool, "media", &name)?,
                    format: "raw",
                }]
            }
        };
        placed.files.insert(volume.object(), files);
    }
    let disks = strictest.into_iter().map(|(id, mode)| Hold::Disk(id, mode));
    placed.holds.extend(disks);
    look_at_files(
        placed
            .files
            .values()
            .flatten()
            .map(|file| file.path.clone())
            .collect(),
    )
    .await?;
    Ok(placed)
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
    let path = path(roots, &record.pool, "disks", &name)?;
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

fn path(roots: &Roots, pool: &Label, folder: &str, name: &str) -> Result<Utf8PathBuf, JobError> {
    let missing = || {
        let text = "this host doesn't have the pool";
        JobError::new(Code::PoolNotFound, text).with("pool", pool.as_str())
    };
    let root = roots.get(pool).ok_or_else(missing)?;
    Ok(root.join(folder).join(name))
}

/// That each is a plain file, with no link on the way from its folder.
async fn look_at_files(files: Vec<Utf8PathBuf>) -> Result<(), JobError> {
    let looked = spawn_blocking(move || files.iter().try_for_each(|file| look_at(file)));
    match tokio::time::timeout(LOOK_LIMIT, looked).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(_)) => Err(JobError::internal("the look at a pool panicked")),
        Err(_) => Err(JobError::new(
            Code::PoolUnreachable,
            "the pool doesn't answer",
        )),
    }
}

fn look_at(path: &Utf8Path) -> Result<(), JobError> {
    let name = path.file_name().unwrap_or_default();
    let refuse = |code, text: &str| Err(JobError::new(code, text).with("file", name));
    let (Some(folder), false) = (path.parent(), name.is_empty()) else {
        return refuse(Code::PoolUnreachable, "the pool has no such file");
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(folder) = open(folder.as_str(), flags | OFlags::DIRECTORY, Mode::empty()) else {
        return refuse(Code::PoolUnreachable, "the pool can't be read");
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW;
    let file = match openat2(&folder, name, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return refuse(Code::DiskWrongState, "the disk's file isn't in the pool");
        }
        Err(_) => return refuse(Code::DiskWrongState, "the disk's file can't be used"),
    };
    let stat = fstat(&file).map_err(|_| JobError::internal("a file can't be looked at"))?;
    let is_plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_plain || stat.st_nlink != 1 {
        return refuse(Code::DiskWrongState, "the disk's file is no plain file");
    }
    Ok(())
}
