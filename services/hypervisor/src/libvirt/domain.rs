//! What can be done with a domain.
//!
//! Each act says what it did, not whether it was needed: whoever calls reads the state before, and
//! decides by the state after. That libvirt says "invalid" proves nothing about it.

use super::{
    BlockJob, Host, LibvirtError, Seen,
    events::{block_commit, block_end, block_job, is_busy},
    seen::snapshot_files,
    snapshot::{Running, running},
};
use std::{collections::BTreeMap, time::Duration};
use virt::{connect::Connect, domain::Domain, domain_snapshot::DomainSnapshot, sys};
use virtbus_wire::{DomainId, SnapshotId};

/// How long a definition, a resume, a reset may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// How long a start may take: qemu is started, images are opened.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long the end of a domain may take: qemu is given time to write out what it holds.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a snapshot may take: the memory is written out with it.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(3_600);

/// What is done to a domain that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// It's asked to shut down.
    Shutdown,
    /// As if the power failed.
    Destroy,
    /// Its processors run on.
    Resume,
    /// As its reset button would.
    Reset,
}

fn found(connection: &Connect, name: &str) -> Result<Domain, LibvirtError> {
    Ok(Domain::lookup_by_name(connection, name)?)
}

fn snapshot(
    connection: &Connect,
    domain: &str,
    name: &SnapshotId,
) -> Result<DomainSnapshot, LibvirtError> {
    let domain = found(connection, domain)?;
    Ok(DomainSnapshot::lookup_by_name(&domain, name.as_str(), 0)?)
}

