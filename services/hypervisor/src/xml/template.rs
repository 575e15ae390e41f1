//! The short form of a domain as libvirt's XML, disks and media named as volumes.

use super::tree::Element;
use virtbus_wire::{
    DomainId, Label,
    task::hypervisor::{
        Template,
        network::{Link, Network},
        template::{
            BootFrom, Bus, Cache, Clock, Discard, Firmware, NetworkModel, Screen, TemplateDisk,
            Video,
        },
    },
};

/// What a domain starts from when nothing is said.
const USUAL_BOOT: [BootFrom; 3] = [BootFrom::Disk, BootFrom::Media, BootFrom::Network];

/// The XML of a template. It's held against the policy like any other.
pub(super) fn build(template: &Template, domain: &DomainId, pool: &Label) -> Element {
    let e = Element::new;
    let mut features = e("features").containing(e("acpi")).containing(e("apic"));
    if template.secure_boot {
        features = features.containing(e("smm").with("state", "on"));
    }
    let cpu = match &template.cpu {
        Some(model) => e("cpu")
            .with("mode", "custom")
            .with("match", "exact")
            .containing(e("model").with("fallback", "forbid").saying(model)),
        None => e("cpu").with("mode", "host-model"),
    };
    let offset = match template.clock {
        Clock::Utc => "utc",
        Clock::Localtime => "localtime",
    };
    e("domain")
        .containing(e("name").saying(domain))
        .containing(
            e("memory")
                .with("unit", "b")
                .saying(template.memory.bytes()),
        )
        .containing(e("vcpu").saying(template.vcpus.get()))
        .containing(os(template))
        .containing(features)
        .containing(cpu)
        .containing(e("clock").with("offset", offset))
        .containing(e("on_poweroff").saying("destroy"))
        .containing(e("on_reboot").saying("restart"))
        .containing(e("on_crash").saying("destroy"))
        .containing(devices(template, pool))
}

fn os(template: &Template) -> Element {
    let e = Element::new;
    let kind = e("type")
        .with("arch", "x86_64")
        .with("machine", &template.machine)
        .saying("hvm");
    match template.firmware {
        Firmware::Bios => e("os").containing(kind),
        Firmware::Efi => {
            let feature = |name: &str| {
                let enabled = if template.secure_boot { "yes" } else { "no" };
                e("feature").with("enabled", enabled).with("name", name)
            };
            let mut firmware = e("firmware").containing(feature("secure-boot"));
            if template.secure_boot {
                firmware = firmware.containing(feature("enrolled-keys"));
            }
            e("os")
                .with("firmware", "efi")
                .containing(kind)
                .containing(firmware)
        }
    }
}

fn devices(template: &Template, pool: &Label) -> Element {
    let e = Element::new;
    let mut order = Order::new(template);
    let mut targets = Targets::default();
    let mut devices = e("devices");
    // Boot orders are given in the order of what is started from, not of what is written.
    let disks: Vec<Element> = template
        .disks
        .iter()
        .map(|wanted| disk(wanted, pool, &mut targets, order.next(BootFrom::Disk)))
        .collect();
    let media = template.media.iter().map(|media| {
        let target = e("target")
            .with("dev", targets.next(Bus::Sata))
            .with("bus", "sata");
        let source = e("source").with("pool", pool).with("volume", media);
        with_order(
            e("disk")
                .with("type", "volume")
                .with("device", "cdrom")
                .containing(source)
                .containing(target)
                .containing(e("readonly")),
            order.next(BootFrom::Media),
        )
    });
    devices.children.extend(disks.into_iter().chain(media));
    for network in &template.networks {
        let card = card(network);
        devices
            .children
            .push(with_order(card, order.next(BootFrom::Network)));
    }
    if template.disks.iter().any(|disk| disk.bus == Bus::Scsi) {
        let controller = e("controller").with("type", "scsi").with("index", 0);
        devices
            .children
            .push(controller.with("model", "virtio-scsi"));
    }
    devices.children.extend(screen(template));
    if template.tpm {
        let backend = e("backend").with("type", "emulator").with("version", "2.0");
        let tpm = e("tpm").with("model", "tpm-crb").containing(backend);
        devices.children.push(tpm);
    }
    if template.agent {
        devices
            .children
            .push(channel("unix", "org.qemu.guest_agent.0"));
    }
    let random = e("backend").with("model", "random").saying("/dev/urandom");
    devices
        .containing(e("input").with("type", "tablet").with("bus", "usb"))
        .containing(e("rng").with("model", "virtio").containing(random))
        .containing(e("memballoon").with("model", "virtio"))
}

fn with_order(device: Element, order: Option<usize>) -> Element {
    match order {
        Some(order) => device.containing(Element::new("boot").with("order", order)),
        None => device,
    }
}

