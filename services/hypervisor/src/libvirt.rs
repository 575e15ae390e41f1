//! The only place that calls libvirt. Every call blocks, so each has a thread and a deadline; a
//! connection that broke never recovers, so it's replaced.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, task::spawn_blocking};
use virt::{connect::Connect, error::clear_error_callback};
use virtbus_wire::{Code, JobError};

/// How long one call may take. The first one to a session daemon starts it, which probes for
/// several seconds what the host can do.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Calls that may be on their way at once, those given up included: each keeps a thread.
const CALLS_MAX: usize = 8;

/// The address of a libvirt daemon: text without NUL, at which the binding would panic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Uri(String);

impl Default for Uri {
    fn default() -> Self {
        Self("qemu:///session".to_owned())
    }
}

impl FromStr for Uri {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("must be an address such as qemu:///system");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Uri {
    /// Whether the daemon is a part of this process: libvirt's trial driver.
    pub(crate) fn is_private(&self) -> bool {
        self.0.starts_with("test:")
    }
}

impl TryFrom<String> for Uri {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Uri> for String {
    fn from(uri: Uri) -> Self {
        uri.0
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `QEMU`, `TEST`, ...
    pub(crate) driver: String,
    /// libvirt's version, `9.0.0`.
    pub(crate) libvirt: String,
    /// Its processors.
    pub(crate) cpus: u32,
    /// Its memory, in bytes.
    pub(crate) memory: u64,
}

/// A call that gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LibvirtError {
    /// libvirt said no.
    #[error("libvirt: {0}")]
    Said(String),
    /// No answer in time.
    #[error("libvirt does not answer")]
    Silent,
}

impl From<virt::error::Error> for LibvirtError {
    fn from(error: virt::error::Error) -> Self {
        Self::Said(error.message().to_owned())
    }
}

impl From<LibvirtError> for JobError {
    fn from(error: LibvirtError) -> Self {
        // What libvirt says may hold host paths: it goes to the log.
        tracing::warn!(%error, "libvirt can't be asked");
        Self::new(
            Code::HypervisorUnreachable,
            "the host's libvirt does not answer",
        )
    }
}

/// A libvirt daemon, over a connection that is replaced when it breaks.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    uri: Uri,
    connection: Arc<Mutex<Option<Connect>>>,
    calls: Arc<Semaphore>,
}

impl Host {
    pub(crate) fn new(uri: &Uri) -> Self {
        // Otherwise the library writes each error to standard error by itself.
        clear_error_callback();
        Self {
            uri: uri.clone(),
            connection: Arc::default(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    /// What the host is, asked now.
    pub(crate) async fn node(&self) -> Result<Node, LibvirtError> {
        self.call(|connection| {
            let info = connection.get_node_info()?;
            Ok(Node {
                driver: connection.get_type()?,
                libvirt: version(connection.get_lib_version()?),
                cpus: info.cpus,
                memory: info.memory.saturating_mul(1024),
            })
        })
        .await
    }

    /// Makes one call on a thread of its own. One that hangs keeps its thread, not us.
    async fn call<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let free = Arc::clone(&self.calls).acquire_owned();
        let Ok(Ok(slot)) = tokio::time::timeout(CALL_LIMIT, free).await else {
            return Err(LibvirtError::Silent);
        };
        let host = self.clone();
        let called = spawn_blocking(move || {
            let answer = host.connected().and_then(|open| Ok(ask(&open)?));
            drop(slot);
            answer
        });
        match tokio::time::timeout(CALL_LIMIT, called).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(LibvirtError::Said("the call panicked".to_owned())),
            Err(_) => Err(LibvirtError::Silent),
        }
    }

    fn connected(&self) -> Result<Connect, LibvirtError> {
        let known = self.connection().clone();
        if let Some(connection) = known
            && connection.is_alive().unwrap_or(false)
        {
            return Ok(connection);
        }
        let fresh = Connect::open(Some(&self.uri.0))?;
        *self.connection() = Some(fresh.clone());
        Ok(fresh)
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<Connect>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// libvirt packs its version into one number: 1,000,000 major + 1,000 minor + release.
fn version(packed: u32) -> String {
    format!(
        "{}.{}.{}",
        packed / 1_000_000,
        packed / 1_000 % 1_000,
        packed % 1_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn libvirt_says_what_the_host_is() {
        let host = Host::new(&"test:///default".parse().unwrap());
        let node = host.node().await.unwrap();
        assert_eq!(node.driver.to_ascii_uppercase(), "TEST");
        assert!(node.cpus > 0 && node.memory > 0, "{node:?}");
        assert_eq!(node.libvirt.split('.').count(), 3);
    }

    #[tokio::test]
    async fn a_host_that_is_not_there_is_an_error_without_its_address() {
        let host = Host::new(&"test:///no/such/file.xml".parse().unwrap());
        let error = JobError::from(host.node().await.unwrap_err());
        assert_eq!(error.code, Code::HypervisorUnreachable);
        assert!(!error.message.contains('/'), "{error}");
    }

    #[test]
    fn an_address_holds_nothing_that_libvirt_can_not_take() {
        for text in ["", "qemu:///a b", "qemu:\0"] {
            assert!(text.parse::<Uri>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_packed_version_reads_as_people_write_it() {
        assert_eq!(version(9_000_000), "9.0.0");
        assert_eq!(version(10_001_002), "10.1.2");
    }
}
