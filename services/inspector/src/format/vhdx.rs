//! Hyper-V's images.

use super::plain;
use crate::{
    Detail, Fault, Format, Part, Report,
    bytes::{array, has, le16, le32, le64},
    limits::{
        PROBE_BYTES, SECTOR_BYTES, VHDX_BLOCK_BYTES_MAX, VHDX_BLOCK_BYTES_MIN, VHDX_ENTRIES_MAX,
        VIRTUAL_BYTES_MAX,
    },
    source::Source,
};

const MARK: &[u8] = b"vhdxfile";
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const REGIONS_AT: [u64; 2] = [192 << 10, 256 << 10];
const REGIONS_BYTES: usize = 64 << 10;
/// What comes first may be anywhere behind this; its unit too.
const MIB: u64 = 1 << 20;
const ENTRY_BYTES: usize = 32;

type Guid = [u8; 16];
const BAT: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const DISK_ID: Guid = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: Guid = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// Where a region lies, in bytes.
#[derive(Debug, Clone, Copy)]
struct Region {
    at: u64,
    bytes: u64,
}

/// What the metadata say.
#[derive(Debug, Clone, Copy)]
struct Metadata {
    size: u64,
    block_bytes: u32,
    is_fixed: bool,
}

pub(super) async fn parse(source: &Source, head: &[u8; PROBE_BYTES]) -> Result<Report, Fault> {
    if !has(head, 0, MARK) {
        return Err(Fault::Not(Format::Vhdx));
    }
    check_headers(source).await?;
    let (bat, metadata) = regions(source).await?;
    let metadata = read_metadata(source, metadata).await?;
    check_bat(source, bat, metadata).await?;
    let detail = Detail::Blocks {
        is_fixed: metadata.is_fixed,
    };
    Ok(plain(
        Format::Vhdx,
        metadata.size,
        source.length().await,
        detail,
    ))
}

/// At least one header is sound, and the newest one of them has no log to replay.
async fn check_headers(source: &Source) -> Result<(), Fault> {
    const LOG_GUID: usize = 48;
    let mut newest: Option<(u64, Result<(), Fault>)> = None;
    for at in HEADERS_AT {
        let found = source.view(at, HEADER_BYTES, |bytes| {
            let is_sound = bytes.len() == HEADER_BYTES
                && has(bytes, 0, b"head")
                && crc32c(bytes, 4) == le32(bytes, 4);
            is_sound.then(|| {
                let has_log = array::<16>(bytes, LOG_GUID) != [0; 16];
                let (log_version, version) = (le16(bytes, 64), le16(bytes, 66));
                let verdict = match (has_log, log_version, version) {
                    (true, ..) => Err(Fault::OpenLog),
                    (false, 0, 1) => Ok(()),
                    (false, _, version) => Err(Fault::Version(version.into())),
                };
                (le64(bytes, 8), verdict)
            })
        });
        if let Some((sequence, verdict)) = found.await {
            // Two of the same number: the stricter one.
            newest = Some(match newest {
                Some((other, known)) if other > sequence => (other, known),
                Some((other, known)) if other == sequence => (other, known.and(verdict)),
                Some(_) | None => (sequence, verdict),
            });
        }
    }
    newest.map_or(Err(Fault::Checksum(Part::Header)), |(_, verdict)| verdict)
}

/// The block table and the metadata. Both copies of the table of regions must be the same.
async fn regions(source: &Source) -> Result<(Region, Region), Fault> {
    let [first, second] = REGIONS_AT;
    let found = source.view(first, REGIONS_BYTES, check_regions).await?;
    let copy = source.view(second, REGIONS_BYTES, |bytes| {
        (crc32c(bytes, 4), le32(bytes, 4))
    });
    let (sum, written) = copy.await;
    let (sum_first, bat, metadata) = found;
    if sum != written || sum != sum_first {
        return Err(Fault::Checksum(Part::Regions));
    }
    let file_bytes = source.length().await;
    for region in [bat, metadata] {
        let end = region.at.checked_add(region.bytes);
        if region.at < MIB
            || !region.at.is_multiple_of(MIB)
            || end.is_none_or(|end| end > file_bytes)
        {
            return Err(Fault::Damaged(Part::Regions, "a region outside the file"));
        }
    }
    let (low, high) = if bat.at < metadata.at {
        (bat, metadata)
    } else {
        (metadata, bat)
    };
    if low.at + low.bytes > high.at {
        return Err(Fault::Damaged(
            Part::Regions,
            "regions on top of each other",
        ));
    }
    Ok((bat, metadata))
}

