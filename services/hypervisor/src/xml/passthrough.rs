//! What of the host itself a domain may have, where the host's configuration names it: devices,
//! folders, memory that it shares with other domains.

use super::{
    devices::{ADDRESS, ALIAS, BOOT},
    policy::Policy,
    rules::{
        Rule,
        Value::{OneOf, UpTo, Word},
        YES_NO, leaf, node, says,
    },
    tree::Element,
};
use virtbus_wire::{Code, JobError};

/// The most memory of one name, in MiB: it's beside what the domain says it takes.
const SHARED_MIB_MAX: u64 = 1_024;

/// A device of the host that the domain has for itself.
pub(super) const HOSTDEV: Rule = node(
    "hostdev",
    &[
        ("mode", OneOf(&["subsystem"])),
        ("type", OneOf(&["pci", "usb"])),
        ("managed", YES_NO),
    ],
    &[
        node(
            "source",
            &[],
            &[
                leaf(
                    "address",
                    &[
                        ("domain", Word),
                        ("bus", Word),
                        ("slot", Word),
                        ("function", Word),
                    ],
                ),
                leaf("vendor", &[("id", Word)]),
                leaf("product", &[("id", Word)]),
            ],
        ),
        leaf("rom", &[("bar", OneOf(&["off"]))]),
        BOOT,
        ADDRESS,
        ALIAS,
    ],
);

/// A folder of the host. The XML says its name; the path is written by us.
pub(super) const FILESYSTEM: Rule = node(
    "filesystem",
    // With the guest's own owners and modes the host would have files of root's that a guest made.
    &[
        ("type", OneOf(&["mount"])),
        ("accessmode", OneOf(&["mapped", "squash"])),
    ],
    &[
        leaf("source", &[("dir", Word)]),
        leaf("target", &[("dir", Word)]),
        leaf("readonly", &[]),
        ADDRESS,
        ALIAS,
    ],
);

/// Memory that domains share.
pub(super) const SHMEM: Rule = node(
    "shmem",
    &[("name", Word)],
    &[
        leaf("model", &[("type", OneOf(&["ivshmem-plain"]))]),
        says("size", &[("unit", OneOf(&["M"]))], UpTo(SHARED_MIB_MAX)),
        ADDRESS,
        ALIAS,
    ],
);

impl Policy {
    /// That each thing of the host is one that the configuration names.
    pub(super) fn admit_things(&self, devices: &Element) -> Result<(), JobError> {
        for device in &devices.children {
            let (what, name, is_allowed) = match device.name.as_str() {
                "hostdev" => {
                    let name = hostdev(device);
                    let allowed = |name: &Named| match name {
                        Named::Pci(name) => self.pci.contains(name),
                        Named::Usb(name) => self.usb.contains(name),
                    };
                    let is_allowed = name.as_ref().is_some_and(allowed);
                    let text = name.map(|(Named::Pci(name) | Named::Usb(name))| name);
                    ("device", text, is_allowed)
                }
                "filesystem" => {
                    let source = device.child("source");
                    let name = source.and_then(|source| source.attribute("dir"));
                    let is_allowed = name.is_some_and(|name| self.folders.contains_key(name));
                    ("folder", name.map(str::to_owned), is_allowed)
                }
                "shmem" => {
                    let name = device.attribute("name");
                    let is_allowed = name.is_some_and(|name| self.shared_memory.contains(name));
                    ("shared memory", name.map(str::to_owned), is_allowed)
                }
                _ => continue,
            };
            if !is_allowed {
                let name = name.unwrap_or_default();
                let text = format!("this host allows no {what} {name}");
                let error = JobError::new(Code::DomainForbiddenDevice, text.trim_end());
                return Err(error.with("element", device.name.as_str()));
            }
        }
        Ok(())
    }

    /// The first of these names that can't be one.
    pub(super) fn wrong_thing(&self) -> Option<&str> {
        let is_hex = |text: &str, wanted: &str| {
            let fits = |(byte, wanted): (u8, u8)| match wanted {
                b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
                other => byte == other,
            };
            text.len() == wanted.len() && text.bytes().zip(wanted.bytes()).all(fits)
        };
        let mut pci = self.pci.iter();
        let mut usb = self.usb.iter();
        let mut folders = self.folders.iter();
        let mut memory = self.shared_memory.iter();
        let wrong = pci.find(|name| !is_hex(name, "xxxx:xx:xx.x"));
        let wrong = wrong.or_else(|| usb.find(|name| !is_hex(name, "xxxx:xxxx")));
        let wrong = wrong.or_else(|| {
            let wrong = folders.find(|(name, path)| !Word.allows(name) || !path.is_absolute());
            wrong.map(|(name, _)| name)
        });
        let wrong = wrong.or_else(|| memory.find(|name| !Word.allows(name)));
        wrong.map(String::as_str)
    }
}

/// A device of the host, as the configuration names it.
enum Named {
    Pci(String),
    Usb(String),
}

/// Which device is meant, if that can't be read in two ways.
fn hostdev(device: &Element) -> Option<Named> {
    let source = device.child("source")?;
    let id = |name: &str| number(source.child(name)?.attribute("id")?);
    match (device.attribute("type")?, source.child("address")) {
        ("pci", Some(address)) if source.children.len() == 1 => {
            let part = |name: &str| number(address.attribute(name)?);
            let domain = match address.attribute("domain") {
                Some(domain) => number(domain)?,
                None => 0,
            };
            let (bus, slot, function) = (part("bus")?, part("slot")?, part("function")?);
            let name = format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}");
            Some(Named::Pci(name))
        }
        ("usb", None) => {
            let (vendor, product) = (id("vendor")?, id("product")?);
            Some(Named::Usb(format!("{vendor:04x}:{product:04x}")))
        }
        _ => None,
    }
}

