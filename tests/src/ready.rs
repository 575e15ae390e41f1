//! Which programs are tested, and what `virtbus up` says of them once they are ready.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

/// One of the processes of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// nats-server.
    Nats,
    /// virtbus-core.
    Core,
    /// virtbus-storage.
    Storage,
    /// virtbus-hypervisor.
    Hypervisor,
    /// virtbus-feedback.
    Feedback,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::Core => "core",
            Self::Storage => "storage",
            Self::Hypervisor => "hypervisor",
            Self::Feedback => "feedback",
        })
    }
}

/// What the ready file says.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// The messaging server.
    pub nats: String,
    /// The feedback service.
    pub http: String,
    /// The storage service.
    pub transfer: String,
    /// A token of somebody who may do everything.
    pub token: String,
    /// The one pool.
    pub pool: String,
    /// Its folder.
    pub pool_root: PathBuf,
    /// The one hypervisor.
    pub hypervisor: String,
    /// Process ids as they were at the start.
    pub pids: BTreeMap<Service, u32>,
    /// Configuration files.
    pub config: BTreeMap<Service, PathBuf>,
    /// Programs.
    pub bin: BTreeMap<Service, PathBuf>,
}

/// The folder of the programs under test.
///
/// # Panics
/// When they weren't built.
pub fn programs() -> PathBuf {
    let named = std::env::var_os("VIRTBUS_BIN_DIR").map(PathBuf::from);
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = named.unwrap_or_else(|| checkout.join("target/debug"));
    for name in ["", "-core", "-storage", "-hypervisor", "-feedback"] {
        let program = folder.join(format!("virtbus{name}"));
        assert!(
            program.exists(),
            "{} is missing: build all programs first, with ./dev build",
            program.display()
        );
    }
    folder
}

/// The command line program.
pub fn virtbus() -> PathBuf {
    programs().join("virtbus")
}

/// What the file says, once it's there.
///
/// # Panics
/// When the program has ended instead.
pub(crate) fn read(up: &mut Child, file: &Path) -> Result<Ready, String> {
    if let Some(status) = up.try_wait().unwrap() {
        let log = fs::read_to_string(file.with_file_name("up.log")).unwrap_or_default();
        panic!("virtbus up ended, {status}:\n{log}");
    }
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("ready file: {error}: {text}")))
}
