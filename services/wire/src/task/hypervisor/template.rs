//! The short form of a domain: what it has, without libvirt's XML.

use super::network::Network;
use crate::error::JobError;
use crate::id::{DiskId, MediaId, checked_text};
use crate::size::Size;
use crate::task::schema;
use crate::task::value::{Bounded, Token};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

/// The most virtual processors of a domain.
pub const VCPUS_MAX: u64 = 512;

/// What a domain has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::template)]
pub struct Template {
    /// Its memory.
    pub memory: Size,
    /// Its virtual processors.
    pub vcpus: Bounded<1, VCPUS_MAX>,
    /// Its disks, in order.
    #[serde(default)]
    pub disks: Vec<TemplateDisk>,
    /// Its media, in order.
    #[serde(default)]
    #[schemars(extend("uniqueItems" = true))]
    pub media: Vec<MediaId>,
    /// Its network cards, in order.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Its screen.
    #[serde(default)]
    pub graphics: Screen,
    /// What starts it.
    #[serde(default)]
    pub firmware: Firmware,
    /// Whether only signed systems start; needs efi.
    #[serde(default)]
    pub secure_boot: bool,
    /// Whether it has a trusted platform module.
    #[serde(default)]
    pub tpm: bool,
    /// What it starts from, in order; disks, media, network when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minItems" = 1, "uniqueItems" = true))]
    pub boot: Option<Vec<BootFrom>>,
    /// The machine it is, in QEMU's words.
    #[serde(default)]
    pub machine: Machine,
    /// The model of its processors; the host's when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Token>,
    /// Its video card; one that fits the screen when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<Video>,
    /// What its clock shows.
    #[serde(default)]
    pub clock: Clock,
    /// Whether it has a channel for the guest's agent.
    #[serde(default = "yes")]
    pub agent: bool,
}

const fn yes() -> bool {
    true
}

impl Template {
    /// The rules between its fields.
    ///
    /// # Errors
    /// `job.invalid_params`, naming the field.
    pub fn check(&self) -> Result<(), JobError> {
        let refuse = |field, why| Err(JobError::invalid_params(field, why));
        if self.secure_boot && self.firmware != Firmware::Efi {
            return refuse("template.secure_boot", "needs firmware efi");
        }
        if repeats(self.disks.iter().map(|disk| &disk.disk)) {
            return refuse("template.disks", "names a disk twice");
        }
        if repeats(self.media.iter()) {
            return refuse("template.media", "names a medium twice");
        }
        match &self.boot {
            Some(order) if order.is_empty() => refuse("template.boot", "must not be empty"),
            Some(order) if repeats(order.iter()) => refuse("template.boot", "names one twice"),
            Some(_) | None => Ok(()),
        }
    }
}

fn repeats<T: Ord>(mut items: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    !items.all(|item| seen.insert(item))
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$about])* $variant,)+ }
    )+};
}

choices!(
    /// How a disk is attached.
    #[derive(Default)]
    Bus {
        /// The fastest.
        #[default]
        Virtio,
        /// Many disks on one controller.
        Scsi,
        /// For guests without drivers of their own.
        Sata,
    }
    /// What becomes of blocks that a guest gives up.
    #[derive(Default)]
    Discard {
        /// The file gives them back.
        #[default]
        Unmap,
        /// Nothing.
        Ignore,
    }
    /// How the host caches a disk.
    #[derive(Default)]
    Cache {
        /// Not at all.
        #[default]
        None,
        /// Reads and writes.
        Writeback,
        /// Reads.
        Writethrough,
        /// Not at all, each write synchronous.
        Directsync,
    }
    /// The model of a network card.
    #[derive(Default)]
    NetworkModel {
        /// The fastest.
        #[default]
        Virtio,
        /// For guests without drivers of their own.
        E1000e,
    }
    /// A domain's screen.
    #[derive(Default)]
    Screen {
        /// SPICE.
        Spice,
        /// VNC.
        #[default]
        Vnc,
        /// None.
        None,
    }
    /// What starts a domain.
    #[derive(Default)]
    Firmware {
        /// SeaBIOS.
        #[default]
        Bios,
        /// OVMF.
        Efi,
    }
    /// What a domain starts from.
    BootFrom {
        /// Its disks.
        Disk,
        /// Its media.
        Media,
        /// Its network cards.
        Network,
    }
    /// A video card.
    Video {
        /// The usual one.
        Virtio,
        /// For SPICE.
        Qxl,
        /// The oldest.
        Vga,
        /// For guests with EFI and no drivers.
        Bochs,
        /// None.
        None,
    }
    /// What a domain's clock shows.
    #[derive(Default)]
    Clock {
        /// UTC.
        #[default]
        Utc,
        /// The host's local time, for Windows.
        Localtime,
    }
);

checked_text!(
    /// A machine, in QEMU's words.
    Machine,
    "a machine",
    "^[a-z0-9][a-z0-9.-]{0,62}$",
    |text| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        (1..=63).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(inner)
    }
);

impl Default for Machine {
    fn default() -> Self {
        Self("q35".to_owned())
    }
}

/// A disk of a domain. Its id alone stands for one with nothing special.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateDisk {
    /// The disk.
    pub disk: DiskId,
    /// How it's attached.
    pub bus: Bus,
    /// Whether the guest can't write it.
    pub readonly: bool,
    /// What becomes of blocks that the guest gives up.
    pub discard: Discard,
    /// How the host caches it.
    pub cache: Cache,
}

/// A disk with all that can be said of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "TemplateDiskFields")]
struct TemplateDiskFields {
    disk: DiskId,
    /// How it's attached.
    #[serde(default)]
    bus: Bus,
    /// Whether the guest can't write it.
    #[serde(default)]
    readonly: bool,
    /// What becomes of blocks that the guest gives up.
    #[serde(default)]
    discard: Discard,
    /// How the host caches it.
    #[serde(default)]
    cache: Cache,
}

impl From<DiskId> for TemplateDisk {
    fn from(disk: DiskId) -> Self {
        Self {
            disk,
            bus: Bus::default(),
            readonly: false,
            discard: Discard::default(),
            cache: Cache::default(),
        }
    }
}

impl<'de> Deserialize<'de> for TemplateDisk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TemplateDisk;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a disk id, or an object with disk")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TemplateDisk, E> {
                let disk: DiskId = text.parse().map_err(E::custom)?;
                Ok(disk.into())
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TemplateDisk, A::Error> {
                let map = de::value::MapAccessDeserializer::new(map);
                let fields = TemplateDiskFields::deserialize(map)?;
                Ok(TemplateDisk {
                    disk: fields.disk,
                    bus: fields.bus,
                    readonly: fields.readonly,
                    discard: fields.discard,
                    cache: fields.cache,
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for TemplateDisk {
    fn schema_name() -> Cow<'static, str> {
        "TemplateDisk".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A disk of a domain. Its id alone stands for one with nothing special.",
            "oneOf": [
                generator.subschema_for::<DiskId>(),
                generator.subschema_for::<TemplateDiskFields>()
            ]
        })
    }
}
