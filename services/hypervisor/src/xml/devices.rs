//! What a domain's devices may say. See [`super::rules`].

use super::rules::{
    ON_OFF, Rule,
    Value::{Number, OneOf, Word},
    YES_NO, leaf, node, says,
};

/// Where a device is in the guest.
const ADDRESS: Rule = leaf(
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
        ("controller", Number),
        ("target", Number),
        ("unit", Number),
        ("port", Word),
    ],
);
const ALIAS: Rule = leaf("alias", &[("name", Word)]);
const BOOT: Rule = leaf("boot", &[("order", Number)]);
pub(super) const DEVICES: Rule = node(
    "devices",
    &[],
    &[
        DISK,
        node(
            "controller",
            &[
                (
                    "type",
                    OneOf(&["usb", "scsi", "sata", "ide", "virtio-serial", "pci"]),
                ),
                ("index", Number),
                ("model", Word),
                ("ports", Number),
            ],
            &[
                leaf("driver", &[("queues", Number), ("iothread", Number)]),
                leaf("model", &[("name", Word)]),
                leaf(
                    "target",
                    &[("chassis", Number), ("port", Word), ("chassisNr", Number)],
                ),
                leaf("master", &[("startport", Number)]),
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
                        ("ram", Number),
                        ("vram", Number),
                        ("vram64", Number),
                        ("vgamem", Number),
                        ("heads", Number),
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
            &[("id", Number), ("type", OneOf(&["none", "spice"]))],
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
            ("port", Number),
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
                ("iothread", Number),
                ("queues", Number),
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
            &[("name", OneOf(&["qemu", "vhost"])), ("queues", Number)],
        ),
        leaf("link", &[("state", OneOf(&["up", "down"]))]),
        leaf("mtu", &[("size", Number)]),
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
