//! The policy: an XML tree held against the list of what is allowed.

use super::{
    rules::{DOMAIN, Rule, Value},
    tree::Element,
};
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use virtbus_wire::{
    Code, JobError,
    task::hypervisor::network::{BridgeName, NetworkName},
};

/// What of this host domains may use. Nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    /// Networks of libvirt.
    pub(crate) networks: BTreeSet<String>,
    /// Bridges of the host.
    pub(crate) bridges: BTreeSet<String>,
    /// Whether cards of type `user` are allowed: through one a guest reaches what the host itself
    /// does, its loopback services included.
    pub(crate) user_network: bool,
    /// PCI devices, by address: `0000:3b:00.0`. A domain has one for itself.
    pub(crate) pci: BTreeSet<String>,
    /// USB devices, by vendor and product: `046d:c52b`.
    pub(crate) usb: BTreeSet<String>,
    /// Folders, by the name that a domain's XML says in place of the path, which is absolute.
    pub(crate) folders: BTreeMap<String, Utf8PathBuf>,
    /// Memory that domains share, by name.
    pub(crate) shared_memory: BTreeSet<String>,
}

impl Policy {
    /// The first name in the configuration that nothing of its kind can have.
    pub(crate) fn wrong_name(&self) -> Option<&str> {
        let networks = self.networks.iter();
        let wrong = networks.filter(|name| name.parse::<NetworkName>().is_err());
        let bridges = self.bridges.iter();
        let mut wrong = wrong.chain(bridges.filter(|name| name.parse::<BridgeName>().is_err()));
        let wrong = wrong.next().map(String::as_str);
        wrong.or_else(|| self.wrong_thing())
    }

    /// Lets a tree through, or says what of it isn't allowed.
    ///
    /// # Errors
    /// `domain.forbidden_device`, naming element and attribute.
    pub(super) fn admit(&self, domain: &Element) -> Result<(), JobError> {
        if domain.name != DOMAIN.name {
            return Err(JobError::new(
                Code::DomainInvalidXml,
                "the XML is of no domain",
            ));
        }
        walk(domain, &DOMAIN, "")?;
        let devices = domain.child("devices");
        let cards = devices
            .iter()
            .flat_map(|devices| devices.children_of("interface"));
        for card in cards {
            self.admit_card(card)?;
        }
        devices.map_or(Ok(()), |devices| self.admit_things(devices))
    }

    fn admit_card(&self, card: &Element) -> Result<(), JobError> {
        let source = card.child("source");
        let named = |name: &str| source.and_then(|source| source.attribute(name));
        let kind = card.attribute("type").unwrap_or_default();
        let (network, bridge) = (named("network"), named("bridge"));
        let allowed = match (kind, network, bridge) {
            ("network", Some(name), None) => self.networks.contains(name),
            ("bridge", None, Some(name)) => self.bridges.contains(name),
            ("user", None, None) => self.user_network,
            _ => false,
        };
        if allowed {
            return Ok(());
        }
        let name = network.or(bridge).unwrap_or(kind);
        let message = format!("this host allows no network card on {name}");
        Err(JobError::new(Code::DomainForbiddenDevice, message)
            .with("element", "interface")
            .with("network", name))
    }
}

fn walk(element: &Element, rule: &Rule, above: &str) -> Result<(), JobError> {
    let path = format!("{above}/{}", element.name);
    for (name, value) in &element.attributes {
        let known = rule.attributes.iter().find(|(known, _)| known == name);
        let allowed = known.is_some_and(|(_, allowed)| allowed.allows(value));
        if !allowed {
            return Err(forbidden(&path, Some(name)));
        }
    }
    let has_text = !element.text.is_empty();
    let may_be_empty = matches!(rule.text, Value::Prose | Value::Nothing);
    if (has_text || !may_be_empty) && !rule.text.allows(&element.text) {
        return Err(forbidden(&path, None));
    }
    for (at, child) in element.children.iter().enumerate() {
        let twice = element.children[..at]
            .iter()
            .any(|other| other.name == child.name);
        if twice && !may_repeat(&element.name, &child.name) {
            // libvirt would take the first of them, or the last: not always the one looked at.
            let message = format!(
                "the XML can't be used: it has {} more than once",
                child.name
            );
            return Err(JobError::new(Code::DomainInvalidXml, message));
        }
        let known = rule.children.iter().find(|known| known.name == child.name);
        match known {
            Some(known) => walk(child, known, &path)?,
            None => return Err(forbidden(&format!("{path}/{}", child.name), None)),
        }
    }
    Ok(())
}

/// What there can be several of.
fn may_repeat(parent: &str, child: &str) -> bool {
    match parent {
        "devices" => true,
        "cpu" | "firmware" => child == "feature",
        "clock" => child == "timer",
        "os" => child == "boot",
        _ => false,
    }
}

/// The longest name that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 120;

fn forbidden(path: &str, attribute: Option<&str>) -> JobError {
    let path: String = path.chars().take(SHOWN_CHARS_MAX).collect();
    // The path of elements is no path of the host, but nobody should have to think about that.
    let element = path.trim_start_matches('/').replace('/', " > ");
    let message = match attribute {
        Some(name) => {
            let name: String = name.chars().take(SHOWN_CHARS_MAX).collect();
            format!("the XML may not have this value of {name} in {element}")
        }
        None => format!("the XML may not have this: {element}"),
    };
    let error = JobError::new(Code::DomainForbiddenDevice, message).with("element", element);
    match attribute {
        Some(name) => error.with("attribute", name),
        None => error,
    }
}