fn check_regions(bytes: &[u8]) -> Result<(u32, Region, Region), Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Regions, what));
    let sum = crc32c(bytes, 4);
    if bytes.len() < REGIONS_BYTES || !has(bytes, 0, b"regi") || sum != le32(bytes, 4) {
        return Err(Fault::Checksum(Part::Regions));
    }
    let count = le32(bytes, 8);
    if count > VHDX_ENTRIES_MAX {
        return damaged("too many entries");
    }
    let (mut bat, mut metadata) = (None, None);
    for index in 0..count as usize {
        let at = 16 + index * ENTRY_BYTES;
        let region = Region {
            at: le64(bytes, at + 16),
            bytes: le32(bytes, at + 24).into(),
        };
        let is_required = le32(bytes, at + 28) & 1 != 0;
        let before = match array(bytes, at) {
            BAT => bat.replace(region),
            METADATA => metadata.replace(region),
            _ if is_required => return Err(Fault::Unsafe("an unknown region")),
            _ => None,
        };
        if before.is_some() {
            return damaged("a region that's there twice");
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok((sum, bat, metadata)),
        (None, _) | (_, None) => damaged("a region is missing"),
    }
}

async fn read_metadata(source: &Source, region: Region) -> Result<Metadata, Fault> {
    let items = source.view(region.at, REGIONS_BYTES, |bytes| {
        check_metadata(bytes, region)
    });
    let items = items.await?;
    let bytes: [u8; 8] = source.read(items.parameters).await;
    let (block_bytes, bits) = (le32(&bytes, 0), le32(&bytes, 4));
    let size = le64(&source.read::<8>(items.size).await, 0);
    let sector = le32(&source.read::<4>(items.sector).await, 0);
    if bits & 2 != 0 {
        return Err(Fault::Parent);
    }
    if bits & !3 != 0 {
        return Err(Fault::UnknownFeatures(bits.into()));
    }
    if u64::from(sector) != SECTOR_BYTES {
        return Err(Fault::Unsafe("sectors of another size than 512 bytes"));
    }
    let is_usual = (VHDX_BLOCK_BYTES_MIN..=VHDX_BLOCK_BYTES_MAX).contains(&block_bytes);
    if !is_usual || !block_bytes.is_power_of_two() {
        return Err(Fault::Damaged(Part::Metadata, "no block is that large"));
    }
    if size > VIRTUAL_BYTES_MAX {
        return Err(Fault::TooLarge);
    }
    if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
        return Err(Fault::Damaged(Part::Metadata, "no disk is of that size"));
    }
    let is_fixed = bits & 1 != 0;
    Ok(Metadata {
        size,
        block_bytes,
        is_fixed,
    })
}

/// Where the items stand that are read, in the file.
struct Items {
    parameters: u64,
    size: u64,
    sector: u64,
}

