//! The tables of a qcow2 that the header points to: in the file, apart from each other, and with
//! entries that point into the file. They are read in the order in which they stand in it.

use super::{Header, extensions::Bitmaps};
use crate::{
    Fault, Part,
    bytes::{be16, be32, be64},
    limits::{QCOW2_L1_BYTES_MAX, QCOW2_REFTABLE_BYTES_MAX, QCOW2_SNAPSHOT_EXTRA_MAX},
    source::Source,
};

/// Bits of an entry that must be zero, of L1 and of reference counts.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const REFCOUNT_RESERVED: u64 = 0x1ff;
/// Bits of an L1 entry that are a place.
const L1_PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes of a snapshot that all have.
const SNAPSHOT_BYTES: usize = 40;

/// A table, and where it lies; the length of the snapshots' is known when they are read.
#[derive(Debug, Clone, Copy)]
struct Table {
    part: Part,
    at: u64,
    bytes: u64,
}

/// Checks the tables. Returns how many snapshots there are.
pub(super) async fn check(
    source: &Source,
    header: &Header,
    bitmaps: Option<Bitmaps>,
) -> Result<u32, Fault> {
    let mut tables = [
        Some(l1(header)?),
        Some(refcounts(header)?),
        (header.snapshots > 0).then_some(Table {
            part: Part::Snapshots,
            at: header.snapshots_at,
            bytes: u64::from(header.snapshots) * SNAPSHOT_BYTES as u64,
        }),
        bitmaps.map(|Bitmaps { bytes, at, .. }| Table {
            part: Part::Bitmaps,
            at,
            bytes,
        }),
    ];
    tables.sort_by_key(|table| table.map_or(u64::MAX, |table| table.at));
    let file_bytes = source.length().await;
    // The header has the first cluster.
    let mut free_from = header.cluster_bytes();
    for table in tables.into_iter().flatten() {
        let damaged = |what| Fault::Damaged(table.part, what);
        if !table.at.is_multiple_of(header.cluster_bytes()) || table.at < free_from {
            return Err(damaged("it's out of place"));
        }
        let end = table.at.checked_add(table.bytes);
        if end.is_none_or(|end| end > file_bytes) {
            return Err(Fault::Truncated(table.part));
        }
        free_from = table.check(source, header, file_bytes).await?;
    }
    Ok(header.snapshots)
}

fn l1(header: &Header) -> Result<Table, Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Map, what));
    let bytes = u64::from(header.l1_entries) * 8;
    if bytes > QCOW2_L1_BYTES_MAX {
        return damaged("it's too long");
    }
    if u64::from(header.l1_entries) < header.l1_entries_min() {
        return damaged("it's too short for the disk's size");
    }
    Ok(Table {
        part: Part::Map,
        at: header.l1_at,
        bytes,
    })
}

fn refcounts(header: &Header) -> Result<Table, Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Refcounts, what));
    let bytes = u64::from(header.refcount_clusters) * header.cluster_bytes();
    match bytes {
        0 => damaged("there are none"),
        1..=QCOW2_REFTABLE_BYTES_MAX => Ok(Table {
            part: Part::Refcounts,
            at: header.refcounts_at,
            bytes,
        }),
        _ => damaged("it's too long"),
    }
}

impl Table {
    /// Checks what stands in it. Returns where it ends.
    async fn check(self, source: &Source, header: &Header, file_bytes: u64) -> Result<u64, Fault> {
        let Self { part, at, bytes } = self;
        let cluster = header.cluster_bytes();
        let entries = |reserved: u64, place: u64| {
            move |table: &[u8]| {
                let entry = |at| be64(table, at);
                let is_sound = |entry: u64| {
                    let place = entry & place;
                    entry & reserved == 0 && place.is_multiple_of(cluster) && place < file_bytes
                };
                if (0..table.len()).step_by(8).map(entry).all(is_sound) {
                    Ok(())
                } else {
                    Err(Fault::Damaged(
                        part,
                        "an entry that points outside the file",
                    ))
                }
            }
        };
        match part {
            Part::Map => {
                source
                    .scan(part, at, bytes, entries(L1_RESERVED, L1_PLACE))
                    .await?
            }
            Part::Refcounts => {
                let check = entries(REFCOUNT_RESERVED, !REFCOUNT_RESERVED);
                source.scan(part, at, bytes, check).await?;
            }
            Part::Snapshots => return snapshots(source, header, file_bytes).await,
            Part::Header
            | Part::Extensions
            | Part::Bitmaps
            | Part::Text
            | Part::Footer
            | Part::Regions
            | Part::Metadata
            | Part::Log => {}
        }
        Ok(at + bytes)
    }
}

/// Walks the snapshots. Returns where they end.
async fn snapshots(source: &Source, header: &Header, file_bytes: u64) -> Result<u64, Fault> {
    let damaged = |what| Err(Fault::Damaged(Part::Snapshots, what));
    let mut at = header.snapshots_at;
    for _ in 0..header.snapshots {
        let bytes: [u8; SNAPSHOT_BYTES] = source.read(at).await;
        let (l1_at, l1_bytes) = (be64(&bytes, 0), u64::from(be32(&bytes, 8)) * 8);
        let (id, name, extra) = (be16(&bytes, 12), be16(&bytes, 14), be32(&bytes, 36));
        let l1_end = l1_at.checked_add(l1_bytes);
        let is_placed =
            l1_at >= header.cluster_bytes() && l1_at.is_multiple_of(header.cluster_bytes());
        let is_inside = l1_end.is_some_and(|end| end <= file_bytes);
        if l1_bytes == 0 || l1_bytes > QCOW2_L1_BYTES_MAX || !is_placed || !is_inside {
            return damaged("one whose table isn't in the file");
        }
        if extra > QCOW2_SNAPSHOT_EXTRA_MAX || id == 0 {
            return damaged("one of a wrong length");
        }
        let rest = u64::from(extra) + u64::from(id) + u64::from(name);
        // Behind the last one there's no padding.
        let end = at + SNAPSHOT_BYTES as u64 + rest;
        if end > file_bytes {
            return Err(Fault::Truncated(Part::Snapshots));
        }
        at = end.next_multiple_of(8);
    }
    Ok(at)
}