/// A number as libvirt reads it: with a zero first it would be octal, so such are none.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None if text != "0" && text.starts_with('0') => None,
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Accelerator, Blueprint, HostFacts,
        tests::{domain, mark, pool},
    };
    use super::*;
    use std::collections::BTreeMap;
    use virtbus_testbed::until;
    use virtbus_wire::task::hypervisor::Definition;

    fn policy() -> Policy {
        Policy {
            pci: ["0000:3b:00.1".to_owned()].into(),
            usb: ["046d:c52b".to_owned()].into(),
            folders: [("shared".to_owned(), "/usr/share/doc".into())].into(),
            shared_memory: ["web".to_owned()].into(),
            ..Policy::default()
        }
    }

    fn blueprint(devices: &str, policy: &Policy) -> Result<Blueprint, JobError> {
        let xml = format!(
            "<domain type='kvm'><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type>\
             </os><devices>{devices}</devices></domain>"
        );
        Blueprint::new(Definition::Xml(&xml), None, &domain(), &pool(), policy)
    }

    const FOLDER: &str =
        "<filesystem type='mount'><source dir='shared'/><target dir='tag'/></filesystem>";
    const MEMORY: &str =
        "<shmem name='web'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>";

    fn pci(address: &str) -> String {
        format!(
            "<hostdev mode='subsystem' type='pci'><source><address {address}/></source></hostdev>"
        )
    }

    fn usb(source: &str) -> String {
        format!("<hostdev mode='subsystem' type='usb'><source>{source}</source></hostdev>")
    }

    #[test]
    fn what_the_configuration_names_is_allowed_and_nothing_beside_it() {
        let id = "<vendor id='0x046d'/><product id='0xc52b'/>";
        let allowed = [
            FOLDER.to_owned(),
            MEMORY.to_owned(),
            pci("domain='0' bus='0x3b' slot='0' function='0x1'"),
            pci("bus='59' slot='0x00' function='1'"),
            usb(id),
        ];
        for device in &allowed {
            assert!(blueprint(device, &policy()).is_ok(), "{device}");
            let refused = blueprint(device, &Policy::default()).unwrap_err();
            assert_eq!(refused.code, Code::DomainForbiddenDevice, "{device}");
        }
        for device in [
            FOLDER.replace("'shared'", "'other'"),
            FOLDER.replace("'shared'", "'/usr/share/doc'"),
            FOLDER.replace("mount'", "mount' accessmode='passthrough'"),
            FOLDER.replace("<source dir='shared'/>", ""),
            MEMORY.replace("web", "other"),
            MEMORY.replace(">1<", ">1025<"),
            MEMORY.replace("unit='M'", "unit='G'"),
            pci("domain='0' bus='0x3b' slot='0' function='0'"),
            pci("domain='1' bus='0x3b' slot='0' function='1'"),
            // Octal for libvirt.
            pci("bus='073' slot='0' function='1'"),
            pci("bus='0x3b' slot='0'"),
            usb("<vendor id='0x046d'/>"),
            usb(&format!("{id}<address bus='1' slot='2'/>")),
            usb(&id.replace("c52b", "c52c")),
        ] {
            assert!(blueprint(&device, &policy()).is_err(), "{device}");
        }
    }

    #[test]
    fn names_that_can_be_none_are_found_in_the_configuration() {
        assert_eq!(policy().wrong_thing(), None);
        for (field, name) in [
            ("pci", "3b:00.1"),
            ("usb", "046D:C52B"),
            ("shared_memory", "a/b"),
        ] {
            let text = format!("{{\"{field}\": [\"{name}\"]}}");
            let policy: Policy = serde_json::from_str(&text).unwrap();
            assert_eq!(policy.wrong_thing(), Some(name));
        }
        let policy: Policy = serde_json::from_str("{\"folders\": {\"a\": \"b\"}}").unwrap();
        assert_eq!(policy.wrong_thing(), Some("a"));
    }

    #[tokio::test]
    async fn a_guest_runs_with_a_folder_and_memory_of_the_host() {
        let libvirt = virtbus_testbed::Libvirt::start().await;
        let uri = libvirt.uri().parse().unwrap();
        let (host, _hinted) = crate::libvirt::Host::new(&uri).unwrap();
        let (files, policy) = (BTreeMap::new(), policy());
        let facts = HostFacts {
            accelerator: Accelerator::Qemu,
            listen: "127.0.0.1",
            files: &files,
            folders: &policy.folders,
        };
        let blueprint = blueprint(&format!("{FOLDER}{MEMORY}"), &policy).unwrap();
        let uuid = uuid::Uuid::now_v7();
        let xml = blueprint.for_host(domain().as_str(), uuid, &mark(), &facts);
        assert!(xml.contains("<source dir='/usr/share/doc'/>"), "{xml}");
        assert!(xml.contains("accessmode='mapped'"), "{xml}");
        host.define(&domain(), xml).await.unwrap();
        host.start(&domain(), false).await.unwrap();
        until("a guest", async || match libvirt.state(domain().as_str()) {
            state if state == "running" => Ok(()),
            state => Err(state),
        })
        .await;
    }
}
