//! QEMU's own images, versions 2 and 3.

mod extensions;
mod header;
mod tables;

use crate::{
    Backing, Detail, Encryption, Fault, Format, Name, Part, Qcow2, Report,
    limits::{BACKING_NAME_BYTES_MAX, PROBE_BYTES},
    source::Source,
};
use extensions::Extensions;
use header::Header;

pub(super) async fn parse(source: &Source, head: &[u8; PROBE_BYTES]) -> Result<Report, Fault> {
    let header = Header::parse(head)?;
    let extensions = Extensions::read(source, &header).await?;
    let backing = backing(source, &header, extensions.backing_format).await?;
    let snapshots = tables::check(source, &header, extensions.bitmaps).await?;
    let encryption = match header.crypt_method {
        0 => None,
        1 => Some(Encryption::Aes),
        _ => Some(Encryption::Luks),
    };
    let detail = Detail::Qcow2(Qcow2 {
        version: header.version,
        cluster_bytes: header.cluster_bytes(),
        incompatible: header.incompatible,
        compatible: header.compatible,
        autoclear: header.autoclear,
        refcount_bits: 1 << header.refcount_order,
        is_zstd: header.is_zstd,
        snapshots,
        bitmaps: extensions.bitmaps.map_or(0, |bitmaps| bitmaps.count),
    });
    Ok(Report {
        format: Format::Qcow2,
        virtual_size: header.size,
        file_bytes: source.length().await,
        backing,
        encryption,
        detail,
    })
}

async fn backing(
    source: &Source,
    header: &Header,
    format: Option<Name>,
) -> Result<Option<Backing>, Fault> {
    let Some((at, bytes)) = header.backing else {
        // A format without a name is what a detached overlay keeps.
        return Ok(None);
    };
    let end = at + u64::from(bytes);
    let is_placed = at >= header.length && end <= header.cluster_bytes();
    if !is_placed || bytes == 0 || bytes > BACKING_NAME_BYTES_MAX {
        return Err(Fault::BackingName);
    }
    let look = |found: &[u8]| {
        let is_all = found.len() == bytes as usize;
        is_all.then(|| Name::new(found))
    };
    let name = source.view(at, bytes as usize, look).await;
    let name = name.ok_or(Fault::Truncated(Part::Header))?;
    // qemu's strings end at a zero, so it would open another name than this one.
    if name.as_bytes().contains(&0) {
        return Err(Fault::BackingName);
    }
    Ok(Some(Backing { name, format }))
}
