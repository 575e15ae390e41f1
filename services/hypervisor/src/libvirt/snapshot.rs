//! What libvirt says of a snapshot.

use super::LibvirtError;
use roxmltree::{Document, Node};

/// What a domain takes that goes on running from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    /// In bytes.
    pub(crate) memory: u64,
    /// Virtual processors.
    pub(crate) vcpus: u64,
}

/// What a domain takes after a revert, as the snapshot's XML says; none when it's off then.
pub(super) fn running(xml: &str) -> Result<Option<Running>, LibvirtError> {
    let unreadable = || LibvirtError::Unreadable("libvirt's XML of a snapshot");
    let document = Document::parse(xml).map_err(|_| unreadable())?;
    let snapshot = document.root_element();
    let state = child(snapshot, "state").and_then(|state| state.text());
    if !matches!(
        state,
        Some("running" | "paused" | "blocked" | "pmsuspended")
    ) {
        return Ok(None);
    }
    let number = |name: &str| {
        let domain = child(snapshot, "domain")?;
        child(domain, name)?.text()?.parse::<u64>().ok()
    };
    // libvirt writes memory in KiB, whatever it was given.
    let memory = number("memory").ok_or_else(unreadable)?;
    Ok(Some(Running {
        memory: memory.saturating_mul(1024),
        vcpus: number("vcpu").unwrap_or(1),
    }))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_takes_room_after_a_revert_if_it_ran() {
        let xml = |state: &str| {
            format!(
                "<domainsnapshot><name>s1</name><state>{state}</state><domain>\
                 <memory unit='KiB'>32768</memory><vcpu placement='static'>2</vcpu></domain>\
                 </domainsnapshot>"
            )
        };
        let (memory, vcpus) = (32 << 20, 2);
        let takes = Running { memory, vcpus };
        for state in ["running", "paused"] {
            assert_eq!(running(&xml(state)).unwrap(), Some(takes), "{state}");
        }
        assert_eq!(running(&xml("shutoff")).unwrap(), None);
        assert!(running("<domainsnapshot><state>running</state></domainsnapshot>").is_err());
    }
}