impl Host {
    /// A domain as it is now; none when libvirt doesn't know it.
    pub(crate) async fn domain(&self, name: &str) -> Result<Option<Seen>, LibvirtError> {
        let name = checked(name)?;
        self.look(None, move |connection| match found(connection, &name) {
            Ok(domain) => match Seen::look(&domain) {
                Err(error) if error.is_no_domain() => Ok(None),
                seen => seen.map(Some),
            },
            Err(error) if error.is_no_domain() => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// Whether libvirt is still at something with a domain: a call goes on without who made it.
    pub(crate) async fn is_busy(&self, domain: &DomainId) -> Result<bool, LibvirtError> {
        let name = domain.to_string();
        self.look(None, move |connection| {
            let domain = match found(connection, &name) {
                Ok(domain) => domain,
                Err(error) if error.is_no_domain() => return Ok(false),
                Err(error) => return Err(error),
            };
            match is_busy(&domain) {
                Ok(is_busy) => Ok(is_busy),
                // It can't be said of one that doesn't run, and not by every driver.
                Err(_) if !domain.is_active()? => Ok(false),
                Err(error) if error.is_unsupported() => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// What the domains that run take, by their names. One that goes meanwhile is left out. It's
    /// asked for each start that is offered: so one short question about each of them.
    pub(crate) async fn running(&self) -> Result<BTreeMap<String, Running>, LibvirtError> {
        self.look(None, move |connection| {
            let mut all = BTreeMap::new();
            for domain in connection.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
                let info = match domain.get_info().map_err(LibvirtError::from) {
                    Ok(info) => info,
                    Err(error) if error.is_no_domain() => continue,
                    Err(error) => return Err(error),
                };
                let takes = Running {
                    memory: info.max_mem.saturating_mul(1024),
                    vcpus: u64::from(info.nr_virt_cpu),
                };
                all.insert(domain.get_name()?, takes);
            }
            Ok(all)
        })
        .await
    }

    /// The names of all domains, defined or running.
    pub(crate) async fn names(&self) -> Result<Vec<String>, LibvirtError> {
        self.look(None, |connection| {
            let all = connection.list_all_domains(0)?;
            let names: Result<_, _> = all.iter().map(Domain::get_name).collect();
            Ok(names?)
        })
        .await
    }

    /// Defines a domain, or defines it anew; libvirt checks the XML against its schema.
    pub(crate) async fn define(&self, domain: &DomainId, xml: String) -> Result<(), LibvirtError> {
        let xml = checked(&xml)?;
        self.change(domain, CHANGE_LIMIT, move |connection| {
            Domain::define_xml_flags(connection, &xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)?;
            Ok(())
        })
        .await
    }

    /// Starts a defined domain.
    pub(crate) async fn start(&self, domain: &DomainId, paused: bool) -> Result<(), LibvirtError> {
        let name = domain.to_string();
        let flags = if paused {
            sys::VIR_DOMAIN_START_PAUSED
        } else {
            0
        };
        self.change(domain, START_LIMIT, move |connection| {
            found(connection, &name)?.create_with_flags(flags)?;
            Ok(())
        })
        .await
    }

    /// Starts a domain that isn't defined, paused; it goes with this connection at the latest.
    pub(crate) async fn try_out(&self, domain: &DomainId, xml: String) -> Result<(), LibvirtError> {
        let xml = checked(&xml)?;
        let flags = sys::VIR_DOMAIN_START_PAUSED
            | sys::VIR_DOMAIN_START_VALIDATE
            | sys::VIR_DOMAIN_START_AUTODESTROY;
        self.change(domain, START_LIMIT, move |connection| {
            Domain::create_xml(connection, &xml, flags)?;
            Ok(())
        })
        .await
    }

    /// Does something to a domain that is there. `name` = what libvirt calls it.
    pub(crate) async fn power(
        &self,
        domain: &DomainId,
        name: &str,
        power: Power,
    ) -> Result<(), LibvirtError> {
        let name = checked(name)?;
        let act = move |connection: &Connect| {
            let domain = found(connection, &name)?;
            match power {
                Power::Shutdown => domain.shutdown().map(|_| ()),
                Power::Destroy => domain.destroy(),
                Power::Resume => domain.resume().map(|_| ()),
                Power::Reset => domain.reset().map(|_| ()),
            }?;
            Ok(())
        };
        let limit = match power {
            Power::Shutdown | Power::Destroy => STOP_LIMIT,
            Power::Resume | Power::Reset => CHANGE_LIMIT,
        };
        self.change(domain, limit, act).await
    }

    /// Forgets a domain that doesn't run, with what libvirt keeps for it.
    pub(crate) async fn undefine(&self, domain: &DomainId) -> Result<(), LibvirtError> {
        let name = domain.to_string();
        let flags = sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        self.change(domain, CHANGE_LIMIT, move |connection| {
            let domain = found(connection, &name)?;
            match domain.undefine_flags(flags) {
                Ok(()) => Ok(()),
                // Drivers without all of these say that an argument is invalid.
                Err(error) if error.code() == virt::error::ErrorNumber::InvalidArg => {
                    Ok(domain.undefine()?)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Keeps what a domain is now, as the XML of a snapshot says.
    pub(crate) async fn make_snapshot(
        &self,
        domain: &DomainId,
        xml: String,
        flags: u32,
    ) -> Result<(), LibvirtError> {
        let (name, xml) = (domain.to_string(), checked(&xml)?);
        self.change(domain, SNAPSHOT_LIMIT, move |connection| {
            DomainSnapshot::create_xml(&found(connection, &name)?, &xml, flags)?;
            Ok(())
        })
        .await
    }

    /// Puts a domain back to a snapshot.
    pub(crate) async fn revert(
        &self,
        domain: &DomainId,
        id: &SnapshotId,
    ) -> Result<(), LibvirtError> {
        let (name, id) = (domain.to_string(), id.clone());
        self.change(domain, SNAPSHOT_LIMIT, move |connection| {
            snapshot(connection, &name, &id)?.revert(0)?;
            Ok(())
        })
        .await
    }

    /// Removes a snapshot and what it holds.
    pub(crate) async fn drop_snapshot(
        &self,
        domain: &DomainId,
        id: &SnapshotId,
    ) -> Result<(), LibvirtError> {
        let (name, id) = (domain.to_string(), id.clone());
        self.change(domain, SNAPSHOT_LIMIT, move |connection| {
            snapshot(connection, &name, &id)?.delete(0)?;
            Ok(())
        })
        .await
    }

    /// The XML with which a snapshot was made.
    pub(crate) async fn snapshot_xml(
        &self,
        domain: &DomainId,
        id: &SnapshotId,
    ) -> Result<String, LibvirtError> {
        let (name, id) = (domain.to_string(), id.clone());
        self.look(Some(domain), move |connection| {
            Ok(snapshot(connection, &name, &id)?.get_xml_desc(0)?)
        })
        .await
    }

    /// What a domain takes after a revert to a snapshot; none when it's off then.
    pub(crate) async fn runs_from(
        &self,
        domain: &DomainId,
        id: &SnapshotId,
    ) -> Result<Option<Running>, LibvirtError> {
        running(&self.snapshot_xml(domain, id).await?)
    }

    /// The files of the disks and media that a domain had when a snapshot was made.
    pub(crate) async fn snapshot_files(
        &self,
        domain: &DomainId,
        id: &SnapshotId,
    ) -> Result<Vec<String>, LibvirtError> {
        snapshot_files(&self.snapshot_xml(domain, id).await?)
    }

    /// Sets the size of a running domain's disk, in bytes.
    pub(crate) async fn resize(
        &self,
        domain: &DomainId,
        target: String,
        size: u64,
    ) -> Result<(), LibvirtError> {
        let name = domain.to_string();
        self.change(domain, CHANGE_LIMIT, move |connection| {
            let flags = sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
            found(connection, &name)?.block_resize(&target, size, flags)?;
            Ok(())
        })
        .await
    }

    /// The size of a running domain's disk as its guest sees it, in bytes.
    pub(crate) async fn disk_size(
        &self,
        domain: &DomainId,
        target: String,
    ) -> Result<u64, LibvirtError> {
        let name = domain.to_string();
        self.look(Some(domain), move |connection| {
            Ok(found(connection, &name)?
                .get_block_info(&target, 0)?
                .capacity)
        })
        .await
    }

    /// Begins to write a disk's top file into the one below, while the domain runs.
    pub(crate) async fn begin_commit(
        &self,
        domain: &DomainId,
        target: String,
    ) -> Result<(), LibvirtError> {
        let name = domain.to_string();
        self.change(domain, CHANGE_LIMIT, move |connection| {
            block_commit(&found(connection, &name)?, &target)
        })
        .await
    }

    /// How far that has come; none when it isn't going on.
    pub(crate) async fn commit_job(
        &self,
        domain: &DomainId,
        target: String,
    ) -> Result<Option<BlockJob>, LibvirtError> {
        let name = domain.to_string();
        self.look(Some(domain), move |connection| {
            block_job(&found(connection, &name)?, &target)
        })
        .await
    }

    /// Ends it: with the file below, or as before.
    pub(crate) async fn end_commit(
        &self,
        domain: &DomainId,
        target: String,
        pivot: bool,
    ) -> Result<(), LibvirtError> {
        let name = domain.to_string();
        self.change(domain, CHANGE_LIMIT, move |connection| {
            block_end(&found(connection, &name)?, &target, pivot)
        })
        .await
    }

    async fn change<T: Send + 'static>(
        &self,
        domain: &DomainId,
        limit: Duration,
        act: impl FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        self.call(Some(domain), limit, act).await
    }
}

/// A text without NUL, at which the binding would panic.
fn checked(text: &str) -> Result<String, LibvirtError> {
    if text.contains('\0') {
        return Err(LibvirtError::Nul);
    }
    Ok(text.to_owned())
}
