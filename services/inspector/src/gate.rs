//! The gate before every tool: a file is what the catalogue says, or no tool opens it.
//!
//! A guest can write any header into a raw disk, and whoever has the pool can write any file; so
//! this is asked each time, of each file of a chain: before a tool runs, and before a domain starts.
//! The one module here that reads files: the caller opens them, by whatever rules its pools have.

use crate::{
    Below, Expected as Wanted, Fault, Format, Inspector, Refusal, Report, agrees, policy::holds,
};
use rustix::{
    fs::fstat,
    io::{Errno, pread},
};
use std::{fmt, ops::RangeInclusive, os::fd::OwnedFd};
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState},
    task::image::ImageFormat,
};

/// How often a file is looked at before what seems to be damage is believed: another program may
/// be writing it, so that its length and its tables are of different moments.
const LOOKS_MAX: u32 = 3;

/// Where a qcow2 says its version.
const QCOW2_VERSION_AT: u64 = 4;
/// The version that has features, damage among them.
const QCOW2_WITH_FEATURES: [u8; 4] = [0, 0, 0, 3];
/// Where a qcow2 of that version is marked as damaged.
const QCOW2_MARK_AT: u64 = 79;
/// The mark.
const QCOW2_MARK: u8 = 1 << 1;

/// What was found in a file, or why it couldn't be read.
pub type Found = Result<Result<Report, Fault>, Errno>;

/// Whether the mark of damage is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Counts,
    Hidden,
}

/// What the catalogue says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its format.
    pub format: ImageFormat,
    /// The bare name and format of its backing.
    pub backing: Option<(String, ImageFormat)>,
}

/// What the catalogue says of a file's content. Nothing is known of what a job is changing: it may
/// have been cut between the change and the record of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Its virtual size, in bytes.
    pub virtual_size: Option<u64>,
    /// How many snapshots are inside.
    pub snapshots: Option<u32>,
}

impl Known {
    /// What a disk's record says.
    #[must_use]
    pub fn of(record: &DiskRecord) -> Self {
        match record.state {
            // What is in the archive is what was put there.
            DiskState::Ready | DiskState::Archived => {}
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken
            | DiskState::Deleted => return Self::default(),
        }
        Self {
            virtual_size: record.virtual_size,
            snapshots: u32::try_from(record.snapshots.len()).ok(),
        }
    }

    /// Lets a sound file through whose content is what is known.
    ///
    /// # Errors
    /// `image.format_mismatch`, `image.unsafe_feature`.
    pub fn admit(&self, report: &Report) -> Result<(), JobError> {
        holds(report, self.virtual_size, &self.snapshots()).map_err(disagrees)
    }

    fn snapshots(&self) -> RangeInclusive<u32> {
        self.snapshots.map_or(0..=u32::MAX, |known| known..=known)
    }
}

/// Looks at a file of ours as what it should be.
///
/// # Errors
/// When it can't be read.
pub fn look(file: &OwnedFd, format: ImageFormat) -> Found {
    look_as(file, format, Mark::Counts)
}

/// The same, but for a qcow2's mark of damage: for the one tool that's to put it right. All else
/// about the file is looked at as ever.
///
/// # Errors
/// When it can't be read.
pub fn look_beyond_mark(file: &OwnedFd, format: ImageFormat) -> Found {
    let mut version = [0; 4];
    let is_marked = pread(file, &mut version, QCOW2_VERSION_AT)? == version.len()
        && format == ImageFormat::Qcow2
        && version == QCOW2_WITH_FEATURES;
    let mark = if is_marked {
        Mark::Hidden
    } else {
        Mark::Counts
    };
    look_as(file, format, mark)
}

fn look_as(file: &OwnedFd, format: ImageFormat, mark: Mark) -> Found {
    let format = Format::from(format);
    let mut looks = 1;
    loop {
        let found = inspect(file, Inspector::of(format), mark)?;
        let seems_damaged = matches!(&found, Err(fault) if fault.code() == Code::ImageCorrupt);
        if !seems_damaged || looks >= LOOKS_MAX {
            return Ok(found);
        }
        looks += 1;
    }
}

/// Looks at a file from outside, whatever it is.
///
/// # Errors
/// When it can't be read.
pub fn look_at_foreign(file: &OwnedFd) -> Found {
    inspect(file, Inspector::detect(), Mark::Counts)
}

