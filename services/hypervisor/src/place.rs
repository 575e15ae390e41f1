//! From a blueprint to this host: which disks in which way, and which files they are.

use crate::{
    admit::{Way, admit_chain, admit_medium, admit_use},
    catalog::{Catalog, Disk, Hold, Holder, not_found},
    files::{self, PoolFile},
    xml::{Blueprint, ChainFile, Volume},
};
use camino::Utf8PathBuf;
use std::collections::BTreeMap;
use virtbus_bus::locks::LockSet;
use virtbus_inspector::gate::{Expected, Known};
use virtbus_wire::{
    Code, DiskId, JobError, Label, MediaId, Record,
    catalog::{DiskRecord, MediaRecord, UseMode},
    protocol::lock::Mode as LockMode,
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
    let mut placing = Placing::new(catalog, roots, holder, job);
    for volume in &blueprint.volumes {
        let files = match volume {
            Volume::Disk {
                disk,
                pool,
                readonly,
            } => {
                let way = if *readonly { Way::Read } else { Way::Write };
                placing.disk(disk, pool, way).await?
            }
            Volume::Media { media, pool } => placing.medium(media, pool).await?,
        };
        placing.placed.files.insert(volume.object(), files);
    }
    placing.end().await
}

/// The same of the disks that snapshots are kept in: those that the guest writes.
pub(crate) async fn place_kept(
    catalog: &Catalog,
    roots: &Roots,
    blueprint: &Blueprint,
    holder: &Holder,
    job: &Record,
) -> Result<Placed, Stop> {
    let mut placing = Placing::new(catalog, roots, holder, job);
    for volume in &blueprint.volumes {
        match volume {
            Volume::Disk {
                disk,
                pool,
                readonly: false,
            } => {
                let files = placing.disk(disk, pool, Way::Keep).await?;
                placing.placed.files.insert(volume.object(), files);
            }
            Volume::Disk { readonly: true, .. } | Volume::Media { .. } => {}
        }
    }
    placing.end().await
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
                vec![plain(&medium_file(roots, media, &record)?)]
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

fn plain(file: &PoolFile) -> ChainFile {
    let path = file.path();
    ChainFile {
        path,
        format: "raw",
    }
}

/// What was looked up so far.
struct Placing<'a> {
    catalog: &'a Catalog,
    roots: &'a Roots,
    holder: &'a Holder,
    job: &'a Record,
    placed: Placed,
    strictest: BTreeMap<DiskId, UseMode>,
    found: Vec<PoolFile>,
}

impl<'a> Placing<'a> {
    fn new(catalog: &'a Catalog, roots: &'a Roots, holder: &'a Holder, job: &'a Record) -> Self {
        Self {
            catalog,
            roots,
            holder,
            job,
            placed: Placed::default(),
            strictest: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    async fn disk(
        &mut self,
        disk: &DiskId,
        pool: &Label,
        way: Way,
    ) -> Result<Vec<ChainFile>, Stop> {
        let chain = self.catalog.chain(disk).await?;
        admit_chain(disk, &chain, pool, way)?;
        let mut files = Vec::new();
        for (at, (id, record)) in chain.iter().enumerate() {
            let mode = if at == 0 { way.mode() } else { UseMode::Shared };
            let object = format!("disk.{id}");
            admit_use(&object, &record.in_use_by, self.holder, mode, self.job)?;
            let strict = self.strictest.entry(id.clone()).or_insert(mode);
            if mode == UseMode::Exclusive {
                *strict = mode;
            }
            files.push(disk_file(self.roots, id, record)?);
        }
        self.found.extend(chain_files(self.roots, &chain)?);
        Ok(files)
    }

    async fn medium(&mut self, id: &MediaId, pool: &Label) -> Result<Vec<ChainFile>, Stop> {
        let entry = self.catalog.media.get_latest(id.as_str()).await;
        let entry = entry.map_err(crate::catalog::CatalogError::from)?;
        let record = admit_medium(id, entry.as_ref().map(|entry| &entry.value), pool)?;
        let object = format!("media.{id}");
        let mode = UseMode::Shared;
        admit_use(&object, &record.in_use_by, self.holder, mode, self.job)?;
        self.placed.holds.push(Hold::Media(id.clone()));
        let file = medium_file(self.roots, id, record)?;
        let files = vec![plain(&file)];
        self.found.push(file);
        Ok(files)
    }

    /// Last, nothing but their content speaks against them: the files are looked at.
    async fn end(mut self) -> Result<Placed, Stop> {
        let disks = self.strictest.into_iter();
        let disks = disks.map(|(id, mode)| Hold::Disk(id, mode));
        self.placed.holds.extend(disks);
        files::gate(self.found).await?;
        Ok(self.placed)
    }
}

/// The virtual size that a disk's own file says, in bytes; none where there is no such disk.
pub(crate) async fn virtual_size(
    catalog: &Catalog,
    roots: &Roots,
    disk: &DiskId,
) -> Result<Option<u64>, JobError> {
    let chain = catalog.chain(disk).await?;
    let top = chain_files(roots, &chain)?.into_iter().next();
    match (top, chain.first()) {
        (Some(file), Some((_, record))) => files::virtual_size(file, record.format).await.map(Some),
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

/// The folder of a pool's disks on this host.
///
/// # Errors
/// `pool.not_found`.
pub(crate) fn disk_folder(roots: &Roots, pool: &Label) -> Result<Utf8PathBuf, JobError> {
    Ok(root(roots, pool)?.join("disks"))
}

/// A disk's file on this host.
pub(crate) fn disk_file(
    roots: &Roots,
    id: &DiskId,
    record: &DiskRecord,
) -> Result<ChainFile, JobError> {
    let name = format!("{id}.{}", record.format);
    let path = disk_folder(roots, &record.pool)?.join(name);
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
