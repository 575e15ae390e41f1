//! A domain as libvirt sees it now.

use super::error::LibvirtError;
use uuid::Uuid;
use virt::{domain::Domain, sys};
use virtbus_wire::{
    JobId,
    task::hypervisor::{DomainState, Graphics, GraphicsKind},
};

/// The name space of what we write into a domain's metadata.
pub(crate) const MARK_URI: &str = "urn:virtbus:domain:1";

/// Who made a domain what it is: written into its metadata, so that its effect is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The job.
    pub(crate) job: JobId,
    /// Its claim.
    pub(crate) claim: u64,
}

/// A domain as libvirt sees it now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// Its name.
    pub(crate) name: String,
    /// libvirt's own id of it.
    pub(crate) uuid: Option<Uuid>,
    /// Its state.
    pub(crate) state: DomainState,
    /// Whether it went off in order: by itself, or because somebody said so.
    pub(crate) off_in_order: bool,
    /// Whether it's being started just now: what it is will be seen when that is over.
    pub(crate) is_starting: bool,
    /// Whether it has processes.
    pub(crate) is_active: bool,
    /// Its memory, in bytes.
    pub(crate) memory: u64,
    /// Its processors.
    pub(crate) vcpus: u32,
    /// How it's seen.
    pub(crate) graphics: Option<Graphics>,
    /// The job that defined it.
    pub(crate) mark: Option<Mark>,
    /// The names of its snapshots.
    pub(crate) snapshots: Vec<String>,
    /// Target and file of each of its disks, of the running domain if it runs.
    pub(crate) disks: Vec<(String, String)>,
}

impl Seen {
    /// Asks libvirt.
    pub(super) fn look(domain: &Domain) -> Result<Self, LibvirtError> {
        let (raw, reason) = domain.get_state()?;
        let state = state(raw, reason)?;
        let info = domain.get_info()?;
        let xml = domain.get_xml_desc(0)?;
        let document = roxmltree::Document::parse(&xml)
            .map_err(|_| LibvirtError::Unreadable("libvirt's XML of a domain"))?;
        let snapshots = domain.list_all_snapshots(0)?;
        let names: Result<Vec<String>, _> = snapshots.iter().map(|s| s.get_name()).collect();
        Ok(Self {
            name: domain.get_name()?,
            uuid: domain.get_uuid_string()?.parse().ok(),
            state,
            off_in_order: is_in_order(raw, reason),
            is_starting: raw == sys::VIR_DOMAIN_PAUSED
                && reason == number(sys::VIR_DOMAIN_PAUSED_STARTING_UP),
            is_active: domain.is_active()?,
            memory: info.max_mem.saturating_mul(1024),
            vcpus: info.nr_virt_cpu,
            graphics: graphics(&document),
            mark: mark(&document),
            snapshots: names?,
            disks: disks(&document),
        })
    }
}

/// libvirt's number of a state, with that of its reason.
fn state(raw: sys::virDomainState, reason: i32) -> Result<DomainState, LibvirtError> {
    Ok(match raw {
        // Blocked: all its processors wait for something.
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => DomainState::Running,
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused,
        sys::VIR_DOMAIN_SHUTDOWN => DomainState::Shutdown,
        sys::VIR_DOMAIN_SHUTOFF if reason == number(sys::VIR_DOMAIN_SHUTOFF_CRASHED) => {
            DomainState::Crashed
        }
        sys::VIR_DOMAIN_SHUTOFF => DomainState::Shutoff,
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed,
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::Pmsuspended,
        _ => return Err(LibvirtError::Unreadable("the state of a domain")),
    })
}

fn number(raw: u32) -> i32 {
    i32::try_from(raw).unwrap_or(i32::MAX)
}

fn is_in_order(raw: sys::virDomainState, reason: i32) -> bool {
    let orderly = [
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED,
        sys::VIR_DOMAIN_SHUTOFF_SAVED,
        sys::VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
    ];
    raw == sys::VIR_DOMAIN_SHUTOFF && orderly.map(number).contains(&reason)
}

type Document<'a> = roxmltree::Document<'a>;

