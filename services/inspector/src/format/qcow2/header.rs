//! The fixed part of a qcow2.

use crate::{
    Fault, Format, Part, Qcow2,
    bytes::{be32, be64, has},
    limits::{
        PROBE_BYTES, QCOW2_CLUSTER_BITS_MAX, QCOW2_CLUSTER_BITS_MIN, QCOW2_EXTENDED_BITS_MIN,
        QCOW2_HEADER_BYTES_MAX, QCOW2_REFCOUNT_ORDER_MAX, QCOW2_SNAPSHOTS_MAX, SECTOR_BYTES,
        VIRTUAL_BYTES_MAX,
    },
};

const MARK: &[u8] = b"QFI\xfb";
/// Bytes of a header of version 2.
const V2_BYTES: u64 = 72;
/// Bytes that a header of version 3 has at least.
const V3_BYTES_MIN: u32 = 104;
/// Bytes whose meaning is known.
const KNOWN_BYTES: usize = 112;
/// The order of reference counts of version 2: 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;

/// A header whose numbers make sense by themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// The virtual size in bytes.
    pub(super) size: u64,
    /// Where the backing's name stands, and its bytes.
    pub(super) backing: Option<(u64, u32)>,
    pub(super) crypt_method: u32,
    pub(super) l1_entries: u32,
    pub(super) l1_at: u64,
    pub(super) refcounts_at: u64,
    pub(super) refcount_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    /// Bytes of the header.
    pub(super) length: u64,
    pub(super) is_zstd: bool,
}

impl Header {
    pub(super) fn parse(head: &[u8; PROBE_BYTES]) -> Result<Self, Fault> {
        if !has(head, 0, MARK) {
            return Err(Fault::Not(Format::Qcow2));
        }
        let mut header = Self::common(head);
        match header.version {
            2 => {}
            3 => header.of_version_3(head)?,
            version => return Err(Fault::Version(version)),
        }
        header.check()?;
        Ok(header)
    }

    /// What both versions have; the rest is as in version 2.
    fn common(head: &[u8]) -> Self {
        let (backing_at, backing_bytes) = (be64(head, 8), be32(head, 16));
        let has_backing = backing_at != 0 || backing_bytes != 0;
        Self {
            version: be32(head, 4),
            cluster_bits: be32(head, 20),
            size: be64(head, 24),
            backing: has_backing.then_some((backing_at, backing_bytes)),
            crypt_method: be32(head, 32),
            l1_entries: be32(head, 36),
            l1_at: be64(head, 40),
            refcounts_at: be64(head, 48),
            refcount_clusters: be32(head, 56),
            snapshots: be32(head, 60),
            snapshots_at: be64(head, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: V2_REFCOUNT_ORDER,
            length: V2_BYTES,
            is_zstd: false,
        }
    }

    fn of_version_3(&mut self, head: &[u8]) -> Result<(), Fault> {
        self.incompatible = be64(head, 72);
        self.compatible = be64(head, 80);
        self.autoclear = be64(head, 88);
        self.refcount_order = be32(head, 96);
        let length = be32(head, 100);
        let is_usual = (V3_BYTES_MIN..=QCOW2_HEADER_BYTES_MAX).contains(&length);
        if !is_usual || !length.is_multiple_of(8) {
            return Err(Fault::Damaged(Part::Header, "no header is that long"));
        }
        self.length = length.into();
        let unknown = head.get(KNOWN_BYTES..length as usize).unwrap_or_default();
        if unknown.iter().any(|byte| *byte != 0) {
            return Err(Fault::Unsafe("a header with unknown fields"));
        }
        let compression = match length {
            V3_BYTES_MIN => 0,
            _ => head.get(V3_BYTES_MIN as usize).copied().unwrap_or_default(),
        };
        let is_said = self.incompatible & Qcow2::COMPRESSION != 0;
        if compression > 1 || is_said != (compression == 1) {
            return Err(Fault::Unsafe("an unknown compression"));
        }
        self.is_zstd = compression == 1;
        self.check_features()
    }

    fn check_features(&self) -> Result<(), Fault> {
        if self.incompatible & Qcow2::DATA_FILE != 0 || self.autoclear & Qcow2::DATA_FILE_RAW != 0 {
            return Err(Fault::DataFile);
        }
        let unknown = self.incompatible & !Qcow2::KNOWN;
        if unknown != 0 {
            return Err(Fault::UnknownFeatures(unknown));
        }
        if self.incompatible & Qcow2::CORRUPT != 0 {
            return Err(Fault::MarkedCorrupt);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Fault> {
        let damaged = |what| Err(Fault::Damaged(Part::Header, what));
        let bits = self.cluster_bits;
        if !(QCOW2_CLUSTER_BITS_MIN..=QCOW2_CLUSTER_BITS_MAX).contains(&bits) {
            return damaged("no cluster is that large");
        }
        if self.has_extended_l2() && bits < QCOW2_EXTENDED_BITS_MIN {
            return damaged("clusters too small for their parts");
        }
        if self.length > self.cluster_bytes() {
            return damaged("it's longer than a cluster");
        }
        if self.refcount_order > QCOW2_REFCOUNT_ORDER_MAX {
            return damaged("no reference count is that large");
        }
        if self.crypt_method > 2 {
            return Err(Fault::Unsafe("an unknown encryption"));
        }
        if self.snapshots > QCOW2_SNAPSHOTS_MAX {
            return Err(Fault::Unsafe("that many snapshots"));
        }
        if self.size > VIRTUAL_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        if self.size == 0 || !self.size.is_multiple_of(SECTOR_BYTES) {
            return damaged("no disk is of that size");
        }
        Ok(())
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits.min(QCOW2_CLUSTER_BITS_MAX)
    }

    fn has_extended_l2(&self) -> bool {
        self.incompatible & Qcow2::EXTENDED_L2 != 0
    }

    /// Entries that the L1 table needs at least.
    pub(super) fn l1_entries_min(&self) -> u64 {
        let entry_bytes = if self.has_extended_l2() { 16 } else { 8 };
        let covers = self.cluster_bytes() / entry_bytes * self.cluster_bytes();
        self.size.div_ceil(covers)
    }
}
