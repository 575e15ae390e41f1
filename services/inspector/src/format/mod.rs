//! From bytes to a report: which format, and then that format's own parser.

mod iso;
mod qcow2;
mod raw;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use crate::{
    Content, Detail, Fault, Format, Report,
    bytes::has,
    limits::{PROBE_BYTES, SECTOR_BYTES},
    probe,
    source::Source,
};

/// The mark of an Apple disk's last sector. qemu goes by the file's name.
const DMG: &[u8] = b"koly";
/// The mark of a VHD's last sector.
const VPC: &[u8] = b"conectix";

/// Finds out what a file is; it must be one thing only.
pub(crate) async fn detect(source: Source) -> Result<Report, Fault> {
    if source.view(0, 1, <[u8]>::is_empty).await {
        return Err(Fault::Empty);
    }
    let head: [u8; PROBE_BYTES] = source.read(0).await;
    let disc = iso::look(&source).await;
    let mut only = None;
    for format in probe::marks(&head).chain(disc.map(|_| Format::Iso)) {
        add(&mut only, format)?;
    }
    let content = raw::content(&source, &head).await;
    match only {
        Some(Format::Iso) | None => {}
        Some(format) if content != Content::Unknown => {
            return Err(Fault::Several(format, Format::Raw));
        }
        Some(_) => {}
    }
    // First what the beginning says, for a stream that can be refused before its end has come.
    let early = match only {
        Some(format) if format != Format::Iso => Some(container(&source, format, &head).await?),
        Some(_) | None => None,
    };
    let file_bytes = source.length().await;
    let last = tail(&source, file_bytes).await;
    if has(&last, 0, DMG) {
        add(&mut only, Format::Dmg)?;
    }
    if has(&last, 0, VPC) && only != Some(Format::Vpc) {
        add(&mut only, Format::Vpc)?;
    }
    match (early, only, disc) {
        (Some(report), ..) => Ok(report),
        (None, Some(Format::Iso), Some(disc)) => Ok(disc.report(file_bytes, content)),
        (None, Some(format), _) => container(&source, format, &head).await,
        (None, None, _) => Ok(raw::report(file_bytes, content)),
    }
}

/// Reads a file as one format.
pub(crate) async fn read_as(source: Source, format: Format) -> Result<Report, Fault> {
    match format {
        Format::Raw => Ok(raw::report(source.length().await, Content::Unknown)),
        Format::Iso => {
            let disc = iso::look(&source).await.ok_or(Fault::Not(format))?;
            let head: [u8; PROBE_BYTES] = source.read(0).await;
            let content = raw::content(&source, &head).await;
            Ok(disc.report(source.length().await, content))
        }
        Format::Qcow2
        | Format::Vmdk
        | Format::Vdi
        | Format::Vpc
        | Format::Vhdx
        | Format::Qcow1
        | Format::Qed
        | Format::Luks
        | Format::Parallels
        | Format::Bochs
        | Format::Cloop
        | Format::Dmg => {
            let head: [u8; PROBE_BYTES] = source.read(0).await;
            container(&source, format, &head).await
        }
    }
}

/// Reads a file in which a disk is packed in some way.
async fn container(
    source: &Source,
    format: Format,
    head: &[u8; PROBE_BYTES],
) -> Result<Report, Fault> {
    match format {
        Format::Qcow2 => qcow2::parse(source, head).await,
        Format::Vmdk => vmdk::parse(source, head).await,
        Format::Vdi => vdi::parse(source, head).await,
        Format::Vpc => vpc::parse(source, head).await,
        Format::Vhdx => vhdx::parse(source, head).await,
        Format::Raw
        | Format::Iso
        | Format::Qcow1
        | Format::Qed
        | Format::Luks
        | Format::Parallels
        | Format::Bochs
        | Format::Cloop
        | Format::Dmg => Err(Fault::Unserved(format)),
    }
}

fn add(only: &mut Option<Format>, format: Format) -> Result<(), Fault> {
    match only.replace(format) {
        Some(other) => Err(Fault::Several(other, format)),
        None => Ok(()),
    }
}

/// The last sector of a file.
async fn tail(source: &Source, file_bytes: u64) -> [u8; SECTOR_BYTES as usize] {
    match file_bytes.checked_sub(SECTOR_BYTES) {
        Some(at) => source.read(at).await,
        None => [0; SECTOR_BYTES as usize],
    }
}

/// A report of an image that has neither backing nor encryption.
fn plain(format: Format, virtual_size: u64, file_bytes: u64, detail: Detail) -> Report {
    Report {
        format,
        virtual_size,
        file_bytes,
        backing: None,
        encryption: None,
        detail,
    }
}
