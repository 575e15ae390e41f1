//! The XML that libvirt gets: a blueprint with everything of this host filled in by us.

use super::{
    blueprint::{Blueprint, Volume},
    tree::Element,
};
use crate::libvirt::{MARK_URI, Mark};
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
use uuid::Uuid;

/// What runs guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's own emulation: slow, and works everywhere.
    Qemu,
}

impl Accelerator {
    /// Whether KVM is worth a trial: libvirt offers it, and the processor has what it takes.
    pub(crate) fn may_be_kvm(capabilities: &str, cpu_flags: &str) -> bool {
        let mut flags = cpu_flags.split_whitespace();
        capabilities.contains("<domain type='kvm'")
            && flags.any(|flag| flag == "vmx" || flag == "svm")
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        })
    }
}

/// One file of a disk's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainFile {
    pub(crate) path: Utf8PathBuf,
    /// In QEMU's words.
    pub(crate) format: &'static str,
}

/// What of this host goes into a domain's XML.
#[derive(Debug, Clone)]
pub(crate) struct HostFacts<'a> {
    pub(crate) accelerator: Accelerator,
    /// The address that screens listen on.
    pub(crate) listen: &'a str,
    /// By the name of the volume (`disk.d7`, `media.debian`) its files, the top one first.
    pub(crate) files: &'a BTreeMap<String, Vec<ChainFile>>,
    /// The folders that domains may have, by name.
    pub(crate) folders: &'a BTreeMap<String, Utf8PathBuf>,
}

impl Volume {
    /// The name between jobs: `disk.d7`.
    pub(crate) fn object(&self) -> String {
        match self {
            Self::Disk { disk, .. } => format!("disk.{disk}"),
            Self::Media { media, .. } => format!("media.{media}"),
        }
    }
}

impl Blueprint {
    /// The XML for libvirt. A volume whose files aren't known stays as it is, and libvirt refuses
    /// it: there is no pool of that name.
    pub(crate) fn for_host(
        &self,
        name: &str,
        uuid: Uuid,
        mark: &Mark,
        host: &HostFacts<'_>,
    ) -> String {
        let mut tree = self.named(name, uuid);
        tree.set("type", host.accelerator);
        if host.accelerator == Accelerator::Qemu {
            // Without the processor itself there is no model of it: all that QEMU can emulate.
            let cpu = tree.child_mut("cpu");
            if let Some(cpu) = cpu.filter(|cpu| is_hosts(cpu)) {
                *cpu = Element::new("cpu").with("mode", "maximum");
            }
        }
        tree.children.insert(2, metadata(mark));
        if let Some(devices) = tree.child_mut("devices") {
            for device in &mut devices.children {
                match device.name.as_str() {
                    "disk" => fill_disk(device, host),
                    "graphics" => fill_graphics(device, host),
                    "filesystem" => fill_folder(device, host),
                    _ => {}
                }
            }
        }
        tree.to_string()
    }
}

fn is_hosts(cpu: &Element) -> bool {
    let mode = cpu.attribute("mode");
    mode == Some("host-model") || mode == Some("host-passthrough")
}

fn metadata(mark: &Mark) -> Element {
    let own = Element::new("virtbus:domain")
        .with("xmlns:virtbus", MARK_URI)
        .with("job", &mark.job)
        .with("claim", mark.claim);
    Element::new("metadata").containing(own)
}

fn fill_graphics(graphics: &mut Element, host: &HostFacts<'_>) {
    graphics.set("autoport", "yes");
    let listen = Element::new("listen")
        .with("type", "address")
        .with("address", host.listen);
    graphics.children.insert(0, listen);
}

/// One whose name isn't known keeps it, and libvirt refuses it: no path begins like that.
fn fill_folder(folder: &mut Element, host: &HostFacts<'_>) {
    if folder.attribute("accessmode").is_none() {
        folder.set("accessmode", "mapped");
    }
    if let Some(source) = folder.child_mut("source")
        && let Some(path) = source
            .attribute("dir")
            .and_then(|name| host.folders.get(name))
    {
        source.set("dir", path);
    }
}

fn fill_disk(disk: &mut Element, host: &HostFacts<'_>) {
    let is_cdrom = disk.attribute("device") == Some("cdrom");
    disk.set("type", "file");
    let mut driver = disk
        .child("driver")
        .cloned()
        .unwrap_or_else(|| Element::new("driver"));
    driver.set("name", "qemu");
    driver.set("type", "raw");
    let mut first = Vec::new();
    if let Some(source) = disk.child("source") {
        let kind = if is_cdrom { "media" } else { "disk" };
        let id = source.attribute("volume").unwrap_or_default();
        let Some(files) = host.files.get(&format!("{kind}.{id}")) else {
            disk.set("type", "volume");
            return;
        };
        let Some((top, below)) = files.split_first() else {
            return;
        };
        driver.set("type", top.format);
        first.push(Element::new("source").with("file", &top.path));
        first.push(chain(below));
    }
    disk.remove("driver");
    disk.remove("source");
    first.insert(0, driver);
    disk.children.splice(0..0, first);
    if is_cdrom && disk.child("readonly").is_none() {
        disk.children.push(Element::new("readonly"));
    }
}

/// All files below, to the last one, so that nobody looks into the files for them.
fn chain(files: &[ChainFile]) -> Element {
    let e = Element::new;
    match files.split_first() {
        None => e("backingStore"),
        Some((file, below)) => e("backingStore")
            .with("type", "file")
            .containing(e("format").with("type", file.format))
            .containing(e("source").with("file", &file.path))
            .containing(chain(below)),
    }
}
