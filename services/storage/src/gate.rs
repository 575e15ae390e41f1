//! The gate before every tool: a file is what the catalogue says, or no tool opens it.
//!
//! What a file really is, `virtbus-inspector` tells. A guest can write any header into a raw disk,
//! and whoever has the pool can write any file; so this is asked each time, of each file of a chain.

use rustix::{
    fs::fstat,
    io::{Errno, pread},
};
use std::{fmt, os::fd::OwnedFd};
use virtbus_inspector::{
    self as inspector, Below, Expected as Wanted, Fault, Format, Inspector, Report, agrees,
};
use virtbus_wire::{
    Code, JobError,
    catalog::{DiskRecord, DiskState},
    task::image::ImageFormat,
};

/// How often a file is looked at before what seems to be damage is believed: another program may
/// be writing it, so that its length and its tables are of different moments.
const LOOKS_MAX: u32 = 3;

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
        if record.state != DiskState::Ready {
            return Self::default();
        }
        Self {
            virtual_size: record.virtual_size,
            snapshots: u32::try_from(record.snapshots.len()).ok(),
        }
    }
}

/// Looks at a file of ours as what it should be.
///
/// # Errors
/// When it can't be read.
pub fn look(file: &OwnedFd, format: ImageFormat) -> Result<Result<Report, Fault>, Errno> {
    let format = Format::from(format);
    let mut looks = 1;
    loop {
        let found = inspect(file, Inspector::of(format))?;
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
pub fn look_at_foreign(file: &OwnedFd) -> Result<Result<Report, Fault>, Errno> {
    inspect(file, Inspector::detect())
}

fn inspect(file: &OwnedFd, inspector: Inspector) -> Result<Result<Report, Fault>, Errno> {
    let length = u64::try_from(fstat(file)?.st_size).unwrap_or_default();
    inspector::inspect(inspector, length, |offset, into| {
        let mut n = 0;
        while n < into.len() {
            match pread(file, &mut into[n..], offset + n as u64) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
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
    if let Some(snapshots) = known.snapshots {
        wanted.snapshots = snapshots..=snapshots;
    }
    agrees(&report, &wanted).map_err(|refusal| refuse(refusal.code(), refusal))
}

/// Lets a file from outside through that should be of this format and at most this large, in
/// bytes. What it says of a backing is left to the caller.
///
/// # Errors
/// As [`check`], and `image.unknown_format`.
pub fn check_foreign(
    found: Result<Report, Fault>,
    format: ImageFormat,
    size_max: u64,
) -> Result<Report, JobError> {
    let report = found.map_err(|fault| refuse(fault.code(), fault))?;
    let wanted = Wanted::from_outside(format.into(), size_max).on(Below::Anything);
    match agrees(&report, &wanted) {
        Ok(()) => Ok(report),
        Err(refusal) => Err(refuse(refusal.code(), refusal)),
    }
}

fn below(backing: Option<&(String, ImageFormat)>) -> Below {
    backing.map_or(Below::Nothing, |(name, format)| Below::File {
        name: name.clone(),
        format: (*format).into(),
    })
}

fn refuse(code: Code, why: impl fmt::Display) -> JobError {
    let text = format!("the disk's file can't be opened safely: {why}");
    JobError::new(code, text)
}
