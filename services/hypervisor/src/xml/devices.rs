//! What a domain's devices may say. See [`super::rules`].

use super::passthrough::{FILESYSTEM, HOSTDEV, SHMEM};
use super::rules::{
    ON_OFF, PLACES_MAX, Rule, THREADS_MAX,
    Value::{Number, OneOf, UpTo, Word},
    YES_NO, leaf, node, says,
};

/// The last unit of a SCSI target.
const UNITS_MAX: u64 = 16_383;
/// The most ports that a controller can have.
const PORTS_MAX: u64 = 511;
/// The most of each of a screen's memories, in KiB: it's beside what the domain says it takes.
const SCREEN_KIB_MAX: u64 = 256 << 10;
/// The most screens of a card.
const HEADS_MAX: u64 = 16;
/// The largest packet of a network.
const MTU_MAX: u64 = 65_535;

/// Where a device is in the guest.
pub(super) const ADDRESS: Rule = leaf(
    "address",
    &[
        (
            "type",
            OneOf(&["pci", "drive", "usb", "virtio-serial", "ccw", "isa"]),
        ),
        ("domain", Word),
        ("bus", Word),
        ("slot", Word),
        ("function", Word),
        ("multifunction", ON_OFF),
        ("controller", UpTo(PLACES_MAX)),
        ("target", UpTo(PLACES_MAX)),
        ("unit", UpTo(UNITS_MAX)),
        ("port", Word),
    ],
);
pub(super) const ALIAS: Rule = leaf("alias", &[("name", Word)]);
pub(super) const BOOT: Rule = leaf("boot", &[("order", Number)]);
pub(super) const DEVICES: Rule = node(
    "devices",
    &[],
    &[
        DISK,
        FILESYSTEM,
        HOSTDEV,
        SHMEM,
        node(
            "controller",
            &[
                (
                    "type",
                    OneOf(&["usb", "scsi", "sata", "ide", "virtio-serial", "pci"]),
                ),
                ("index", UpTo(PLACES_MAX)),
                ("model", Word),
                ("ports", UpTo(PORTS_MAX)),
            ],
            &[
                leaf(
                    "driver",
                    &[
                        ("queues", UpTo(THREADS_MAX)),
                        ("iothread", UpTo(THREADS_MAX)),
                    ],
                ),
                leaf("model", &[("name", Word)]),
                leaf(
                    "target",
                    &[
                        ("chassis", UpTo(PLACES_MAX)),
                        ("port", Word),
                        ("chassisNr", UpTo(PLACES_MAX)),
                    ],
                ),
                leaf("master", &[("startport", UpTo(PLACES_MAX))]),
                ADDRESS,
                ALIAS,
            ],
        ),
        INTERFACE,
        GRAPHICS,
        node(
            "video",
            &[],
            &[
                leaf(
                    "model",
                    &[
                        (
                            "type",
                            OneOf(&["virtio", "qxl", "vga", "cirrus", "bochs", "none"]),
                        ),
                        ("ram", UpTo(SCREEN_KIB_MAX)),
                        ("vram", UpTo(SCREEN_KIB_MAX)),
                        ("vram64", UpTo(SCREEN_KIB_MAX)),
                        ("vgamem", UpTo(SCREEN_KIB_MAX)),
                        ("heads", UpTo(HEADS_MAX)),
                        ("primary", YES_NO),
                    ],
                ),
                ADDRESS,
                ALIAS,
            ],
        ),
        node(
            "sound",
            &[("model", OneOf(&["ich6", "ich9", "ac97", "usb"]))],
            &[ADDRESS, ALIAS],
        ),
        leaf(
            "audio",
            &[
                ("id", UpTo(PLACES_MAX)),
                ("type", OneOf(&["none", "spice"])),
            ],
        ),
        node(
            "input",
            &[
                ("type", OneOf(&["tablet", "mouse", "keyboard"])),
                ("bus", OneOf(&["usb", "ps2", "virtio"])),
            ],
            &[ADDRESS, ALIAS],
        ),
        node(
            "tpm",
            &[("model", OneOf(&["tpm-tis", "tpm-crb"]))],
            &[
                leaf(
                    "backend",
                    &[("type", OneOf(&["emulator"])), ("version", OneOf(&["2.0"]))],
                ),
                ALIAS,
            ],
        ),
        node(
            "rng",
            &[("model", OneOf(&["virtio"]))],
            &[
                leaf("rate", &[("bytes", Number), ("period", Number)]),
                says(
                    "backend",
                    &[("model", OneOf(&["random"]))],
                    OneOf(&["/dev/urandom"]),
                ),
                ADDRESS,
                ALIAS,
            ],
        ),
        node(
            "memballoon",
            &[
                ("model", OneOf(&["virtio", "none"])),
                ("autodeflate", ON_OFF),
            ],
            &[leaf("stats", &[("period", Number)]), ADDRESS, ALIAS],
        ),
        node(
            "watchdog",
            &[
                ("model", OneOf(&["i6300esb", "itco"])),
                (
                    "action",
                    OneOf(&["reset", "shutdown", "poweroff", "pause", "none"]),
                ),
            ],
            &[ADDRESS, ALIAS],
        ),
        node("serial", &[("type", OneOf(&["pty"]))], SERIAL),
        node("console", &[("type", OneOf(&["pty"]))], SERIAL),
        node(
            "channel",
            &[("type", OneOf(&["unix", "spicevmc"]))],
            &[
                leaf(
                    "target",
                    &[
                        ("type", OneOf(&["virtio"])),
                        (
                            "name",
                            OneOf(&["org.qemu.guest_agent.0", "com.redhat.spice.0"]),
                        ),
                    ],
                ),
                ADDRESS,
                ALIAS,
            ],
        ),
        node(
            "redirdev",
            &[("bus", OneOf(&["usb"])), ("type", OneOf(&["spicevmc"]))],
            &[ADDRESS, ALIAS],
        ),
        node(
            "panic",
            &[("model", OneOf(&["isa", "pvpanic", "hyperv"]))],
            &[ADDRESS, ALIAS],
        ),
    ],
);

