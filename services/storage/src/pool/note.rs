//! Small files in a pool's root, beside its folders.

use super::{error::PoolError, root::Root};
use rustix::{
    fs::{OFlags, fsync, renameat},
    io::Errno,
};
use std::{
    fs::File,
    io::{Read as _, Write as _},
};

impl Root {
    /// A small file beside the folders; none if there is none. What goes beyond `bytes_max` is cut
    /// off.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn read_note(&self, file: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, PoolError> {
        let failed = |source| refused("read", file, source);
        let note = match self.beneath(&*self.dir, file, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Errno::NOENT) => return Ok(None),
            note => note.map_err(failed)?,
        };
        let mut text = Vec::new();
        let mut read = File::from(note).take(bytes_max as u64);
        let done = read.read_to_end(&mut text);
        done.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Ok(Some(text))
    }

    /// Writes a small file beside the folders, in place of the one before.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_note(&self, file: &str, text: &[u8]) -> Result<(), PoolError> {
        let failed = |source| refused("write", file, source);
        let part = format!("{file}.part");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let note = self.beneath(&*self.dir, &part, flags).map_err(failed)?;
        let mut note = File::from(note);
        let written = note.write_all(text).and_then(|()| note.sync_all());
        written.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        renameat(&*self.dir, &part, &*self.dir, file).map_err(failed)?;
        fsync(&*self.dir).map_err(failed)
    }
}

fn refused(act: &'static str, file: &str, source: Errno) -> PoolError {
    let name = file.to_owned();
    PoolError::Refused { act, name, source }
}
