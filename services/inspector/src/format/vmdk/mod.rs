//! VMware's images, those that are one file: a sparse header, a text about the disk, tables.
//!
//! Where the text is the file (or the header says that there's no disk in it), the disk's data is
//! in other files; such a file is never let through.

mod text;

use super::plain;
use crate::{
    Detail, Fault, Format, Part, Report, Subformat,
    bytes::{has, le16, le32, le64},
    limits::{
        PROBE_BYTES, SECTOR_BYTES, VIRTUAL_BYTES_MAX, VMDK_DIRECTORY_ENTRIES_MAX,
        VMDK_GRAIN_SECTORS_MAX, VMDK_GRAIN_SECTORS_MIN, VMDK_GRAIN_TABLE_ENTRIES,
        VMDK_TEXT_BYTES_MAX, VMDK_TEXT_BYTES_MIN,
    },
    probe,
    source::Source,
};

const SPARSE: &[u8] = b"KDMV";
const OLD_SPARSE: &[u8] = b"COWD";
/// Where qemu takes the text from, whatever the header says: the second sector.
const TEXT_SECTOR: u64 = 1;
/// The grain directory is said by a second header at the file's end.
const AT_END: u64 = u64::MAX;
/// What marks that a file went through no text conversion.
const LINE_ENDS: &[u8] = b"\n \r\n";

/// Bits of the header.
mod flag {
    pub(super) const LINE_ENDS: u32 = 1;
    pub(super) const SECOND_DIRECTORY: u32 = 1 << 1;
    pub(super) const COMPRESSED: u32 = 1 << 16;
    /// With zeroed grains and markers.
    pub(super) const KNOWN: u32 = 0b11 << 16 | 0b111;
}

/// A sparse header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    flags: u32,
    /// The disk's sectors.
    capacity: u64,
    /// Sectors of a grain.
    grain: u64,
    text_at: u64,
    text_sectors: u64,
    entries: u32,
    second_directory: u64,
    directory: u64,
    /// Sectors before the first grain.
    overhead: u64,
    compression: u16,
}

impl Header {
    fn new(bytes: &[u8]) -> Self {
        Self {
            version: le32(bytes, 4),
            flags: le32(bytes, 8),
            capacity: le64(bytes, 12),
            grain: le64(bytes, 20),
            text_at: le64(bytes, 28),
            text_sectors: le64(bytes, 36),
            entries: le32(bytes, 44),
            second_directory: le64(bytes, 48),
            directory: le64(bytes, 56),
            overhead: le64(bytes, 64),
            compression: le16(bytes, 77),
        }
    }

    fn is_compressed(&self) -> bool {
        self.compression == 1
    }
}

pub(super) async fn parse(source: &Source, head: &[u8; PROBE_BYTES]) -> Result<Report, Fault> {
    if probe::is_vmdk_text(head) {
        return Err(Fault::DataFile);
    }
    if has(head, 0, OLD_SPARSE) {
        return Err(Fault::Unsafe("the oldest kind of vmdk"));
    }
    if !has(head, 0, SPARSE) {
        return Err(Fault::Not(Format::Vmdk));
    }
    let mut header = Header::new(head);
    check(&header, head)?;
    let text_bytes = header.text_sectors.saturating_mul(SECTOR_BYTES);
    if text_bytes > VMDK_TEXT_BYTES_MAX {
        return Err(Fault::Unsafe("a descriptor of that length"));
    }
    // qemu always looks at so much of it for a parent.
    let look = usize::try_from(text_bytes.max(VMDK_TEXT_BYTES_MIN)).unwrap_or(usize::MAX);
    let subformat = source
        .view(TEXT_SECTOR * SECTOR_BYTES, look, |bytes| {
            text::check(bytes, text_bytes, header.capacity)
        })
        .await?;
    if (subformat == Subformat::StreamOptimized) != header.is_compressed() {
        return Err(Fault::Damaged(Part::Text, "another kind than the header's"));
    }
    let file_bytes = source.length().await;
    if header.directory == AT_END {
        header = footer(source, file_bytes, header).await?;
    }
    check_tables(source, file_bytes, &header).await?;
    let size = header.capacity * SECTOR_BYTES;
    Ok(plain(
        Format::Vmdk,
        size,
        file_bytes,
        Detail::Vmdk(subformat),
    ))
}

