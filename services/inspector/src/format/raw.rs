//! Plain bytes, and the partition tables in them.

use super::plain;
use crate::{
    Content, Detail, Format, Report,
    bytes::has,
    limits::{PROBE_BYTES, SECTOR_BYTES},
    probe::{Partitions, partitions},
    source::Source,
};

/// The mark of a GPT, one block behind the beginning.
const GPT: &[u8] = b"EFI PART";
/// Sizes of a block, in bytes.
const BLOCKS: [u64; 2] = [512, 4096];

/// What lies in a file that begins so.
pub(super) async fn content(source: &Source, head: &[u8; PROBE_BYTES]) -> Content {
    match partitions(head) {
        None => Content::Unknown,
        Some(Partitions::Mbr) => Content::Mbr,
        Some(Partitions::Protective) => {
            for block in BLOCKS {
                if has(&source.read::<8>(block).await, 0, GPT) {
                    return Content::Gpt;
                }
            }
            Content::Mbr
        }
    }
}

pub(super) fn report(file_bytes: u64, content: Content) -> Report {
    // qemu counts whole sectors.
    let size = file_bytes.checked_next_multiple_of(SECTOR_BYTES);
    let size = size.unwrap_or(file_bytes);
    plain(Format::Raw, size, file_bytes, Detail::Raw(content))
}
