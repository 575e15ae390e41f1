//! The cage of a tool that opens what strangers wrote: what it sees of the host, and what it can't
//! ask of the kernel.
//!
//! The thread that starts the tool locks itself in, starts it, and ends: a process is born with
//! its parent thread's restrictions, and none of them can be taken off again, by nobody. So the tool
//! is held from its first instruction, there is no program of our own in between, and nothing here
//! is unsafe. The rest of the worker isn't touched: all of it is a matter of one thread.
//!
//! | layer | holds |
//! |---|---|
//! | Landlock | opens, executions, makings and removals of files but those the [`Cage`] names; TCP; signals and abstract sockets to outside |
//! | a filter of system calls | sockets, other namespaces, mounts, tracing, modules, `io_uring`: see [`calls`](self) |
//! | `no_new_privs` | that a set-uid program gives more rights |
//! | capabilities | none is left to root's tools but reading and writing files of others |
//!
//! Files that the worker hands down are open already, and stay so.

mod calls;
mod land;
mod offer;

pub use offer::{Offer, offer};

use rustix::{
    io::Errno,
    process::setpriority_process,
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};
use std::{io, path::PathBuf};

/// What a tool of root's keeps: files in a pool may belong to the user of the virtual machines.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// What a tool may reach of the host. Everything else is refused to it (`Permission denied`). A path that
/// isn't there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cage {
    /// Programs, libraries, and folders of them: read and executed.
    pub run: Vec<PathBuf>,
    /// Files, and folders with all in them: read.
    pub read: Vec<PathBuf>,
    /// Files that strangers may have put there, and folders with all in them: read. What is no plain
    /// file or folder keeps the tool from starting: a link may lead anywhere by then, whoever
    /// looked at its place before.
    pub files: Vec<PathBuf>,
    /// Files: read and written. They are made, empty, where they are missing.
    pub write: Vec<PathBuf>,
    /// Folders in which files are read and written, but none is made or removed.
    pub write_in: Vec<PathBuf>,
    /// Folders of the tool's own: everything.
    pub own: Vec<PathBuf>,
    /// Folders in which it may make and remove folders and sockets, and nothing else.
    pub sockets_in: Vec<PathBuf>,
    /// Devices: read, written and controlled.
    pub devices: Vec<PathBuf>,
    /// What it may ask of the kernel.
    pub calls: Calls,
    /// What happens where the kernel can't hold it.
    pub hold: Hold,
}

/// What a tool may ask of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    /// To read and write files. No socket of any kind, no change of a file's owner or mode.
    #[default]
    Files,
    /// To run a virtual machine, too: local sockets, and modes of files.
    Machine,
}

/// What happens where the kernel can't hold a tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// It isn't started.
    #[default]
    Required,
    /// It's started with the layers that there are.
    Offered,
}

impl Cage {
    /// A cage in which nothing can be reached but what programs need to start.
    #[must_use]
    pub fn new() -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        Self {
            run: paths(&LIBRARIES),
            read: paths(&READ),
            devices: paths(&["/dev/null"]),
            ..Self::default()
        }
    }

    /// Opens what it names, so that nothing is left to wait for when the tool starts. May block.
    pub(super) fn ready(&self) -> io::Result<Ready> {
        let land = match (land::rules(self), self.hold) {
            (Ok(rules), _) => Some(rules),
            (Err(land::Refused::Kernel(_)), Hold::Offered) => None,
            (Err(error), Hold::Offered | Hold::Required) => return Err(error.into()),
        };
        Ok(Ready {
            land,
            calls: self.calls,
            hold: self.hold,
        })
    }
}

/// Where libraries and the loader are.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
];
/// What else programs look at when they start: which libraries and processors there are.
const READ: [&str; 4] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/dev/urandom",
    "/sys/devices/system",
];

/// A cage that only has to be closed.
#[derive(Debug)]
pub(super) struct Ready {
    land: Option<land::Rules>,
    calls: Calls,
    hold: Hold,
}

impl Ready {
    /// Locks this thread in, for ever, and all that it starts.
    pub(super) fn enter(self) -> io::Result<()> {
        let bearable = |done: io::Result<()>| match (done, self.hold) {
            (Ok(()), _) | (Err(_), Hold::Offered) => Ok(()),
            (Err(error), Hold::Required) => Err(error),
        };
        drop_capabilities()?;
        self.land.map_or(Ok(()), |land| bearable(land.enforce()))?;
        bearable(calls::forbid(self.calls))
    }
}

fn drop_capabilities() -> Result<(), Errno> {
    let has = capabilities(None)?.permitted;
    let kept = has.intersection(KEPT);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Puts this thread, and what it starts, so far back in line for the processor.
pub(super) fn step_back(nice: u8) -> Result<(), Errno> {
    if nice == 0 {
        return Ok(());
    }
    // No number means the calling thread.
    setpriority_process(None, i32::from(nice.min(19)))
}
