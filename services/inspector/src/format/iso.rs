//! ISO 9660, alone or as a bridge to UDF, and UDF alone.

use super::plain;
use crate::{
    Content, Detail, Format, Report,
    bytes::{has, le16, le32},
    limits::ISO_DESCRIPTORS_MAX,
    source::Source,
};

/// Where descriptors begin, in bytes.
const FIRST: u64 = 0x8000;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u64 = 2048;
/// Bytes of a descriptor that are looked at.
const LOOK_BYTES: usize = 132;
const CD: &[u8] = b"CD001";
/// What the volume recognition sequence of UDF consists of, and `CD-I`'s.
const OTHERS: [&[u8]; 7] = [
    b"BEA01", b"NSR02", b"NSR03", b"TEA01", b"BOOT2", b"CDW02", b"CD-I ",
];

/// What the descriptors of a disc say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Disc {
    volume_bytes: u64,
}

impl Disc {
    pub(super) fn report(self, file_bytes: u64, content: Content) -> Report {
        let Self { volume_bytes } = self;
        let is_hybrid = content != Content::Unknown;
        let detail = Detail::Iso {
            is_hybrid,
            volume_bytes,
        };
        let size = super::raw::report(file_bytes, content).virtual_size;
        plain(Format::Iso, size, file_bytes, detail)
    }
}

/// A disc, if the file has the marks of one.
pub(super) async fn look(source: &Source) -> Option<Disc> {
    const PRIMARY: u8 = 1;
    let mut disc = None;
    for index in 0..ISO_DESCRIPTORS_MAX {
        let at = FIRST + index * DESCRIPTOR_BYTES;
        let bytes: [u8; LOOK_BYTES] = source.read(at).await;
        let is_cd = has(&bytes, 1, CD);
        if !is_cd && !OTHERS.iter().any(|other| has(&bytes, 1, other)) {
            break;
        }
        let disc = disc.get_or_insert(Disc::default());
        if is_cd && bytes.first() == Some(&PRIMARY) && disc.volume_bytes == 0 {
            disc.volume_bytes = u64::from(le32(&bytes, 80)) * u64::from(le16(&bytes, 128));
        }
    }
    disc
}
