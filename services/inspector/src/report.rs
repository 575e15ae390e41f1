//! What an inspection finds out.

use std::fmt;
use virtbus_wire::task::image::{FileFormat, ImageFormat, MediaFormat};

/// What a file is. Beside those we serve, all that qemu would open as something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// QEMU's own, versions 2 and 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's.
    Vpc,
    /// Hyper-V's.
    Vhdx,
    /// A CD or DVD.
    Iso,
    /// QEMU's first one, not served.
    Qcow1,
    /// Another one of QEMU's, not served.
    Qed,
    /// An encrypted disk, not served.
    Luks,
    /// Parallels', not served.
    Parallels,
    /// Bochs', not served.
    Bochs,
    /// A compressed CD, not served.
    Cloop,
    /// Apple's, not served.
    Dmg,
}

impl Format {
    /// Its name, as qemu has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Iso => "iso",
            Self::Qcow1 => "qcow",
            Self::Qed => "qed",
            Self::Luks => "luks",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Qcow2 => Self::Qcow2,
            ImageFormat::Raw => Self::Raw,
            ImageFormat::Vmdk => Self::Vmdk,
            ImageFormat::Vdi => Self::Vdi,
            ImageFormat::Vhdx => Self::Vhdx,
            ImageFormat::Vpc => Self::Vpc,
        }
    }
}

impl From<MediaFormat> for Format {
    fn from(format: MediaFormat) -> Self {
        match format {
            MediaFormat::Iso => Self::Iso,
            MediaFormat::Raw => Self::Raw,
        }
    }
}

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Self {
        format.of_disk().map_or(Self::Iso, Self::from)
    }
}

/// A few bytes that a file calls a name: not always UTF-8, never trusted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes as they stand in the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What a file is on top of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backing {
    /// The name of the file below.
    pub name: Name,
    /// Its format, if the file says one.
    pub format: Option<Name>,
}

/// How a file's data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// In the way of old qcow2 files.
    Aes,
    /// With LUKS inside.
    Luks,
}

/// What lies in a file of plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing that's known.
    Unknown,
    /// A disk with a partition table of the old kind.
    Mbr,
    /// A disk with a GPT.
    Gpt,
}

/// The kinds of vmdk that are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subformat {
    /// Grows as it's written.
    MonolithicSparse,
    /// Compressed, for transport.
    StreamOptimized,
}

/// What is told of a qcow2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Qcow2 {
    /// 2 or 3.
    pub version: u32,
    /// The unit of allocation, in bytes.
    pub cluster_bytes: u64,
    /// Features that a reader has to know: bits 0 dirty, 3 compression type, 4 extended L2.
    pub incompatible: u64,
    /// Features that it needn't know: bit 0 lazy reference counts.
    pub compatible: u64,
    /// Features that a writer who doesn't know them clears: bit 0 bitmaps.
    pub autoclear: u64,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// Whether compressed clusters are zstd's.
    pub is_zstd: bool,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Bitmaps.
    pub bitmaps: u32,
}

impl Qcow2 {
    pub(crate) const DIRTY: u64 = 1;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = 0b1_1111;
    /// An autoclear feature: the data file holds the disk's bytes as they are.
    pub(crate) const DATA_FILE_RAW: u64 = 1 << 1;

    /// Whether its reference counts may be behind: the next writer mends them.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.incompatible & Self::DIRTY != 0
    }

    /// Whether clusters are allocated in 32 parts.
    #[must_use]
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & Self::EXTENDED_L2 != 0
    }
}

/// What is told of one format only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detail {
    /// Plain bytes. Unknown too when the catalogue says raw: a guest may write anything.
    Raw(Content),
    /// See [`Qcow2`].
    Qcow2(Qcow2),
    /// Which kind of vmdk.
    Vmdk(Subformat),
    /// Whether a VDI, VHD or VHDX takes its whole room from the start.
    Blocks {
        /// No block is left out.
        is_fixed: bool,
    },
    /// A CD.
    Iso {
        /// Whether a disk's partition table is in front of it.
        is_hybrid: bool,
        /// What its own header says of its size, in bytes.
        volume_bytes: u64,
    },
}

/// What a file is, if nothing is wrong with it in itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Report {
    /// The one format it can be read as.
    pub format: Format,
    /// What a guest would see, in bytes, as qemu counts it.
    pub virtual_size: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What it's on top of.
    pub backing: Option<Backing>,
    /// How it's encrypted.
    pub encryption: Option<Encryption>,
    /// What is told of its format only.
    pub detail: Detail,
}

impl Report {
    /// Internal snapshots.
    #[must_use]
    pub fn snapshots(&self) -> u32 {
        match self.detail {
            Detail::Qcow2(qcow2) => qcow2.snapshots,
            Detail::Raw(_) | Detail::Vmdk(_) | Detail::Blocks { .. } | Detail::Iso { .. } => 0,
        }
    }
}
