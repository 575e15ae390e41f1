//! Network cards of a domain's short form.

use super::template::NetworkModel;
use crate::id::checked_text;
use crate::task::{named::Named, schema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A network card and what it's on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Named<NetworkFields>", into = "NetworkFields")]
#[schemars(with = "NetworkFields")]
pub struct Network {
    /// What it's on.
    pub link: Link,
    /// Its model.
    pub model: NetworkModel,
    /// Its address; one of the host's choice when left out.
    pub mac: Option<Mac>,
}

/// What a network card is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A network of libvirt.
    Network(NetworkName),
    /// A bridge of the host.
    Bridge(BridgeName),
}

/// A network card, on a network or a bridge.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Network")]
#[schemars(transform = schema::network)]
struct NetworkFields {
    /// The network of libvirt; this or `bridge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkName>,
    /// The bridge of the host; this or `network`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<BridgeName>,
    /// Its model.
    #[serde(default)]
    model: NetworkModel,
    /// Its address; one of the host's choice when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
}

/// A card that is on nothing, or on two things.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exactly one of network and bridge is required")]
struct NotOneLink;

impl TryFrom<Named<NetworkFields>> for Network {
    type Error = NotOneLink;

    fn try_from(Named(fields): Named<NetworkFields>) -> Result<Self, NotOneLink> {
        let link = match (fields.network, fields.bridge) {
            (Some(name), None) => Link::Network(name),
            (None, Some(name)) => Link::Bridge(name),
            (Some(_), Some(_)) | (None, None) => return Err(NotOneLink),
        };
        Ok(Self {
            link,
            model: fields.model,
            mac: fields.mac,
        })
    }
}

impl From<Network> for NetworkFields {
    fn from(card: Network) -> Self {
        let (network, bridge) = match card.link {
            Link::Network(name) => (Some(name), None),
            Link::Bridge(name) => (None, Some(name)),
        };
        Self {
            network,
            bridge,
            model: card.model,
            mac: card.mac,
        }
    }
}

checked_text!(
    /// A network of libvirt.
    NetworkName,
    "a network's name",
    "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$",
    |text| interface_fits(text, 63)
);

checked_text!(
    /// A bridge of the host.
    BridgeName,
    "a bridge's name",
    "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$",
    |text| interface_fits(text, 15)
);

checked_text!(
    /// The address of one network card.
    Mac,
    "a MAC address of one card",
    "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
    |text| {
        let parts: Vec<&[u8]> = text.as_bytes().split(|b| *b == b':').collect();
        let two = |part: &&[u8]| part.len() == 2 && part.iter().all(u8::is_ascii_hexdigit);
        // The lowest bit of the first byte marks an address of many.
        parts.len() == 6 && parts.iter().all(two) && b"02468ACEace".contains(&parts[0][1])
    }
);

fn interface_fits(text: &str, length_max: usize) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=length_max).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(inner)
}
