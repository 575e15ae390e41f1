//! The only place that calls libvirt. Every call blocks, so each has a thread, a deadline and a
//! connection of its own.

mod calls;
mod domain;
mod error;
mod events;
mod lines;
mod seen;
mod snapshot;
mod uri;
mod whose;

pub(crate) use domain::Power;
pub(crate) use error::LibvirtError;
pub(crate) use events::{BlockJob, Hint, Hinted};
pub(crate) use seen::{MARK_URI, Mark, Seen};
pub(crate) use snapshot::Running;
pub(crate) use uri::Uri;
pub(crate) use whose::{Asker, Daemon};

pub(crate) use calls::CALLS_MAX;
use calls::{Calls, Purpose};
use lines::Lines;
use std::{sync::Arc, time::Duration};
use tokio::task::spawn_blocking;
use virt::{connect::Connect, error::clear_error_callback};
use virtbus_wire::DomainId;

/// How long a look may take. The first one to a session daemon starts it, which probes for
/// several seconds what the host can do.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
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
    /// What it says that it can do, in XML.
    pub(crate) capabilities: String,
}

/// A libvirt daemon, over connections that are replaced when they break.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    lines: Lines,
    calls: Calls,
    /// Whose threads the calls take.
    purpose: Purpose,
}

impl Host {
    /// The daemon at an address, and what it tells by itself. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When libvirt's event loop can't be started.
    pub(crate) fn new(uri: &Uri) -> Result<(Self, Hinted), LibvirtError> {
        // Otherwise the library writes each error to standard error by itself.
        clear_error_callback();
        events::run_loop()?;
        let (hints, hinted) = events::hints();
        let host = Self {
            lines: Lines::new(uri, hints),
            calls: Calls::new(),
            purpose: Purpose::Other,
        };
        Ok((host, hinted))
    }

    /// The same, with threads of its own: its calls get through when all others hang.
    pub(crate) fn for_stops(&self) -> Self {
        self.with(Purpose::Stop)
    }

    /// The same, with threads of its own for looks at what happened.
    pub(crate) fn for_looks(&self) -> Self {
        self.with(Purpose::Look)
    }

    fn with(&self, purpose: Purpose) -> Self {
        Self {
            purpose,
            ..self.clone()
        }
    }

    /// What the host is, asked now.
    pub(crate) async fn node(&self) -> Result<Node, LibvirtError> {
        self.look(None, |connection| {
            let info = connection.get_node_info()?;
            Ok(Node {
                driver: connection.get_type()?,
                libvirt: version(connection.get_lib_version()?),
                cpus: info.cpus,
                memory: info.memory.saturating_mul(1024),
                capabilities: connection.get_capabilities()?,
            })
        })
        .await
    }

    /// The daemon as no other one is, whatever its address, told from the host of this name.
    pub(crate) async fn daemon(&self, own_host: &str) -> Result<Daemon, LibvirtError> {
        // The address may be an alias of libvirt's configuration, which it resolves.
        let uri = self
            .look(None, |connection| Ok(connection.get_uri()?))
            .await?;
        let unreadable = |_| LibvirtError::Unreadable("its own address");
        let uri: Uri = uri.parse().map_err(unreadable)?;
        Ok(Daemon::at(&uri, &Asker::own(own_host)).resolved())
    }

    /// Whether no call is late: a host with one that hangs starts nothing more.
    pub(crate) fn is_healthy(&self) -> bool {
        self.calls.are_in_time()
    }

    /// Whether what libvirt tells by itself is heard.
    pub(crate) fn is_heard(&self) -> bool {
        events::are_heard()
    }

    /// Whether a call about this domain is still on its way: then nobody knows what it is.
    pub(crate) fn is_in_doubt(&self, domain: &DomainId) -> bool {
        self.calls.has(domain)
    }

