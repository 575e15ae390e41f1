//! VirtualBox's images.

use super::plain;
use crate::{
    Detail, Fault, Format, Part, Report,
    bytes::{array, has, le32, le64},
    limits::{PROBE_BYTES, SECTOR_BYTES, VDI_BLOCK_BYTES, VDI_BLOCKS_MAX, VIRTUAL_BYTES_MAX},
    source::Source,
};

const MARK_AT: usize = 0x40;
const MARK: &[u8] = &[0x7f, 0x10, 0xda, 0xbe];
/// Version 1.1, the only one that qemu reads.
const VERSION: u32 = 0x0001_0001;
/// Kinds of images.
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;
const UNDO: u32 = 3;
const DIFFERENCING: u32 = 4;
/// Entries of the map from here on have no block: discarded, unallocated.
const NO_BLOCK: u32 = 0xffff_fffe;

pub(super) async fn parse(source: &Source, head: &[u8; PROBE_BYTES]) -> Result<Report, Fault> {
    if !has(head, MARK_AT, MARK) {
        return Err(Fault::Not(Format::Vdi));
    }
    let (version, kind) = (le32(head, 0x44), le32(head, 0x4c));
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let no_uuid = |at: usize| array::<16>(head, at) == [0; 16];
    match kind {
        DYNAMIC | STATIC if no_uuid(0x1a8) && no_uuid(0x1b8) => {}
        DYNAMIC | STATIC | UNDO | DIFFERENCING => return Err(Fault::Parent),
        _ => return Err(Fault::Damaged(Part::Header, "no such kind of image")),
    }
    let (size, blocks) = geometry(head)?;
    let (map_at, data_at) = (u64::from(le32(head, 0x154)), u64::from(le32(head, 0x158)));
    let map_bytes = u64::from(blocks) * 4;
    let is_placed = map_at >= SECTOR_BYTES
        && map_at.is_multiple_of(SECTOR_BYTES)
        && data_at.is_multiple_of(SECTOR_BYTES)
        && data_at >= map_at + map_bytes;
    if !is_placed {
        return Err(Fault::Damaged(Part::Header, "a table out of place"));
    }
    let file_bytes = source.length().await;
    let allocated = le32(head, 0x184);
    let check = |bytes: &[u8]| {
        for index in (0..bytes.len()).step_by(4) {
            let block = le32(bytes, index);
            let start = data_at + u64::from(block) * u64::from(VDI_BLOCK_BYTES);
            if block < NO_BLOCK && (block >= allocated || start >= file_bytes) {
                return Err(Fault::Damaged(Part::Map, "a block outside the file"));
            }
        }
        Ok(())
    };
    source.scan(Part::Map, map_at, map_bytes, check).await?;
    let detail = Detail::Blocks {
        is_fixed: kind == STATIC,
    };
    Ok(plain(Format::Vdi, size, file_bytes, detail))
}

/// The virtual size and the number of blocks.
fn geometry(head: &[u8]) -> Result<(u64, u32), Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Header, what));
    let (size, blocks, allocated) = (le64(head, 0x170), le32(head, 0x180), le32(head, 0x184));
    if size > VIRTUAL_BYTES_MAX || u64::from(blocks) > VDI_BLOCKS_MAX {
        return Err(Fault::TooLarge);
    }
    if u64::from(le32(head, 0x168)) != SECTOR_BYTES || le32(head, 0x178) != VDI_BLOCK_BYTES {
        return Err(Fault::Unsafe("an unusual block size"));
    }
    if le32(head, 0x17c) != 0 {
        return Err(Fault::Unsafe("data beside the blocks"));
    }
    let room = u64::from(blocks) * u64::from(VDI_BLOCK_BYTES);
    if size == 0 || room < size || room - size >= u64::from(VDI_BLOCK_BYTES) {
        return damaged("its size isn't that of its blocks");
    }
    if allocated > blocks {
        return damaged("more blocks in use than there are");
    }
    Ok((size.next_multiple_of(SECTOR_BYTES), blocks))
}
