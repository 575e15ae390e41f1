//! The part of a cage that Landlock holds.

use super::Cage;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};
use std::{io, os::fd::OwnedFd, path::PathBuf};

/// The newest rights that are asked for. What the kernel doesn't know of them is left out.
const ABI_ASKED: ABI = ABI::V9;
/// What files can have done to them, beside folders.
const OF_FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | ReadFile | WriteFile | Truncate | IoctlDev | ResolveUnix});
const RUN: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
const SOCKETS: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadDir | MakeDir | MakeSock | RemoveDir | RemoveFile | ResolveUnix});
/// Everything in a folder of the tool's own, but devices.
const OWN: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym | Refer | ResolveUnix});
/// As qemu makes files.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// What the tool is to work with can't be opened.
    #[error("open what the tool works with")]
    Path(#[source] io::Error),
    /// The kernel can't do it.
    #[error("close the cage: {0}")]
    Kernel(String),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Path(error) => error,
            Refused::Kernel(said) => Self::new(io::ErrorKind::Unsupported, said),
        }
    }
}

/// Rules that only have to be put in force.
#[derive(Debug)]
pub(super) struct Rules(RulesetCreated);

/// Opens all that the cage names.
pub(super) fn rules(cage: &Cage) -> Result<Rules, Refused> {
    let kernel = |error: landlock::RulesetError| Refused::Kernel(error.to_string());
    let mut created = empty().map_err(kernel)?;
    let rights = [
        (&cage.run, RUN),
        (&cage.read, READ),
        (&cage.write_in, WRITE | READ),
        (&cage.own, OWN),
        (&cage.sockets_in, SOCKETS),
        (&cage.devices, DEVICE),
    ];
    let named = rights
        .into_iter()
        .flat_map(|(paths, right)| paths.iter().map(move |path| (path, right)));
    for (path, right) in named {
        if let Some(file) = look(path).map_err(path_error)? {
            created = allow(created, file, right)?;
        }
    }
    for path in &cage.files {
        if let Some(file) = look_plain(path).map_err(path_error)? {
            created = allow(created, file, READ)?;
        }
    }
    for path in &cage.write {
        created = allow(created, make(path).map_err(path_error)?, WRITE)?;
    }
    Ok(Rules(created))
}

fn empty() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_ASKED))?
        .handle_access(AccessNet::from_all(ABI_ASKED))?
        .scope(Scope::from_all(ABI_ASKED))?
        .create()
}

fn allow(
    created: RulesetCreated,
    file: OwnedFd,
    right: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Refused> {
    let stat = fstat(&file).map_err(path_error)?;
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let right = if is_folder { right } else { right & OF_FILES };
    created
        .add_rule(PathBeneath::new(file, right))
        .map_err(|error| Refused::Kernel(error.to_string()))
}

fn path_error(errno: Errno) -> Refused {
    Refused::Path(errno.into())
}

/// What is there; none if nothing is.
fn look(path: &PathBuf) -> Result<Option<OwnedFd>, Errno> {
    there(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
}

/// The plain file or folder that is there. A link isn't followed.
fn look_plain(path: &PathBuf) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Some(file) = there(open(path, flags, Mode::empty()))? else {
        return Ok(None);
    };
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile | FileType::Directory => Ok(Some(file)),
        FileType::Symlink => Err(Errno::LOOP),
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Err(Errno::INVAL),
    }
}

fn there(opened: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The file at this place, made if it's missing. A link isn't followed.
fn make(path: &PathBuf) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What is opened for a moment only is no writer to others: qemu's locks are taken apart.
    open(path, flags | OFlags::NONBLOCK, FILE_MODE)
}

impl Rules {
    /// Puts them in force for this thread and all that it starts.
    pub(super) fn enforce(self) -> io::Result<()> {
        enforce(self.0).map(|_| ())
    }
}

fn enforce(rules: RulesetCreated) -> io::Result<landlock::LandlockStatus> {
    let status = rules.restrict_self().map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(status.landlock),
        RulesetStatus::NotEnforced => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel has no Landlock",
        )),
    }
}

/// Locks this thread out of everything, and says which version of Landlock did it; none if nothing
/// did.
pub(super) fn version() -> Option<u32> {
    let status = enforce(empty().ok()?).ok()?;
    match status {
        landlock::LandlockStatus::NotEnabled | landlock::LandlockStatus::NotImplemented => None,
        landlock::LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => Some(
            kernel_abi
                .and_then(|abi| u32::try_from(abi).ok())
                .unwrap_or_else(|| number(effective_abi)),
        ),
    }
}

fn number(abi: ABI) -> u32 {
    const KNOWN: [ABI; 10] = [
        ABI::Unsupported,
        ABI::V1,
        ABI::V2,
        ABI::V3,
        ABI::V4,
        ABI::V5,
        ABI::V6,
        ABI::V7,
        ABI::V8,
        ABI::V9,
    ];
    let at = KNOWN.iter().position(|known| *known == abi);
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
}