fn check_metadata(bytes: &[u8], region: Region) -> Result<Items, Fault> {
    const TABLE_ENTRY: usize = 32;
    let damaged = |what| Err(Fault::Damaged(Part::Metadata, what));
    let count = u32::from(le16(bytes, 10));
    if !has(bytes, 0, b"metadata") || count > VHDX_ENTRIES_MAX {
        return damaged("no table of it");
    }
    let (mut parameters, mut size, mut sector) = (None, None, None);
    for index in 0..count as usize {
        let at = 32 + index * TABLE_ENTRY;
        let (offset, length) = (le32(bytes, at + 16), le32(bytes, at + 20));
        let is_required = le32(bytes, at + 24) & 4 != 0;
        let end = u64::from(offset) + u64::from(length);
        if length != 0 && (u64::from(offset) < REGIONS_BYTES as u64 || end > region.bytes) {
            return damaged("an item out of place");
        }
        let place = region.at + u64::from(offset);
        let before = match array(bytes, at) {
            FILE_PARAMETERS if length >= 8 => parameters.replace(place),
            DISK_SIZE if length >= 8 => size.replace(place),
            LOGICAL_SECTOR if length >= 4 => sector.replace(place),
            FILE_PARAMETERS | DISK_SIZE | LOGICAL_SECTOR => return damaged("an item is too short"),
            DISK_ID | PHYSICAL_SECTOR => None,
            PARENT_LOCATOR => return Err(Fault::Parent),
            _ if is_required => return Err(Fault::Unsafe("unknown metadata")),
            _ => None,
        };
        if before.is_some() {
            return damaged("an item that's there twice");
        }
    }
    match (parameters, size, sector) {
        (Some(parameters), Some(size), Some(sector)) => Ok(Items {
            parameters,
            size,
            sector,
        }),
        (..) => damaged("an item is missing"),
    }
}

/// Each block that's said to be there is in the file.
async fn check_bat(source: &Source, bat: Region, metadata: Metadata) -> Result<(), Fault> {
    /// Sectors whose bits one block of bitmaps has.
    const BITMAP_SECTORS: u64 = 1 << 23;
    const FULLY_PRESENT: u64 = 6;
    const PARTLY_PRESENT: u64 = 7;
    let block_bytes = u64::from(metadata.block_bytes);
    let blocks = metadata.size.div_ceil(block_bytes);
    // Behind each so many blocks stands one of bitmaps, which only a difference uses.
    let ratio = BITMAP_SECTORS * SECTOR_BYTES / block_bytes;
    let entries = blocks + (blocks - 1) / ratio;
    if entries * 8 > bat.bytes {
        return Err(Fault::Damaged(
            Part::Map,
            "its size isn't that of its blocks",
        ));
    }
    let file_bytes = source.length().await;
    let mut index = 0;
    let check = |table: &[u8]| {
        for at in (0..table.len()).step_by(8) {
            let entry = le64(table, at);
            let (state, start) = (entry & 7, entry / MIB * MIB);
            let is_bitmap = index % (ratio + 1) == ratio;
            index += 1;
            let end = start.checked_add(block_bytes);
            let is_inside = start >= MIB && end.is_some_and(|end| end <= file_bytes);
            match state {
                _ if is_bitmap => {}
                0..=3 => {}
                FULLY_PRESENT if is_inside => {}
                FULLY_PRESENT => return Err(Fault::Damaged(Part::Map, "a block outside the file")),
                PARTLY_PRESENT => return Err(Fault::Parent),
                _ => return Err(Fault::Damaged(Part::Map, "no block is in such a state")),
            }
        }
        Ok(())
    };
    source.scan(Part::Map, bat.at, entries * 8, check).await
}

/// A GUID as Windows stores it: the first three numbers with the low byte first.
const fn guid(a: u32, b: u16, c: u16, rest: u64) -> Guid {
    let (a, b, c, d) = (
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        rest.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

/// CRC-32C of bytes in which the four at `own_at`, its own, count as zeros.
fn crc32c(bytes: &[u8], own_at: usize) -> u32 {
    let own = own_at..own_at + 4;
    let value = |(at, byte): (usize, &u8)| if own.contains(&at) { 0 } else { *byte };
    !bytes
        .iter()
        .enumerate()
        .map(value)
        .fold(u32::MAX, |sum, byte| {
            let index = usize::from(sum.to_le_bytes()[0] ^ byte);
            CRC_TABLE.get(index).copied().unwrap_or_default() ^ (sum >> 8)
        })
}

const CRC_TABLE: [u32; 256] = crc_table();

const fn crc_table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut sum = index as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ POLYNOMIAL
            } else {
                sum >> 1
            };
            bit += 1;
        }
        table[index] = sum;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standards() {
        assert_eq!(crc32c(b"123456789", 9), 0xe306_9283);
        assert_eq!(crc32c(b"\x00\x00\x00\x0012", 0), crc32c(b"abcd12", 0));
    }
}