fn disk(
    wanted: &TemplateDisk,
    pool: &Label,
    targets: &mut Targets,
    order: Option<usize>,
) -> Element {
    let e = Element::new;
    let bus = match wanted.bus {
        Bus::Virtio => "virtio",
        Bus::Scsi => "scsi",
        Bus::Sata => "sata",
    };
    let cache = match wanted.cache {
        Cache::None => "none",
        Cache::Writeback => "writeback",
        Cache::Writethrough => "writethrough",
        Cache::Directsync => "directsync",
    };
    let discard = match wanted.discard {
        Discard::Unmap => "unmap",
        Discard::Ignore => "ignore",
    };
    let driver = e("driver").with("name", "qemu").with("cache", cache);
    let source = e("source").with("pool", pool).with("volume", &wanted.disk);
    let mut disk = e("disk")
        .with("type", "volume")
        .with("device", "disk")
        .containing(driver.with("discard", discard))
        .containing(source)
        .containing(
            e("target")
                .with("dev", targets.next(wanted.bus))
                .with("bus", bus),
        );
    if wanted.readonly {
        disk = disk.containing(e("readonly"));
    }
    with_order(disk, order)
}

fn card(network: &Network) -> Element {
    let e = Element::new;
    let (kind, name) = match &network.link {
        Link::Network(name) => ("network", name.as_str()),
        Link::Bridge(name) => ("bridge", name.as_str()),
    };
    let model = match network.model {
        NetworkModel::Virtio => "virtio",
        NetworkModel::E1000e => "e1000e",
    };
    let mut card = e("interface").with("type", kind);
    if let Some(mac) = &network.mac {
        card = card.containing(e("mac").with("address", mac));
    }
    card.containing(e("source").with(kind, name))
        .containing(e("model").with("type", model))
}

fn screen(template: &Template) -> Vec<Element> {
    let e = Element::new;
    let graphics = |kind: &str| e("graphics").with("type", kind).with("autoport", "yes");
    let video = |kind: &str| e("video").containing(e("model").with("type", kind));
    let chosen = template.video.map(|video| match video {
        Video::Virtio => "virtio",
        Video::Qxl => "qxl",
        Video::Vga => "vga",
        Video::Bochs => "bochs",
        Video::None => "none",
    });
    match template.graphics {
        Screen::Vnc => vec![graphics("vnc"), video(chosen.unwrap_or("virtio"))],
        Screen::Spice => vec![
            graphics("spice"),
            channel("spicevmc", "com.redhat.spice.0"),
            video(chosen.unwrap_or("qxl")),
        ],
        Screen::None => vec![video(chosen.unwrap_or("none"))],
    }
}

fn channel(kind: &str, name: &str) -> Element {
    let e = Element::new;
    let target = e("target").with("type", "virtio").with("name", name);
    e("channel").with("type", kind).containing(target)
}

/// Names of devices in the guest, per bus.
#[derive(Debug, Default)]
struct Targets {
    virtio: usize,
    others: usize,
}

impl Targets {
    fn next(&mut self, bus: Bus) -> String {
        let (prefix, at) = match bus {
            Bus::Virtio => ("vd", &mut self.virtio),
            Bus::Scsi | Bus::Sata => ("sd", &mut self.others),
        };
        let name = format!("{prefix}{}", letters(*at));
        *at += 1;
        name
    }
}

/// `a` to `z`, `aa` to `zz`, ...
fn letters(mut at: usize) -> String {
    let mut text = String::new();
    loop {
        let letter = u8::try_from(at % 26).unwrap_or(0);
        text.insert(0, char::from(b'a' + letter));
        if at < 26 {
            return text;
        }
        at = at / 26 - 1;
    }
}

/// Numbers of devices to start from.
#[derive(Debug)]
struct Order {
    /// Each kind with the number that its next device gets.
    kinds: Vec<(BootFrom, usize)>,
}

impl Order {
    fn new(template: &Template) -> Self {
        let order = template.boot.as_deref().unwrap_or(&USUAL_BOOT);
        let mut next = 1;
        let kinds = order.iter().map(|kind| {
            let first = next;
            next += match kind {
                BootFrom::Disk => template.disks.len(),
                BootFrom::Media => template.media.len(),
                BootFrom::Network => template.networks.len(),
            };
            (*kind, first)
        });
        Self {
            kinds: kinds.collect(),
        }
    }

    fn next(&mut self, kind: BootFrom) -> Option<usize> {
        let (_, next) = self.kinds.iter_mut().find(|(known, _)| *known == kind)?;
        *next += 1;
        Some(*next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn the_twenty_seventh_device_has_two_letters() {
        for (at, name) in [
            (0, "a"),
            (25, "z"),
            (26, "aa"),
            (51, "az"),
            (52, "ba"),
            (701, "zz"),
        ] {
            assert_eq!(letters(at), name);
        }
    }
}
