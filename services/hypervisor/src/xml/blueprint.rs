//! A domain as it may be: the proof that its XML was held against the policy.

use super::{policy::Policy, template, tree::Element};
use std::collections::BTreeSet;
use uuid::Uuid;
use virtbus_wire::{
    Code, DiskId, DomainId, JobError, Label, MediaId, Size, task::hypervisor::Definition,
};

/// The most disks and media of a domain: each takes a lock.
const VOLUMES_MAX: usize = 64;

/// A domain as it may be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blueprint {
    pub(super) tree: Element,
    /// The uuid that the XML asks for.
    pub(crate) uuid: Option<Uuid>,
    /// In bytes.
    pub(crate) memory: u64,
    /// Virtual processors.
    pub(crate) vcpus: u32,
    /// Its disks and media, in order.
    pub(crate) volumes: Vec<Volume>,
}

/// A disk or a medium of a domain, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Volume {
    /// A disk.
    Disk {
        /// Its id.
        disk: DiskId,
        /// The pool that the XML names.
        pool: Label,
        /// Whether the guest can't write it.
        readonly: bool,
    },
    /// A medium; nobody writes it.
    Media {
        /// Its id.
        media: MediaId,
        /// The pool that the XML names.
        pool: Label,
    },
}

impl Blueprint {
    /// What a job is given, read and held against the policy. `last` is what the domain was
    /// defined as last, for a job that says nothing.
    ///
    /// # Errors
    /// `domain.invalid_xml`, `domain.forbidden_device`, `domain.not_found` where nothing is known.
    pub(crate) fn new(
        definition: Definition<'_>,
        last: Option<&str>,
        domain: &DomainId,
        pool: &Label,
        policy: &Policy,
    ) -> Result<Self, JobError> {
        let tree = match (definition, last) {
            (Definition::Xml(xml), _) => Element::read(xml)?,
            (Definition::Template(template), _) => template::build(template, domain, pool),
            (Definition::Last, Some(xml)) => Element::read(xml)?,
            (Definition::Last, None) => {
                let message = "the domain was never defined: xml or template is needed";
                return Err(
                    JobError::new(Code::DomainNotFound, message).with("domain", domain.as_str())
                );
            }
        };
        Self::admit(tree, domain, policy)
    }

    fn admit(mut tree: Element, domain: &DomainId, policy: &Policy) -> Result<Self, JobError> {
        policy.admit(&tree)?;
        tree.unset("id");
        let name = tree.child("name").map(|name| name.text.as_str());
        if name.is_some_and(|name| name != domain.as_str()) {
            return Err(invalid("its name isn't the domain's id"));
        }
        let uuid = match tree.child("uuid") {
            Some(uuid) => {
                let read = uuid.text.parse::<Uuid>();
                Some(read.map_err(|_| invalid("its uuid can't be read"))?)
            }
            None => None,
        };
        let (memory, vcpus) = (memory(&tree)?, vcpus(&tree)?);
        let volumes = volumes(&tree)?;
        Ok(Self {
            tree,
            uuid,
            memory,
            vcpus,
            volumes,
        })
    }

    /// For the record: libvirt's XML, disks and media named as volumes.
    pub(crate) fn portable(&self, domain: &DomainId, uuid: Uuid) -> String {
        self.named(domain.as_str(), uuid).to_string()
    }

    /// With name and uuid first.
    pub(super) fn named(&self, name: &str, uuid: Uuid) -> Element {
        let mut tree = self.tree.clone();
        tree.remove("name");
        tree.remove("uuid");
        let name = Element::new("name").saying(name);
        let uuid = Element::new("uuid").saying(uuid);
        tree.children.splice(0..0, [name, uuid]);
        tree
    }

    /// Its disks.
    pub(crate) fn disks(&self) -> Vec<DiskId> {
        let disks = self.volumes.iter().filter_map(|volume| match volume {
            Volume::Disk { disk, .. } => Some(disk.clone()),
            Volume::Media { .. } => None,
        });
        disks.collect()
    }

    /// Its media.
    pub(crate) fn media(&self) -> Vec<MediaId> {
        let media = self.volumes.iter().filter_map(|volume| match volume {
            Volume::Media { media, .. } => Some(media.clone()),
            Volume::Disk { .. } => None,
        });
        media.collect()
    }

