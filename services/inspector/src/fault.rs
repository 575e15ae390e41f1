//! What is wrong with a file, and the code of a job that ends with it.

use crate::Format;
use thiserror::Error;
use virtbus_wire::Code;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The fixed part at the beginning.
    Header,
    /// What follows a qcow2's header.
    Extensions,
    /// The first table of where data is: L1, grain directory, block map.
    Map,
    /// The table of reference counts.
    Refcounts,
    /// The table of internal snapshots.
    Snapshots,
    /// The directory of bitmaps.
    Bitmaps,
    /// The text inside a VMDK.
    Text,
    /// What stands at the end.
    Footer,
    /// A VHDX's table of regions.
    Regions,
    /// A VHDX's metadata.
    Metadata,
    /// A VHDX's log.
    Log,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Extensions => "header extensions",
            Self::Map => "block map",
            Self::Refcounts => "reference counts",
            Self::Snapshots => "snapshot table",
            Self::Bitmaps => "bitmap directory",
            Self::Text => "descriptor",
            Self::Footer => "footer",
            Self::Regions => "region table",
            Self::Metadata => "metadata",
            Self::Log => "log",
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a file can't be let near a tool, whatever is expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Fault {
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It lacks the mark of the format it was opened as.
    #[error("the file isn't {0}")]
    Not(Format),
    /// It can be read as two formats.
    #[error("the file is {0} and {1} at once")]
    Several(Format, Format),
    /// It's of a format that isn't served.
    #[error("the file is {0}, which isn't served")]
    Unserved(Format),
    /// A version that isn't known.
    #[error("version {0} of the format isn't known")]
    Version(u32),
    /// Features that a reader has to know, and that aren't known.
    #[error("it has unknown features ({0:#x})")]
    UnknownFeatures(u64),
    /// A feature that is known and isn't allowed.
    #[error("{0} isn't allowed")]
    Unsafe(&'static str),
    /// Its writer marked it as damaged.
    #[error("it's marked as corrupt")]
    MarkedCorrupt,
    /// It keeps its data in another file.
    #[error("it keeps its data in another file")]
    DataFile,
    /// It's the difference to another file, in a format where none of ours is.
    #[error("it's the difference to another file")]
    Parent,
    /// A backing's name out of place or too long.
    #[error("its backing's name is out of place")]
    BackingName,
    /// The file ends before this part.
    #[error("the file ends within its {0}")]
    Truncated(Part),
    /// A number in this part is outside its range, or contradicts another one.
    #[error("its {0} is damaged: {1}")]
    Damaged(Part, &'static str),
    /// The checksum of this part is wrong.
    #[error("the checksum of its {0} is wrong")]
    Checksum(Part),
    /// It wasn't closed; a writer's log would have to be replayed.
    #[error("it wasn't closed by its last writer")]
    OpenLog,
    /// It claims to be larger than any disk is.
    #[error("it claims to be larger than any disk")]
    TooLarge,
}

impl Fault {
    /// The code of a job that ends with it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Not(_) | Self::Unserved(_) => Code::ImageFormatMismatch,
            Self::Several(..) => Code::ImageUnknownFormat,
            Self::Version(_) | Self::UnknownFeatures(_) | Self::Unsafe(_) => {
                Code::ImageUnsafeFeature
            }
            Self::DataFile => Code::ImageDataFile,
            Self::Parent | Self::BackingName => Code::ImageBackingFile,
            Self::Empty
            | Self::MarkedCorrupt
            | Self::Truncated(_)
            | Self::Damaged(..)
            | Self::Checksum(_)
            | Self::OpenLog => Code::ImageCorrupt,
            Self::TooLarge => Code::ImageTooLarge,
        }
    }
}
