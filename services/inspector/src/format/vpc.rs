//! Virtual PC's images, the older ones of Hyper-V (VHD).
//!
//! A fixed one is plain bytes with a footer. A dynamic one has a copy of its footer in front, which
//! is the one that qemu reads; here both must say the same.

use super::{VPC, plain, tail};
use crate::{
    Detail, Fault, Format, Part, Report,
    bytes::{array, be16, be32, be64, has},
    limits::{
        PROBE_BYTES, SECTOR_BYTES, VPC_BLOCK_BYTES_MAX, VPC_BLOCK_BYTES_MIN, VPC_BYTES_MAX,
        VPC_GEOMETRY_SECTORS_MAX,
    },
    source::Source,
};

/// Kinds of images.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
const VERSION: u32 = 0x0001_0000;
const DYNAMIC_MARK: &[u8] = b"cxsparse";
const DYNAMIC_BYTES: usize = 1024;
/// An entry of the block table without a block.
const NO_BLOCK: u32 = u32::MAX;
/// Creators whose disks are as large as the footer says.
const BY_SIZE: [&[u8]; 5] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"];
/// Creators whose disks are as large as their cylinders.
const BY_GEOMETRY: [&[u8]; 2] = [b"vpc ", b"qemu"];

type Sector = [u8; SECTOR_BYTES as usize];

pub(super) async fn parse(source: &Source, head: &[u8; PROBE_BYTES]) -> Result<Report, Fault> {
    if has(head, 0, VPC) {
        dynamic(source, head).await
    } else {
        fixed(source).await
    }
}

async fn fixed(source: &Source) -> Result<Report, Fault> {
    let file_bytes = source.length().await;
    let footer = tail(source, file_bytes).await;
    if !has(&footer, 0, VPC) {
        return Err(Fault::Not(Format::Vpc));
    }
    let size = check_footer(&footer, FIXED)?;
    if size > file_bytes.saturating_sub(SECTOR_BYTES) {
        return Err(Fault::Truncated(Part::Footer));
    }
    let detail = Detail::Blocks { is_fixed: true };
    Ok(plain(Format::Vpc, size, file_bytes, detail))
}

async fn dynamic(source: &Source, head: &Sector) -> Result<Report, Fault> {
    let size = check_footer(head, DYNAMIC)?;
    let header: [u8; DYNAMIC_BYTES] = source.read(be64(head, 16)).await;
    let (entries, block_bytes) = check_header(&header, size)?;
    let file_bytes = source.length().await;
    // Each block has a bitmap of its sectors in front, in whole sectors.
    let bitmap = (u64::from(block_bytes) / SECTOR_BYTES).div_ceil(8);
    let bytes = bitmap.next_multiple_of(SECTOR_BYTES) + u64::from(block_bytes);
    let check = |table: &[u8]| {
        for index in (0..table.len()).step_by(4) {
            let sector = be32(table, index);
            let end = u64::from(sector) * SECTOR_BYTES + bytes;
            if sector != NO_BLOCK && (sector == 0 || end > file_bytes) {
                return Err(Fault::Damaged(Part::Map, "a block outside the file"));
            }
        }
        Ok(())
    };
    let table_at = be64(&header, 16);
    source
        .scan(Part::Map, table_at, u64::from(entries) * 4, check)
        .await?;
    let footer = tail(source, file_bytes).await;
    if footer != *head {
        return Err(Fault::Damaged(
            Part::Footer,
            "it isn't that of the beginning",
        ));
    }
    let detail = Detail::Blocks { is_fixed: false };
    Ok(plain(Format::Vpc, size, file_bytes, detail))
}

/// The virtual size that a footer of this kind says.
fn check_footer(footer: &Sector, kind: u32) -> Result<u64, Fault> {
    match be32(footer, 60) {
        DIFFERENCING => return Err(Fault::Parent),
        found if found == kind => {}
        _ => return Err(Fault::Damaged(Part::Footer, "it's of another kind")),
    }
    if checksum(footer, 64) != be32(footer, 64) {
        return Err(Fault::Checksum(Part::Footer));
    }
    let version = be32(footer, 12);
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    if footer.get(84) != Some(&0) {
        return Err(Fault::Unsafe("a machine's saved state"));
    }
    let size = virtual_size(footer)?;
    match size {
        0 => Err(Fault::Damaged(Part::Footer, "a disk of no size")),
        size if size > VPC_BYTES_MAX => Err(Fault::TooLarge),
        size => Ok(size),
    }
}

/// Some writers mean the size in the footer, others the geometry; qemu goes by who wrote it, and
/// from version to version knows more of them. Where it isn't sure, both must be the same.
fn virtual_size(footer: &Sector) -> Result<u64, Fault> {
    let creator: [u8; 4] = array(footer, 28);
    let (heads, per_track) = (array::<1>(footer, 58)[0], array::<1>(footer, 59)[0]);
    let sectors = u64::from(be16(footer, 56)) * u64::from(heads) * u64::from(per_track);
    let by_geometry = sectors * SECTOR_BYTES;
    let by_size = be64(footer, 48) / SECTOR_BYTES * SECTOR_BYTES;
    let is = |names: &[&[u8]]| names.iter().any(|name| **name == creator);
    if is(&BY_SIZE) || sectors == VPC_GEOMETRY_SECTORS_MAX {
        Ok(by_size)
    } else if is(&BY_GEOMETRY) || by_geometry == by_size {
        Ok(by_geometry)
    } else {
        Err(Fault::Unsafe("a size that can be read in two ways"))
    }
}

/// The number of blocks and the bytes of one.
fn check_header(header: &[u8; DYNAMIC_BYTES], size: u64) -> Result<(u32, u32), Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Header, what));
    if !has(header, 0, DYNAMIC_MARK) {
        return damaged("no header where the footer says");
    }
    if checksum(header, 36) != be32(header, 36) {
        return Err(Fault::Checksum(Part::Header));
    }
    let version = be32(header, 24);
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    if array::<16>(header, 40) != [0; 16] || header.get(576..768) != Some(&[0; 192]) {
        return Err(Fault::Parent);
    }
    let (entries, block_bytes) = (be32(header, 28), be32(header, 32));
    let is_usual = (VPC_BLOCK_BYTES_MIN..=VPC_BLOCK_BYTES_MAX).contains(&block_bytes);
    if !is_usual || !block_bytes.is_power_of_two() {
        return damaged("no block is that large");
    }
    let room = u64::from(entries) * u64::from(block_bytes);
    if room < size || u64::from(entries) > VPC_BYTES_MAX / u64::from(block_bytes) {
        return damaged("its size isn't that of its blocks");
    }
    Ok((entries, block_bytes))
}

/// The complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], own_at: usize) -> u32 {
    let own = own_at..own_at + 4;
    let others = bytes.iter().enumerate().filter(|(at, _)| !own.contains(at));
    !others.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}
