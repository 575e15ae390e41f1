//! Every bound of the inspector. Where qemu has one, ours is the same or lower.

/// Bytes that are looked at in one go: the most an inspector asks for, and holds.
pub const WINDOW_BYTES: usize = 64 * 1024;
/// All memory of an inspection: a window each for the caller, the inspector and the head of a
/// stream, the state of the parsers, and the names of a report.
pub const MEMORY_BYTES_MAX: usize = 3 * WINDOW_BYTES + 32 * 1024;
/// What qemu reads to tell a format (`BLOCK_PROBE_BUF_SIZE`), in bytes.
pub const PROBE_BYTES: usize = 512;
/// The unit of most formats, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// The largest disk: 64 TiB, the most a VHDX can be, and far above any pool's limit.
pub const VIRTUAL_BYTES_MAX: u64 = 64 << 40;
/// Offsets above can't be read: the kernel's file offsets are signed.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// qcow2: clusters of 512 bytes (`MIN_CLUSTER_BITS`) ...
pub const QCOW2_CLUSTER_BITS_MIN: u32 = 9;
/// ... to 2 MiB (`MAX_CLUSTER_BITS`).
pub const QCOW2_CLUSTER_BITS_MAX: u32 = 21;
/// qcow2: clusters of 16 KiB, the smallest of which a 32nd part is a sector.
pub const QCOW2_EXTENDED_BITS_MIN: u32 = 14;
/// qcow2: reference counts of 64 bits.
pub const QCOW2_REFCOUNT_ORDER_MAX: u32 = 6;
/// qcow2: bytes of an L1 table (`QCOW_MAX_L1_SIZE`).
pub const QCOW2_L1_BYTES_MAX: u64 = 32 << 20;
/// qcow2: bytes of the table of reference counts (`QCOW_MAX_REFTABLE_SIZE`).
pub const QCOW2_REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// qcow2: internal snapshots. qemu allows 65,536, and takes seconds to list them.
pub const QCOW2_SNAPSHOTS_MAX: u32 = 1_024;
/// qcow2: internal snapshots of a file from outside.
pub const OUTSIDE_SNAPSHOTS_MAX: u32 = 64;
/// qcow2: bytes beside a snapshot's header (`QCOW_MAX_SNAPSHOT_EXTRA_DATA`).
pub const QCOW2_SNAPSHOT_EXTRA_MAX: u32 = 1_024;
/// qcow2: extensions of the header. The format knows seven.
pub const QCOW2_EXTENSIONS_MAX: u32 = 32;
/// qcow2: bytes of the header itself; the format has 112.
pub const QCOW2_HEADER_BYTES_MAX: u32 = 512;
/// qcow2: bytes of a backing's name (the specification says 1023).
pub const BACKING_NAME_BYTES_MAX: u32 = 1_023;
/// qcow2: bytes of a backing's format (`sizeof(bs->backing_format)` less the final zero).
pub const BACKING_FORMAT_BYTES_MAX: u32 = 15;
/// qcow2: bitmaps of a file (`QCOW2_MAX_BITMAPS`).
pub const QCOW2_BITMAPS_MAX: u32 = 65_535;
/// qcow2: bytes of the directory of bitmaps (`QCOW2_MAX_BITMAP_DIRECTORY_SIZE` allows 64 MiB).
pub const QCOW2_BITMAP_DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// VMDK: bytes that qemu takes for the text of a sparse file (`DESC_SIZE`), from the second sector.
pub const VMDK_TEXT_BYTES_MIN: u64 = 20 * SECTOR_BYTES;
/// VMDK: the longest text; VMware writes 20 sectors.
pub const VMDK_TEXT_BYTES_MAX: u64 = WINDOW_BYTES as u64;
/// VMDK: entries of a grain table, by the specification.
pub const VMDK_GRAIN_TABLE_ENTRIES: u64 = 512;
/// VMDK: sectors of a grain: 4 KiB (the specification says more than 8) ...
pub const VMDK_GRAIN_SECTORS_MIN: u64 = 8;
/// ... to 64 MiB; qemu stops at 1 GiB.
pub const VMDK_GRAIN_SECTORS_MAX: u64 = 128 * 1024;
/// VMDK: entries of a grain directory: those of 64 TiB in the usual grains of 64 KiB.
pub const VMDK_DIRECTORY_ENTRIES_MAX: u64 = 2 << 20;

/// VDI: bytes of a block (`DEFAULT_CLUSTER_SIZE`), the only ones that qemu reads.
pub const VDI_BLOCK_BYTES: u32 = 1 << 20;
/// VDI: blocks of an image: those of [`VIRTUAL_BYTES_MAX`].
pub const VDI_BLOCKS_MAX: u64 = VIRTUAL_BYTES_MAX >> 20;

/// VHD: the largest disk (`VHD_MAX_SECTORS`): 2040 GiB.
pub const VPC_BYTES_MAX: u64 = 0xff00_0000 * SECTOR_BYTES;
/// VHD: the largest disk that cylinders, heads and sectors can say (`VHD_MAX_GEOMETRY`), in sectors.
pub const VPC_GEOMETRY_SECTORS_MAX: u64 = 65_535 * 16 * 255;
/// VHD: bytes of a block; the specification has 2 MiB.
pub const VPC_BLOCK_BYTES_MIN: u32 = 64 << 10;
/// VHD: the largest block.
pub const VPC_BLOCK_BYTES_MAX: u32 = 256 << 20;

/// VHDX: entries of a region table or a metadata table, by the specification.
pub const VHDX_ENTRIES_MAX: u32 = 2_047;
/// VHDX: the smallest block, by the specification.
pub const VHDX_BLOCK_BYTES_MIN: u32 = 1 << 20;
/// VHDX: the largest block, by the specification.
pub const VHDX_BLOCK_BYTES_MAX: u32 = 256 << 20;

/// ISO 9660: descriptors that are looked at; a disc has about five.
pub const ISO_DESCRIPTORS_MAX: u64 = 16;
