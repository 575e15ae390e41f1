//! Whether what is copied goes around the host's page cache.

use super::{MARK, error::PoolError, root::Root};
use crate::config::{Cache, Direct};
use rustix::{fs::OFlags, io::Errno};

impl Root {
    /// How copies here go through the host's cache: as configured, as far as the file system lets
    /// them. It's asked each time, which is one more look at the mark: another one may be mounted
    /// by then.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn cache(&self) -> Result<Cache, PoolError> {
        match self.cache {
            Cache::Writeback => Ok(Cache::Writeback),
            Cache::Writearound | Cache::None => {
                let direct = self.direct(MARK).map_err(|source| PoolError::Refused {
                    act: "look at",
                    name: "the pool".to_owned(),
                    source,
                })?;
                Ok(self.cache.had_with(direct))
            }
        }
    }

    /// A file system that lacks it says so as a file is opened.
    fn direct(&self, file: &str) -> Result<Direct, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::DIRECT;
        match self.beneath(&*self.dir, file, flags) {
            Ok(_) => Ok(Direct::Has),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Direct::Lacks),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::PoolConfig,
        pool::{Pool, made_in, open_folder},
    };

    #[test]
    fn a_file_system_is_asked_by_opening_a_file_of_it() {
        let dir = open_folder("/proc/self".into()).unwrap();
        let root = Root::new(dir, &PoolConfig::at("/proc/self"));
        assert_eq!(root.direct("comm"), Ok(Direct::Lacks));
        assert_eq!(root.direct("no-such-file"), Err(Errno::NOENT));
        // Where builds are made; what lies in memory may lack it.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert_eq!(made_in(&dir).cache(), Ok(Cache::Writearound));
    }

    #[test]
    fn a_pool_that_copies_through_the_cache_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        made_in(&dir);
        let root = camino::Utf8Path::from_path(dir.path()).unwrap();
        let config = PoolConfig {
            cache: Cache::Writeback,
            ..PoolConfig::at(root)
        };
        let pool = Pool::new("default".parse().unwrap(), config);
        let root = pool.reach().unwrap();
        std::fs::remove_file(dir.path().join(MARK)).unwrap();
        assert_eq!(root.cache(), Ok(Cache::Writeback));
    }
}