const SERIAL: &[Rule] = &[
    node(
        "target",
        &[
            ("type", OneOf(&["isa-serial", "serial", "virtio"])),
            ("port", UpTo(PLACES_MAX)),
        ],
        &[leaf("model", &[("name", Word)])],
    ),
    ADDRESS,
    ALIAS,
];

const DISK: Rule = node(
    "disk",
    &[
        ("type", OneOf(&["volume"])),
        ("device", OneOf(&["disk", "cdrom"])),
    ],
    &[
        leaf(
            "driver",
            &[
                // The format is the catalogue's: both are written by us.
                ("name", OneOf(&["qemu"])),
                ("type", Word),
                (
                    "cache",
                    OneOf(&["none", "writeback", "writethrough", "directsync", "default"]),
                ),
                ("discard", OneOf(&["unmap", "ignore"])),
                ("detect_zeroes", OneOf(&["on", "off", "unmap"])),
                ("io", OneOf(&["threads", "native", "io_uring"])),
                ("iothread", UpTo(THREADS_MAX)),
                ("queues", UpTo(THREADS_MAX)),
            ],
        ),
        leaf("source", &[("pool", Word), ("volume", Word)]),
        leaf(
            "target",
            &[
                ("dev", Word),
                ("bus", OneOf(&["virtio", "scsi", "sata", "usb"])),
                ("removable", ON_OFF),
                ("tray", OneOf(&["open", "closed"])),
            ],
        ),
        node(
            "iotune",
            &[],
            &[
                says("total_bytes_sec", &[], Number),
                says("read_bytes_sec", &[], Number),
                says("write_bytes_sec", &[], Number),
                says("total_iops_sec", &[], Number),
                says("read_iops_sec", &[], Number),
                says("write_iops_sec", &[], Number),
            ],
        ),
        leaf("readonly", &[]),
        says("serial", &[], Word),
        says("wwn", &[], Word),
        BOOT,
        ADDRESS,
        ALIAS,
    ],
);

const INTERFACE: Rule = node(
    "interface",
    &[("type", OneOf(&["network", "bridge", "user"]))],
    &[
        leaf("mac", &[("address", Word)]),
        leaf("source", &[("network", Word), ("bridge", Word)]),
        leaf(
            "model",
            &[("type", OneOf(&["virtio", "e1000e", "e1000", "rtl8139"]))],
        ),
        leaf(
            "driver",
            &[
                ("name", OneOf(&["qemu", "vhost"])),
                ("queues", UpTo(THREADS_MAX)),
            ],
        ),
        leaf("link", &[("state", OneOf(&["up", "down"]))]),
        leaf("mtu", &[("size", UpTo(MTU_MAX))]),
        BOOT,
        ADDRESS,
        ALIAS,
    ],
);

const GRAPHICS: Rule = node(
    "graphics",
    // Address and port are the host's: written by us.
    &[
        ("type", OneOf(&["vnc", "spice"])),
        ("autoport", OneOf(&["yes"])),
        ("keymap", Word),
    ],
    &[
        leaf("image", &[("compression", Word)]),
        leaf("jpeg", &[("compression", Word)]),
        leaf("zlib", &[("compression", Word)]),
        leaf("streaming", &[("mode", OneOf(&["filter", "all", "off"]))]),
        leaf("clipboard", &[("copypaste", YES_NO)]),
        leaf("filetransfer", &[("enable", YES_NO)]),
        leaf("mouse", &[("mode", OneOf(&["server", "client"]))]),
    ],
);
