//! The address of a libvirt daemon.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The address of a libvirt daemon: text without NUL, at which the binding would panic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Uri(String);

impl Default for Uri {
    fn default() -> Self {
        Self("qemu:///session".to_owned())
    }
}

impl FromStr for Uri {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("must be an address such as qemu:///system");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Uri {
    /// Whether the daemon is a part of this process: libvirt's trial driver.
    pub(crate) fn is_private(&self) -> bool {
        self.0.starts_with("test:")
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Uri {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Uri> for String {
    fn from(uri: Uri) -> Self {
        uri.0
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_nothing_that_libvirt_can_not_take() {
        for text in ["", "qemu:///a b", "qemu:\0"] {
            assert!(text.parse::<Uri>().is_err(), "{text:?}");
        }
    }
}