    /// Asks something that changes nothing; once more over a new connection if the old one broke.
    async fn look<T: Send + 'static>(
        &self,
        domain: Option<&DomainId>,
        ask: impl Fn(&Connect) -> Result<T, LibvirtError> + Send + Sync + 'static,
    ) -> Result<T, LibvirtError> {
        let ask = Arc::new(ask);
        let first = Arc::clone(&ask);
        match self.call(domain, LOOK_LIMIT, move |open| first(open)).await {
            Err(LibvirtError::Broken(_)) => {
                self.call(domain, LOOK_LIMIT, move |open| ask(open)).await
            }
            answer => answer,
        }
    }

    /// Makes one call on a thread of its own. One that hangs keeps its thread, not us.
    async fn call<T: Send + 'static>(
        &self,
        domain: Option<&DomainId>,
        limit: Duration,
        ask: impl FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let Some(call) = self.calls.begin(self.purpose, domain, limit).await else {
            return Err(LibvirtError::Silent);
        };
        let lines = self.lines.clone();
        let called = spawn_blocking(move || {
            let answer = lines.take().and_then(|line| {
                let answer = ask(&line);
                let is_well = answer.is_ok() || line.is_well();
                lines.give_back(line);
                answer.map_err(|error| match is_well {
                    true => error,
                    false => LibvirtError::Broken(error.to_string()),
                })
            });
            drop(call);
            answer
        });
        match tokio::time::timeout(limit, called).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(LibvirtError::Unreadable("the call panicked")),
            Err(_) => Err(LibvirtError::Silent),
        }
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
    use virtbus_wire::{Code, JobError};

    #[tokio::test]
    async fn libvirt_says_what_the_host_is() {
        let (host, _hinted) = Host::new(&"test:///default".parse().unwrap()).unwrap();
        let node = host.node().await.unwrap();
        assert_eq!(node.driver.to_ascii_uppercase(), "TEST");
        assert!(node.cpus > 0 && node.memory > 0, "{node:?}");
        assert_eq!(node.libvirt.split('.').count(), 3);
    }

    #[tokio::test]
    async fn a_host_that_is_not_there_is_an_error_without_its_address() {
        let (host, _hinted) = Host::new(&"test:///no/such/file.xml".parse().unwrap()).unwrap();
        let error = JobError::from(host.node().await.unwrap_err());
        assert_eq!(error.code, Code::HypervisorUnreachable);
        assert!(!error.message.contains('/'), "{error}");
    }

    /// Many events at once, while the connection they come over is replaced again and again: what
    /// is lost is told as such, and nothing of the call-backs is used after it's gone.
    #[tokio::test]
    async fn events_come_while_connections_go() {
        const DOMAINS: usize = 300;
        let (host, mut hinted) = Host::new(&"test:///default".parse().unwrap()).unwrap();
        let changes = tokio::spawn(async move {
            for number in 0..DOMAINS {
                let name: DomainId = format!("web{number}").parse().unwrap();
                let xml = format!(
                    "<domain type='test'><name>{name}</name><memory>1024</memory>\
                     <os><type>hvm</type></os></domain>"
                );
                host.define(&name, xml).await.unwrap();
                host.start(&name, false).await.unwrap();
                if number % 50 == 49 {
                    drop(host.lines.listening().take());
                }
            }
            host
        });
        let (mut named, mut everything) = (0, 0);
        let counted = async {
            while everything < DOMAINS / 50 {
                match hinted.next().await {
                    Some(Hint::Domain(_)) => named += 1,
                    Some(Hint::Everything) => everything += 1,
                    None => return,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), counted)
            .await
            .unwrap();
        drop(changes.await.unwrap());
        assert!(named > DOMAINS, "{named}");
    }

    /// Each over a connection of its own, so none wakes another one's thread: see [`lines`].
    #[tokio::test]
    async fn many_calls_at_once_outlive_a_daemon_that_stands_still() {
        const ROUNDS: u32 = 20;
        const CALLS: usize = 8;
        let libvirt = virtbus_testbed::Libvirt::start().await;
        let (host, _hinted) = Host::new(&libvirt.uri().parse().unwrap()).unwrap();
        host.node().await.unwrap();
        for _ in 0..ROUNDS {
            libvirt.signal("STOP");
            let mut asked = tokio::task::JoinSet::new();
            for _ in 0..CALLS {
                let host = host.clone();
                asked.spawn(async move { host.node().await });
            }
            virtbus_testbed::until("calls on their way", async || match host.calls.count() {
                CALLS => Ok(()),
                other => Err(other),
            })
            .await;
            libvirt.signal("CONT");
            for answer in asked.join_all().await {
                assert_eq!(answer.unwrap().driver, "QEMU");
            }
        }
    }

    #[test]
    fn a_packed_version_reads_as_people_write_it() {
        assert_eq!(version(9_000_000), "9.0.0");
        assert_eq!(version(10_001_002), "10.1.2");
    }
}
