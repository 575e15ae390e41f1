//! The room of the file system that a pool is on.

use super::{error::PoolError, root::Root};
use rustix::fs::{fstat, fstatvfs};

impl Root {
    /// Bytes that the file system has left for this service.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn free_bytes(&self) -> Result<u64, PoolError> {
        let stat = fstatvfs(&*self.dir).map_err(|source| PoolError::Refused {
            act: "measure",
            name: "the pool".to_owned(),
            source,
        })?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The file system's number.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn device(&self) -> Result<u64, PoolError> {
        let stat = fstat(&*self.dir).map_err(|source| PoolError::Refused {
            act: "look at",
            name: "the pool".to_owned(),
            source,
        })?;
        Ok(stat.st_dev)
    }
}
