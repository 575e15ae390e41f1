//! The room of the file system that a pool is on.

use super::{
    error::PoolError,
    root::{Root, identity_of},
};
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

    /// Device and inode of the pool's folder.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn place(&self) -> Result<(u64, u64), PoolError> {
        let stat = fstat(&*self.dir).map_err(|source| PoolError::Refused {
            act: "look at",
            name: "the pool".to_owned(),
            source,
        })?;
        Ok(identity_of(&stat))
    }
}