fn check(header: &Header, head: &[u8]) -> Result<(), Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Header, what));
    // Without a disk in it, qemu takes the text inside for a list of other files.
    if header.capacity == 0 {
        return Err(Fault::DataFile);
    }
    if !(1..=3).contains(&header.version) {
        return Err(Fault::Version(header.version));
    }
    if header.flags & !flag::KNOWN != 0 {
        return Err(Fault::UnknownFeatures(header.flags.into()));
    }
    if header.capacity > VIRTUAL_BYTES_MAX / SECTOR_BYTES {
        return Err(Fault::TooLarge);
    }
    if header.flags & flag::LINE_ENDS != 0 && !has(head, 73, LINE_ENDS) {
        return damaged("it went through a text conversion");
    }
    let is_flagged = header.flags & flag::COMPRESSED != 0;
    if header.compression > 1 || is_flagged != header.is_compressed() {
        return Err(Fault::Unsafe("an unknown compression"));
    }
    let is_usual = (VMDK_GRAIN_SECTORS_MIN..=VMDK_GRAIN_SECTORS_MAX).contains(&header.grain);
    if !is_usual || !header.grain.is_power_of_two() {
        return damaged("no grain is that large");
    }
    if u64::from(header.entries) != VMDK_GRAIN_TABLE_ENTRIES {
        return damaged("no grain table is that large");
    }
    if header.text_at != TEXT_SECTOR || header.text_sectors == 0 {
        return damaged("no descriptor where it has to be");
    }
    Ok(())
}

/// The header at the file's end, which takes the first one's place.
async fn footer(source: &Source, file_bytes: u64, first: Header) -> Result<Header, Fault> {
    const SECTORS: u64 = 3;
    const FOOTER: u32 = 3;
    let damaged = |what| Err(Fault::Damaged(Part::Footer, what));
    let at = file_bytes.checked_sub(SECTORS * SECTOR_BYTES);
    let at = at.filter(|_| file_bytes.is_multiple_of(SECTOR_BYTES));
    let at = at.ok_or(Fault::Truncated(Part::Footer))?;
    let bytes: [u8; (SECTORS * SECTOR_BYTES) as usize] = source.read(at).await;
    let is_marked = le32(&bytes, 8) == 0 && le32(&bytes, 12) == FOOTER;
    let is_last = bytes.get(1024..1040) == Some(&[0; 16]);
    if !is_marked || !is_last || !has(&bytes, 512, SPARSE) {
        return damaged("its marks are missing");
    }
    let sector = bytes.get(512..1024).unwrap_or_default();
    let second = Header::new(sector);
    let same = Header {
        directory: first.directory,
        second_directory: first.second_directory,
        overhead: first.overhead,
        ..second
    };
    if same != first || second.directory == AT_END {
        return damaged("it isn't that of the beginning");
    }
    Ok(second)
}

/// The grain directories, in the order in which they stand.
async fn check_tables(source: &Source, file_bytes: u64, header: &Header) -> Result<(), Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Map, what));
    if header.overhead > file_bytes.div_ceil(SECTOR_BYTES) {
        return Err(Fault::Truncated(Part::Map));
    }
    let covers = header.grain * VMDK_GRAIN_TABLE_ENTRIES;
    let entries = header.capacity.div_ceil(covers);
    if entries > VMDK_DIRECTORY_ENTRIES_MAX {
        return Err(Fault::TooLarge);
    }
    let has_second = header.flags & flag::SECOND_DIRECTORY != 0;
    let second = has_second.then_some(header.second_directory);
    let directory = header.directory;
    let [one, two] = match second {
        Some(second) if second < directory => [Some(second), Some(directory)],
        Some(_) | None => [Some(directory), second],
    };
    let check = |bytes: &[u8]| {
        for at in (0..bytes.len()).step_by(4) {
            if u64::from(le32(bytes, at)) * SECTOR_BYTES >= file_bytes {
                return damaged("a table outside the file");
            }
        }
        Ok(())
    };
    for sector in [one, two].into_iter().flatten() {
        let at = sector.checked_mul(SECTOR_BYTES);
        let at = at.ok_or(Fault::Truncated(Part::Map))?;
        if sector <= TEXT_SECTOR {
            return damaged("a directory out of place");
        }
        source.scan(Part::Map, at, entries * 4, check).await?;
    }
    Ok(())
}