fn inspect(file: &OwnedFd, inspector: Inspector, mark: Mark) -> Found {
    let length = u64::try_from(fstat(file)?.st_size).unwrap_or_default();
    crate::inspect(inspector, length, |offset, into| {
        let mut n = 0;
        while n < into.len() {
            match pread(file, &mut into[n..], offset + n as u64) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let at = QCOW2_MARK_AT.checked_sub(offset).map(usize::try_from);
        if let (Mark::Hidden, Some(Ok(at))) = (mark, at)
            && let Some(byte) = into[..n].get_mut(at)
        {
            *byte &= !QCOW2_MARK;
        }
        Ok(n)
    })
}

/// Lets a file of ours through, or not.
///
/// # Errors
/// `image.format_mismatch`, `image.backing_file`, `image.data_file`, `image.unsafe_feature`,
/// `image.corrupt`, `image.too_large`.
pub fn check(
    found: Result<Report, Fault>,
    expected: &Expected,
    known: Known,
) -> Result<(), JobError> {
    let report = found.map_err(|fault| refuse(fault.code(), fault))?;
    let wanted = Wanted::of_catalogue(expected.format.into(), known.virtual_size);
    let mut wanted = wanted.on(below(expected.backing.as_ref()));
    wanted.snapshots = known.snapshots();
    agrees(&report, &wanted).map_err(disagrees)
}

/// Lets a file from outside through that should be of this format and at most this large, in
/// bytes. What it says of a backing is left to the caller.
///
/// # Errors
/// As [`check`], and `image.unknown_format`.
pub fn check_foreign(
    found: Result<Report, Fault>,
    format: impl Into<Format>,
    size_max: u64,
) -> Result<Report, JobError> {
    let report = found.map_err(|fault| refuse(fault.code(), fault))?;
    let wanted = Wanted::from_outside(format.into(), size_max).on(Below::Anything);
    agrees(&report, &wanted).map_err(disagrees)?;
    Ok(report)
}

fn below(backing: Option<&(String, ImageFormat)>) -> Below {
    backing.map_or(Below::Nothing, |(name, format)| Below::File {
        name: name.clone(),
        format: (*format).into(),
    })
}

fn disagrees(refusal: Refusal) -> JobError {
    refuse(refusal.code(), refusal)
}

fn refuse(code: Code, why: impl fmt::Display) -> JobError {
    let text = format!("the disk's file can't be opened safely: {why}");
    JobError::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    /// An overlay of 1 MiB on `d1.raw`, in clusters of 512 bytes.
    fn overlay() -> OwnedFd {
        let mut image = [0; 2048];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(8, &[0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 6, 0, 0, 0, 9]);
        put(24, &(1_u64 << 20).to_be_bytes());
        // 32 entries at 1536; the table of reference counts is one cluster at 512.
        put(
            36,
            &[
                0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1,
            ],
        );
        put(96, &[0, 0, 0, 4, 0, 0, 0, 104]);
        put(104, b"\xe2\x79\x2a\xca\0\0\0\x03raw");
        put(128, b"d1.raw");
        file(&image)
    }

    fn expected(backing: Option<&str>) -> Expected {
        Expected {
            format: ImageFormat::Qcow2,
            backing: backing.map(|name| (name.to_owned(), ImageFormat::Raw)),
        }
    }

    #[test]
    fn sizes_and_snapshots_must_be_the_catalogues_where_it_knows_them() {
        let found = look(&overlay(), ImageFormat::Qcow2).unwrap();
        let with = |virtual_size, snapshots| {
            let known = Known {
                virtual_size,
                snapshots,
            };
            let checked = check(found.clone(), &expected(Some("d1.raw")), known);
            checked.err().map(|error| error.code)
        };
        assert_eq!(with(None, None), None);
        assert_eq!(with(Some(1 << 20), Some(0)), None);
        assert_eq!(with(Some(2 << 20), None), Some(Code::ImageFormatMismatch));
        assert_eq!(with(None, Some(1)), Some(Code::ImageUnsafeFeature));
    }

    #[test]
    fn the_backing_of_a_file_from_outside_is_left_to_the_caller() {
        let found = look_at_foreign(&overlay()).unwrap();
        let alone = check(found.clone(), &expected(None), Known::default());
        assert_eq!(alone.unwrap_err().code, Code::ImageBackingFile);
        let report = check_foreign(found.clone(), ImageFormat::Qcow2, 1 << 20).unwrap();
        assert_eq!(report.backing.unwrap().name.as_bytes(), b"d1.raw");
        let large = check_foreign(found.clone(), ImageFormat::Qcow2, 1 << 19);
        assert_eq!(large.unwrap_err().code, Code::ImageTooLarge);
        let other = check_foreign(found, ImageFormat::Raw, 1 << 20).unwrap_err();
        assert_eq!(other.code, Code::ImageFormatMismatch);
        assert!(!other.message.contains('/'), "{}", other.message);
    }

    #[test]
    fn a_file_that_is_damaged_stays_so_however_often_it_is_looked_at() {
        let cut = file(b"QFI\xfb\0\0\0\x03");
        let found = look(&cut, ImageFormat::Qcow2).unwrap();
        let refused = check(found, &expected(None), Known::default()).unwrap_err();
        assert_eq!(refused.code, Code::ImageCorrupt);
    }
}
