//! What a domain's XML may say: every element and attribute that is allowed, with its values.
//! What isn't here is refused, so what libvirt learns in later versions is refused as well.
//!
//! No value may hold a `/`, with one exception that is a constant: no file, socket or device of
//! the host can be named.

use super::devices::DEVICES;
use Value::{Nothing, Number, OneOf, Prose, UpTo, Word};

/// What a value or a text may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// Nothing: the element has no text.
    Nothing,
    /// A word: letters, digits and `_.:+-`. No comma, which begins an option of QEMU's.
    Word,
    /// A whole number, of which nothing on the host becomes large.
    Number,
    /// A whole number up to this one: libvirt or QEMU takes memory or processes for so many, which
    /// nobody counts as the domain's.
    UpTo(u64),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Text for people.
    Prose,
}

/// An element.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) attributes: &'static [(&'static str, Value)],
    pub(super) text: Value,
    pub(super) children: &'static [Rule],
}

pub(super) type Attributes = &'static [(&'static str, Value)];

pub(super) const fn leaf(name: &'static str, attributes: Attributes) -> Rule {
    node(name, attributes, &[])
}

pub(super) const fn node(
    name: &'static str,
    attributes: Attributes,
    children: &'static [Rule],
) -> Rule {
    let text = Nothing;
    Rule {
        name,
        attributes,
        text,
        children,
    }
}

pub(super) const fn says(name: &'static str, attributes: Attributes, text: Value) -> Rule {
    Rule {
        name,
        attributes,
        text,
        children: &[],
    }
}

/// Threads and queues of a device.
pub(super) const THREADS_MAX: u64 = 64;
/// Places on a bus, and buses: libvirt makes all those before the one that's named.
pub(super) const PLACES_MAX: u64 = 255;

pub(super) const YES_NO: Value = OneOf(&["yes", "no"]);
pub(super) const ON_OFF: Value = OneOf(&["on", "off"]);
const LIFE: Value = OneOf(&["destroy", "restart", "preserve"]);

const STATE: Attributes = &[("state", ON_OFF)];

/// The whole of it.
pub(super) const DOMAIN: Rule = node(
    "domain",
    &[("type", OneOf(&["kvm", "qemu"])), ("id", Number)],
    &[
        says("name", &[], Word),
        says("uuid", &[], Word),
        says("title", &[], Prose),
        says("description", &[], Prose),
        says("memory", &[("unit", Word)], Number),
        says("currentMemory", &[("unit", Word)], Number),
        says(
            "vcpu",
            &[("placement", OneOf(&["static"])), ("current", Number)],
            Number,
        ),
        says("iothreads", &[], UpTo(THREADS_MAX)),
        OS,
        FEATURES,
        CPU,
        CLOCK,
        says("on_poweroff", &[], LIFE),
        says("on_reboot", &[], LIFE),
        says("on_crash", &[], LIFE),
        node(
            "pm",
            &[],
            &[
                leaf("suspend-to-mem", &[("enabled", YES_NO)]),
                leaf("suspend-to-disk", &[("enabled", YES_NO)]),
            ],
        ),
        DEVICES,
    ],
);

const OS: Rule = node(
    "os",
    &[("firmware", OneOf(&["bios", "efi"]))],
    &[
        says(
            "type",
            &[("arch", OneOf(&["x86_64"])), ("machine", Word)],
            OneOf(&["hvm"]),
        ),
        node(
            "firmware",
            &[],
            &[leaf(
                "feature",
                &[
                    ("enabled", YES_NO),
                    ("name", OneOf(&["secure-boot", "enrolled-keys"])),
                ],
            )],
        ),
        leaf("boot", &[("dev", OneOf(&["hd", "cdrom", "network"]))]),
        leaf("bootmenu", &[("enable", YES_NO), ("timeout", Number)]),
        leaf("bios", &[("useserial", YES_NO), ("rebootTimeout", Number)]),
    ],
);

const FEATURES: Rule = node(
    "features",
    &[],
    &[
        leaf("acpi", &[]),
        leaf("apic", &[("eoi", ON_OFF)]),
        leaf("pae", &[]),
        leaf("hap", STATE),
        leaf("vmport", STATE),
        leaf("smm", STATE),
        leaf("pmu", STATE),
        leaf("ioapic", &[("driver", OneOf(&["kvm", "qemu"]))]),
        node("kvm", &[], &[leaf("hidden", STATE)]),
        node(
            "hyperv",
            &[("mode", OneOf(&["custom"]))],
            &[
                leaf("relaxed", STATE),
                leaf("vapic", STATE),
                leaf("spinlocks", &[("state", ON_OFF), ("retries", Number)]),
                leaf("vpindex", STATE),
                leaf("runtime", STATE),
                leaf("synic", STATE),
                leaf("stimer", STATE),
                leaf("reset", STATE),
                leaf("frequencies", STATE),
                leaf("reenlightenment", STATE),
                leaf("tlbflush", STATE),
                leaf("ipi", STATE),
                leaf("evmcs", STATE),
            ],
        ),
    ],
);

const CPU: Rule = node(
    "cpu",
    &[
        (
            "mode",
            OneOf(&["custom", "host-model", "host-passthrough", "maximum"]),
        ),
        ("match", OneOf(&["exact", "minimum", "strict"])),
        ("check", OneOf(&["none", "partial", "full"])),
        ("migratable", ON_OFF),
    ],
    &[
        says("model", &[("fallback", OneOf(&["allow", "forbid"]))], Word),
        says("vendor", &[], Word),
        leaf(
            "topology",
            &[
                ("sockets", UpTo(PLACES_MAX)),
                ("dies", UpTo(PLACES_MAX)),
                ("cores", UpTo(PLACES_MAX)),
                ("threads", UpTo(PLACES_MAX)),
            ],
        ),
        leaf(
            "feature",
            &[
                (
                    "policy",
                    OneOf(&["force", "require", "optional", "disable", "forbid"]),
                ),
                ("name", Word),
            ],
        ),
    ],
);

const CLOCK: Rule = node(
    "clock",
    &[("offset", OneOf(&["utc", "localtime"]))],
    &[leaf(
        "timer",
        &[
            (
                "name",
                OneOf(&["rtc", "pit", "hpet", "tsc", "kvmclock", "hypervclock"]),
            ),
            (
                "tickpolicy",
                OneOf(&["delay", "catchup", "merge", "discard"]),
            ),
            ("present", YES_NO),
        ],
    )],
);

const WORD_CHARS_MAX: usize = 128;
const PROSE_CHARS_MAX: usize = 2_048;
const DIGITS_MAX: usize = 18;

impl Value {
    /// Whether a text is one.
    pub(super) fn allows(self, text: &str) -> bool {
        let word = |b: u8| b.is_ascii_alphanumeric() || b"_.:+-".contains(&b);
        match self {
            Self::Nothing => text.is_empty(),
            Self::Word => (1..=WORD_CHARS_MAX).contains(&text.len()) && text.bytes().all(word),
            Self::Number => {
                (1..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
            }
            Self::UpTo(most) => {
                let number = text.parse::<u64>();
                Self::Number.allows(text) && number.is_ok_and(|number| number <= most)
            }
            Self::OneOf(all) => all.contains(&text),
            Self::Prose => {
                text.chars().count() <= PROSE_CHARS_MAX && !text.chars().any(|c| c == '\0')
            }
        }
    }
}