    /// The same domain with other disks in place of some.
    pub(crate) fn repointed(
        &self,
        domain: &DomainId,
        policy: &Policy,
        other: impl Fn(&DiskId) -> Option<DiskId>,
    ) -> Result<Self, JobError> {
        let mut tree = self.tree.clone();
        let devices = tree.child_mut("devices");
        let elements = devices
            .into_iter()
            .flat_map(|devices| &mut devices.children);
        for element in elements.filter(|element| element.name == "disk") {
            let Some(source) = element.child_mut("source") else {
                continue;
            };
            let old: Option<DiskId> = source.attribute("volume").and_then(|id| id.parse().ok());
            if let Some(new) = old.as_ref().and_then(&other) {
                source.set("volume", new);
            }
        }
        Self::admit(tree, domain, policy)
    }
}

/// Whether the host of a domain keeps something of it beside its disks, as its XML says: what the
/// firmware remembers, what is in the trusted module. Whatever this host's policy is.
pub(crate) fn has_state_on_host(xml: &str) -> bool {
    let Ok(tree) = Element::read(xml) else {
        return false;
    };
    let os = tree.child("os");
    let has_efi = os.is_some_and(|os| os.attribute("firmware") == Some("efi"));
    let devices = tree.child("devices");
    has_efi || devices.is_some_and(|devices| devices.child("tpm").is_some())
}

fn invalid(why: &str) -> JobError {
    JobError::new(
        Code::DomainInvalidXml,
        format!("the XML can't be used: {why}"),
    )
}

fn volumes(tree: &Element) -> Result<Vec<Volume>, JobError> {
    let devices = tree.child("devices");
    let disks = devices
        .iter()
        .flat_map(|devices| devices.children_of("disk"));
    let mut volumes = Vec::new();
    let (mut names, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for disk in disks {
        let target = disk
            .child("target")
            .and_then(|target| target.attribute("dev"));
        let target = target.ok_or_else(|| invalid("a disk has no target"))?;
        if !targets.insert(target) {
            return Err(invalid("two disks have the same target"));
        }
        let is_cdrom = disk.attribute("device") == Some("cdrom");
        let Some(source) = disk.child("source") else {
            if is_cdrom {
                continue;
            }
            return Err(invalid("a disk has no source"));
        };
        if disk.attribute("type") != Some("volume") {
            let message = "disks must be volumes: <disk type='volume'><source pool= volume=/>";
            return Err(JobError::new(Code::DomainForbiddenDevice, message).with("element", "disk"));
        }
        let (Some(pool), Some(id)) = (source.attribute("pool"), source.attribute("volume")) else {
            return Err(invalid("a disk's source needs pool and volume"));
        };
        let pool: Label = pool
            .parse()
            .map_err(|_| invalid("a pool's name can't be one"))?;
        let wrong = || invalid("a volume's name is no id");
        if !names.insert((is_cdrom, id)) {
            return Err(invalid("it has a disk or medium twice"));
        }
        volumes.push(if is_cdrom {
            let media = id.parse().map_err(|_| wrong())?;
            Volume::Media { media, pool }
        } else {
            let disk_id = id.parse().map_err(|_| wrong())?;
            let readonly = disk.child("readonly").is_some();
            Volume::Disk {
                disk: disk_id,
                pool,
                readonly,
            }
        });
    }
    if volumes.len() > VOLUMES_MAX {
        return Err(invalid("it has too many disks"));
    }
    Ok(volumes)
}

fn vcpus(tree: &Element) -> Result<u32, JobError> {
    let Some(vcpu) = tree.child("vcpu") else {
        return Ok(1);
    };
    let count = vcpu.text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| invalid("its number of processors can't be read"))
}

fn memory(tree: &Element) -> Result<u64, JobError> {
    let wrong = || invalid("its memory can't be read");
    let memory = tree.child("memory").ok_or_else(wrong)?;
    let number: u64 = memory.text.parse().map_err(|_| wrong())?;
    let unit: u64 = match memory.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let size = number
        .checked_mul(unit)
        .and_then(|bytes| Size::from_bytes(bytes).ok());
    let out_of_range = || invalid("its memory is nothing, or more than a host can have");
    size.map(Size::bytes).ok_or_else(out_of_range)
}
