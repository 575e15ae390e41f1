//! Files that are there whole or not at all.

use crate::exit::Failure;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Writes a file that others may read.
///
/// # Errors
/// When it can't be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    replace(path, text, 0o644).map_err(|error| unwritable(path, &error))
}

/// Writes a file for this user's eyes alone.
///
/// # Errors
/// When it can't be written.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    replace(path, text, 0o600).map_err(|error| unwritable(path, &error))
}

/// Makes a folder for this user alone, unless it's there.
///
/// # Errors
/// When it can't be made.
pub(crate) fn folder(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| unwritable(path, &error))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("{} stays: {error}", path.display());
    }
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let draft = path.with_added_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    fs::rename(&draft, path)
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("can't write {}: {error}", path.display()))
}