fn graphics(document: &Document<'_>) -> Option<Graphics> {
    let node = document
        .descendants()
        .find(|n| n.has_tag_name("graphics"))?;
    let kind = match node.attribute("type")? {
        "vnc" => GraphicsKind::Vnc,
        "spice" => GraphicsKind::Spice,
        _ => return None,
    };
    // -1 as long as none was given.
    let port = |name: &str| node.attribute(name)?.parse::<u16>().ok();
    let listens = node.children().find(|child| child.has_tag_name("listen"));
    let address = listens.and_then(|listen| listen.attribute("address"));
    let address = address.or_else(|| node.attribute("listen"));
    let graphics = Graphics {
        kind,
        host: address.unwrap_or("127.0.0.1").to_owned(),
        port: port("port"),
        tls_port: port("tlsPort"),
    };
    (graphics.port.is_some() || graphics.tls_port.is_some()).then_some(graphics)
}

fn mark(document: &Document<'_>) -> Option<Mark> {
    let node = document
        .descendants()
        .find(|node| node.has_tag_name((MARK_URI, "domain")))?;
    Some(Mark {
        job: node.attribute("job")?.parse().ok()?,
        claim: node.attribute("claim")?.parse().ok()?,
    })
}

fn disks(document: &Document<'_>) -> Vec<(String, String)> {
    let disks = document.descendants().filter(|n| n.has_tag_name("disk"));
    disks
        .filter_map(|disk| {
            let child = |name: &str| disk.children().find(|child| child.has_tag_name(name));
            let target = child("target")?.attribute("dev")?;
            let file = child("source")?.attribute("file")?;
            Some((target.to_owned(), file.to_owned()))
        })
        .collect()
}

/// The files of the disks and media that a domain had when a snapshot was made, as its XML says.
pub(super) fn snapshot_files(xml: &str) -> Result<Vec<String>, LibvirtError> {
    let document = roxmltree::Document::parse(xml)
        .map_err(|_| LibvirtError::Unreadable("libvirt's XML of a snapshot"))?;
    let mut parts = document.root_element().children();
    let domain = parts.find(|part| part.has_tag_name("domain"));
    let disks = domain.iter().flat_map(|domain| domain.descendants());
    let sources = disks
        .filter(|node| node.has_tag_name("disk"))
        .filter_map(|disk| disk.children().find(|child| child.has_tag_name("source")));
    let files = sources.filter_map(|source| source.attribute("file"));
    Ok(files.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_off_by_a_crash_did_not_go_in_order() {
        let crashed = number(sys::VIR_DOMAIN_SHUTOFF_CRASHED);
        let off = sys::VIR_DOMAIN_SHUTOFF;
        assert_eq!(state(off, crashed).unwrap(), DomainState::Crashed);
        assert!(!is_in_order(off, crashed) && !is_in_order(off, 0));
        assert!(is_in_order(off, number(sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN)));
        assert!(is_in_order(
            off,
            number(sys::VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT)
        ));
        assert!(state(77, 0).is_err(), "an unknown state is no state");
    }

    #[test]
    fn a_snapshot_is_of_the_files_that_the_domain_had_then() {
        let disk = |file: &str, below: &str| {
            format!(
                "<devices><disk type='file'><source file='{file}'/><backingStore type='file'>\
                 <source file='{below}'/></backingStore></disk>\
                 <disk type='file' device='cdrom'/></devices>"
            )
        };
        let xml = format!(
            "<domainsnapshot><disks><disk name='vda' snapshot='internal'/></disks>\
             <domain>{}</domain><inactiveDomain>{}</inactiveDomain></domainsnapshot>",
            disk("/web1", "/base"),
            disk("/other", "/base")
        );
        assert_eq!(snapshot_files(&xml).unwrap(), ["/web1"]);
        assert!(snapshot_files("<domainsnapshot/>").unwrap().is_empty());
    }

    #[test]
    fn a_screen_without_a_port_is_none_yet() {
        let read = |xml: &str| graphics(&Document::parse(xml).unwrap());
        let text = "<domain><graphics type='vnc' port='-1' autoport='yes'/></domain>";
        assert_eq!(read(text), None);
        let text = "<domain><graphics type='spice' port='5900' tlsPort='5901' passwd='x'>\
                    <listen type='address' address='10.0.0.1'/></graphics></domain>";
        let found = read(text).unwrap();
        assert_eq!(
            (found.host.as_str(), found.port, found.tls_port),
            ("10.0.0.1", Some(5900), Some(5901))
        );
    }
}
