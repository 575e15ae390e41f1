//! Whether a file is what it should be: what was found against what the catalogue says.

use crate::{
    Detail, Format, Name, Qcow2, Report,
    limits::{OUTSIDE_SNAPSHOTS_MAX, VIRTUAL_BYTES_MAX},
};
use std::ops::RangeInclusive;
use thiserror::Error;
use virtbus_wire::Code;

/// Where a file comes from, which decides what it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Somebody sent it.
    Outside,
    /// The catalogue has it: our tools made it, or it was inspected when it came.
    Catalogue,
}

/// What a file must be on top of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Below {
    /// Nothing.
    Nothing,
    /// Another file.
    File {
        /// Its name, to the byte.
        name: String,
        /// Its format, which the file must say too.
        format: Format,
    },
    /// Whatever it says: the caller judges that, before a tool sees the file.
    Anything,
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes, where it's known.
    pub virtual_size: Option<u64>,
    /// The most its virtual size may be, in bytes.
    pub size_max: u64,
    /// What it's on top of.
    pub below: Below,
    /// How many internal snapshots it may have.
    pub snapshots: RangeInclusive<u32>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Expected {
    /// A file that somebody sent, of a format he told and of any size up to a limit, in bytes.
    #[must_use]
    pub fn from_outside(format: Format, size_max: u64) -> Self {
        Self {
            format,
            virtual_size: None,
            size_max,
            below: Below::Nothing,
            snapshots: 0..=OUTSIDE_SNAPSHOTS_MAX,
            origin: Origin::Outside,
        }
    }

    /// A file that the catalogue has, with nothing below it.
    #[must_use]
    pub fn of_catalogue(format: Format, virtual_size: Option<u64>) -> Self {
        Self {
            format,
            virtual_size,
            size_max: VIRTUAL_BYTES_MAX,
            below: Below::Nothing,
            snapshots: 0..=u32::MAX,
            origin: Origin::Catalogue,
        }
    }

    /// The same, on top of another file.
    #[must_use]
    pub fn on(self, below: Below) -> Self {
        Self { below, ..self }
    }
}

/// How a sound file isn't what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// It's of another format.
    #[error("the file is {0}")]
    Format(Format),
    /// It's on top of something else, or of nothing, or doesn't say of which format that is.
    #[error("its backing isn't the one in the catalogue")]
    Backing,
    /// It has another virtual size, in bytes.
    #[error("its virtual size is {0} bytes")]
    VirtualSize(u64),
    /// Its virtual size is more than allowed, in bytes.
    #[error("its virtual size is {0} bytes, which is too large")]
    TooLarge(u64),
    /// It's encrypted.
    #[error("it's encrypted")]
    Encrypted,
    /// It has more or fewer internal snapshots.
    #[error("it has {0} internal snapshots")]
    Snapshots(u32),
    /// It wasn't closed, and nobody knows what its last writer had still to write.
    #[error("it wasn't closed by its last writer")]
    Dirty,
}

impl Refusal {
    /// The code of a job that ends with it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Format(_) | Self::VirtualSize(_) => Code::ImageFormatMismatch,
            Self::Backing => Code::ImageBackingFile,
            Self::TooLarge(_) => Code::ImageTooLarge,
            Self::Encrypted | Self::Snapshots(_) => Code::ImageUnsafeFeature,
            Self::Dirty => Code::ImageCorrupt,
        }
    }
}

/// Lets a file through if it's what it should be.
///
/// # Errors
/// The first way in which it isn't.
pub fn agrees(report: &Report, expected: &Expected) -> Result<(), Refusal> {
    if report.format != expected.format {
        return Err(Refusal::Format(report.format));
    }
    if !is_on(report, &expected.below) {
        return Err(Refusal::Backing);
    }
    if report.encryption.is_some() {
        return Err(Refusal::Encrypted);
    }
    let size = report.virtual_size;
    if size > expected.size_max {
        return Err(Refusal::TooLarge(size));
    }
    holds(report, expected.virtual_size, &expected.snapshots)?;
    let is_dirty = matches!(&report.detail, Detail::Qcow2(qcow2) if Qcow2::is_dirty(qcow2));
    match expected.origin {
        Origin::Outside if is_dirty => Err(Refusal::Dirty),
        Origin::Outside | Origin::Catalogue => Ok(()),
    }
}

/// Lets a file through if it has this virtual size, in bytes, and as many internal snapshots.
///
/// # Errors
/// The first of the two that it doesn't have.
pub(crate) fn holds(
    report: &Report,
    virtual_size: Option<u64>,
    snapshots: &RangeInclusive<u32>,
) -> Result<(), Refusal> {
    let size = report.virtual_size;
    if virtual_size.is_some_and(|wanted| wanted != size) {
        return Err(Refusal::VirtualSize(size));
    }
    if !snapshots.contains(&report.snapshots()) {
        return Err(Refusal::Snapshots(report.snapshots()));
    }
    Ok(())
}

fn is_on(report: &Report, below: &Below) -> bool {
    match (&report.backing, below) {
        (_, Below::Anything) | (None, Below::Nothing) => true,
        (Some(found), Below::File { name, format }) => {
            let said = found.format.as_ref().map(Name::as_bytes);
            found.name.as_bytes() == name.as_bytes() && said == Some(format.as_str().as_bytes())
        }
        (Some(_), Below::Nothing) | (None, Below::File { .. }) => false,
    }
}
