//! The gate before every tool: what it lets through, and what a file of a disk must be for that.
//!
//! What a file really is, `virtbus-inspector` tells. What is let through is a [`Passed`], without
//! which no tool opens a file that is there.

mod passed;

pub use passed::{Measured, Passed, PassedChain};
pub use virtbus_inspector::gate::{
    Found, Known, check_foreign, look, look_at_foreign, look_beyond_mark,
};

use virtbus_inspector::{Fault, Report, gate};
use virtbus_wire::{JobError, task::image::ImageFormat};

/// What the catalogue says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its format.
    pub format: ImageFormat,
    /// The bare name and format of its backing.
    pub backing: Option<(String, ImageFormat)>,
    /// What is known of its content.
    pub known: Known,
}

/// Lets a file of ours through, or not.
///
/// # Errors
/// `image.format_mismatch`, `image.backing_file`, `image.data_file`, `image.unsafe_feature`,
/// `image.corrupt`, `image.too_large`.
pub fn check(found: Result<Report, Fault>, expected: &Expected) -> Result<Report, JobError> {
    let of_file = gate::Expected {
        format: expected.format,
        backing: expected.backing.clone(),
    };
    gate::check(found.clone(), &of_file, expected.known)?;
    found.map_err(|fault| JobError::new(fault.code(), fault.to_string()))
}
