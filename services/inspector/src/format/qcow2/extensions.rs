//! What may follow a qcow2's header: pieces with a number and a length.

use super::Header;
use crate::{
    Fault, Name, Part,
    bytes::{be32, be64},
    limits::{
        BACKING_FORMAT_BYTES_MAX, QCOW2_BITMAP_DIRECTORY_BYTES_MAX, QCOW2_BITMAPS_MAX,
        QCOW2_EXTENSIONS_MAX,
    },
    source::Source,
};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const CRYPTO: u32 = 0x0537_be77;
const BITMAPS: u32 = 0x2385_2875;
/// Bytes of the number and the length.
const PREFIX_BYTES: u64 = 8;
/// Bytes that tell of bitmaps.
const BITMAPS_BYTES: u32 = 24;
/// Bytes that tell where an encryption's header is.
const CRYPTO_BYTES: u32 = 16;
/// The encryption whose header is told of.
const LUKS: u32 = 2;

/// What the extensions said.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) backing_format: Option<Name>,
    pub(super) bitmaps: Option<Bitmaps>,
    has_crypto: bool,
}

/// Where bitmaps are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bitmaps {
    pub(super) count: u32,
    pub(super) bytes: u64,
    pub(super) at: u64,
}

impl Extensions {
    pub(super) async fn read(source: &Source, header: &Header) -> Result<Self, Fault> {
        let damaged = Fault::Damaged(Part::Extensions, "one that goes too far");
        // They end where the backing's name begins, or with the first cluster.
        let cluster = header.cluster_bytes();
        let end = header.backing.map_or(cluster, |(at, _)| at);
        if end > cluster || end < header.length {
            return Err(Fault::BackingName);
        }
        let mut found = Self::default();
        let mut at = header.length;
        for _ in 0..QCOW2_EXTENSIONS_MAX {
            if at == end {
                return found.done(header);
            }
            let content = at + PREFIX_BYTES;
            if content > end {
                return Err(damaged);
            }
            let prefix: [u8; PREFIX_BYTES as usize] = source.read(at).await;
            let (kind, bytes) = (be32(&prefix, 0), be32(&prefix, 4));
            if kind == END {
                return found.done(header);
            }
            if u64::from(bytes) > end - content {
                return Err(damaged);
            }
            found.add(source, kind, content, bytes).await?;
            at = (content + u64::from(bytes)).next_multiple_of(8);
            if at > end {
                return Err(damaged);
            }
        }
        Err(Fault::Unsafe("that many header extensions"))
    }

    /// Those that aren't known here aren't known to qemu either, which goes past them.
    async fn add(&mut self, source: &Source, kind: u32, at: u64, bytes: u32) -> Result<(), Fault> {
        let wrong = Fault::Damaged(Part::Extensions, "one of a wrong length, or twice");
        match kind {
            BACKING_FORMAT
                if bytes <= BACKING_FORMAT_BYTES_MAX && self.backing_format.is_none() =>
            {
                let name = source.view(at, bytes as usize, Name::new).await;
                // qemu's strings end at a zero, so it would read another format than this one.
                if name.as_bytes().contains(&0) {
                    return Err(Fault::Damaged(
                        Part::Extensions,
                        "a backing's format with a zero",
                    ));
                }
                self.backing_format = Some(name);
                Ok(())
            }
            DATA_FILE => Err(Fault::DataFile),
            CRYPTO if bytes == CRYPTO_BYTES && !self.has_crypto => {
                self.has_crypto = true;
                Ok(())
            }
            BITMAPS if bytes == BITMAPS_BYTES && self.bitmaps.is_none() => {
                let bytes: [u8; BITMAPS_BYTES as usize] = source.read(at).await;
                let bitmaps = Bitmaps {
                    count: be32(&bytes, 0),
                    bytes: be64(&bytes, 8),
                    at: be64(&bytes, 16),
                };
                let is_sound = (1..=QCOW2_BITMAPS_MAX).contains(&bitmaps.count)
                    && bitmaps.bytes <= QCOW2_BITMAP_DIRECTORY_BYTES_MAX;
                if !is_sound {
                    return Err(Fault::Damaged(Part::Bitmaps, "too many"));
                }
                self.bitmaps = Some(bitmaps);
                Ok(())
            }
            BACKING_FORMAT | CRYPTO | BITMAPS => Err(wrong),
            _ => Ok(()),
        }
    }

    fn done(self, header: &Header) -> Result<Self, Fault> {
        if self.has_crypto == (header.crypt_method == LUKS) {
            Ok(self)
        } else {
            Err(Fault::Damaged(
                Part::Extensions,
                "another encryption than the header's",
            ))
        }
    }
}
