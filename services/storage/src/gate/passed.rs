//! What the gate lets through: the only way to an image that is there for any tool.
//!
//! A [`Passed`] is made here and nowhere else, right after the file was looked at and found to be
//! what the catalogue says, and it's used up by the run of one tool. So no tool opens a file that
//! wasn't inspected for this very run, and a task that forgot to ask doesn't compile.

use super::{Expected, Found, look, look_at_foreign, look_beyond_mark};
use crate::{
    blocking,
    disks::Disk,
    gate,
    pool::{Name, PoolError, Root, root::facts_of},
    qemu_img::Image,
    task::context::{Context, expected, file_of},
};
use camino::Utf8Path;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use virtbus_inspector::{Fault, Format, Report};
use virtbus_wire::{Code, DiskId, JobError, task::image::ImageFormat};
use virtbus_worker::perform::Stop;

/// How large an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// The room that the file takes, in bytes.
    pub actual_size: u64,
}

/// A file that was found to be what it should be: for one run of a tool that opens it alone.
#[derive(Debug)]
pub struct Passed {
    image: Image,
    measured: Measured,
    length: u64,
}

/// The same with all files below it: for one run of a tool that reads through them.
#[derive(Debug)]
pub struct PassedChain {
    first: Passed,
}

impl Passed {
    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Utf8Path {
        &self.image.path
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.image.format
    }

    /// How large it is, as it was found.
    #[must_use]
    pub fn measured(&self) -> Measured {
        self.measured
    }

    /// Where the file ends, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// For tests of command lines, which nobody runs.
    #[cfg(test)]
    pub(crate) fn unseen(path: &str, format: ImageFormat) -> Self {
        Self {
            image: Image {
                path: path.into(),
                format,
            },
            measured: Measured {
                virtual_size: 1 << 20,
                actual_size: 4096,
            },
            length: 4 << 20,
        }
    }
}

impl PassedChain {
    /// Its first file.
    #[must_use]
    pub fn first(&self) -> &Passed {
        &self.first
    }

    /// For a tool that opens the first file alone.
    #[must_use]
    pub fn alone(self) -> Passed {
        self.first
    }

    /// As [`Passed::unseen`].
    #[cfg(test)]
    pub(crate) fn unseen(path: &str, format: ImageFormat) -> Self {
        let first = Passed::unseen(path, format);
        Self { first }
    }
}

/// A file to be looked at.
struct Wanted {
    /// Whose it is, if it's a disk's by now.
    disk: Option<DiskId>,
    name: Name,
    expected: Expected,
    look: Look,
}

type Look = fn(&OwnedFd, ImageFormat) -> Found;

impl Wanted {
    fn disk(disk: &Disk, below: Option<&Disk>) -> Self {
        Self {
            disk: Some(disk.id.clone()),
            name: file_of(disk),
            expected: expected(disk, below),
            look,
        }
    }

    /// Each disk of a chain, on top of the next.
    fn chain(chain: &[Disk]) -> impl Iterator<Item = Self> {
        let below = |at: usize| chain.get(at + 1);
        let disks = chain.iter().enumerate();
        disks.map(move |(at, disk)| Self::disk(disk, below(at)))
    }

    /// A file that isn't what it should be is told with the disk's id: any of the chain may be it.
    fn pass(self, root: &Root) -> Result<Passed, JobError> {
        let disk = self.disk.clone();
        self.looked_at(root).map_err(|error| match disk {
            Some(disk) => error.with("disk", disk.as_str()),
            None => error,
        })
    }

    fn looked_at(self, root: &Root) -> Result<Passed, JobError> {
        let gone = || JobError::new(Code::DiskWrongState, "the disk's file isn't in the pool");
        let format = self.expected.format;
        let (found, bytes) =
            open(root, &self.name, |file| (self.look)(file, format))?.ok_or_else(gone)?;
        let report = gate::check(found, &self.expected)?;
        Ok(passed(root, &self.name, format, &report, bytes))
    }
}

/// Room taken and length, both in bytes.
type Bytes = (u64, u64);
/// What was found in a file, and how much of it there is.
type Looked = (Result<Report, Fault>, Bytes);

/// Looks at a file, if it's there.
fn open(
    root: &Root,
    name: &Name,
    look: impl FnOnce(&OwnedFd) -> Found,
) -> Result<Option<Looked>, PoolError> {
    let Some(file) = root.open(name)? else {
        return Ok(None);
    };
    let refused = |source: Errno| PoolError::Refused {
        act: "read",
        name: name.to_string(),
        source,
    };
    let found = look(&file).map_err(refused)?;
    let facts = facts_of(&file).map_err(refused)?;
    Ok(Some((found, (facts.allocated, facts.length))))
}

fn passed(
    root: &Root,
    name: &Name,
    format: ImageFormat,
    report: &Report,
    (actual_size, length): Bytes,
) -> Passed {
    Passed {
        image: Image {
            path: root.path(name),
            format,
        },
        measured: Measured {
            virtual_size: report.virtual_size,
            actual_size,
        },
        length,
    }
}

/// Looks at files in turn, and lets the first through if all of them are what they should be.
async fn pass_all(
    root: &Root,
    wanted: impl IntoIterator<Item = Wanted>,
) -> Result<PassedChain, Stop> {
    let (root, wanted) = (root.clone(), wanted.into_iter().collect::<Vec<_>>());
    let looked: Result<Result<PassedChain, JobError>, PoolError> = blocking::look(move || {
        let mut all = wanted.into_iter().map(|wanted| wanted.pass(&root));
        let none = || JobError::internal("a chain without a disk");
        let first = all.next().unwrap_or_else(|| Err(none()));
        let below = all.try_for_each(|below| below.map(|_| ()));
        Ok(first.and_then(|first| below.map(|()| PassedChain { first })))
    })
    .await;
    Ok(looked??)
}

impl Context<'_> {
    /// Lets a chain of disks through: the first, and all below it in their order.
    ///
    /// # Errors
    /// As [`gate::check`], and `disk.wrong_state` for a file that isn't there.
    pub(crate) async fn pass(&self, root: &Root, chain: &[Disk]) -> Result<PassedChain, Stop> {
        pass_all(root, Wanted::chain(chain)).await
    }

    /// Lets a disk's own file through, whatever the one below it holds.
    pub(crate) async fn pass_disk(
        &self,
        root: &Root,
        disk: &Disk,
        below: Option<&Disk>,
    ) -> Result<Passed, Stop> {
        let passed = pass_all(root, [Wanted::disk(disk, below)]).await?;
        Ok(passed.alone())
    }

    /// Lets a file through that needn't have a disk's name yet.
    pub(crate) async fn pass_file(
        &self,
        root: &Root,
        name: &Name,
        expected: Expected,
    ) -> Result<Passed, Stop> {
        Ok(self.pass_on(root, name, expected, &[]).await?.alone())
    }

    /// The same on top of a chain of disks, which is let through too.
    pub(crate) async fn pass_on(
        &self,
        root: &Root,
        name: &Name,
        expected: Expected,
        below: &[Disk],
    ) -> Result<PassedChain, Stop> {
        let name = name.clone();
        let first = Wanted {
            disk: None,
            name,
            expected,
            look,
        };
        pass_all(root, std::iter::once(first).chain(Wanted::chain(below))).await
    }

    /// Lets a chain through whose first disk may be marked as damaged: to be repaired.
    pub(crate) async fn pass_marked(
        &self,
        root: &Root,
        chain: &[Disk],
    ) -> Result<PassedChain, Stop> {
        let mut wanted: Vec<Wanted> = Wanted::chain(chain).collect();
        if let Some(first) = wanted.first_mut() {
            first.look = look_beyond_mark;
        }
        pass_all(root, wanted).await
    }

    /// Lets a file from outside through if it's of this format and at most this large, in bytes.
    /// What it says of a backing, in the report, is left to the caller; none if there is no file.
    pub(crate) async fn pass_foreign(
        &self,
        root: &Root,
        name: &Name,
        format: ImageFormat,
        size_max: u64,
    ) -> Result<Option<(Report, Passed)>, Stop> {
        let found = foreign(root, name, format.into(), size_max).await?;
        Ok(found.map(|(report, bytes)| {
            let passed = passed(root, name, format, &report, bytes);
            (report, passed)
        }))
    }

    /// The same of what isn't a disk: no tool opens it.
    pub(crate) async fn foreign(
        &self,
        root: &Root,
        name: &Name,
        format: Format,
        size_max: u64,
    ) -> Result<Option<Report>, Stop> {
        let found = foreign(root, name, format, size_max).await?;
        Ok(found.map(|(report, _)| report))
    }
}

async fn foreign(
    root: &Root,
    name: &Name,
    format: Format,
    size_max: u64,
) -> Result<Option<(Report, Bytes)>, Stop> {
    let (root, name) = (root.clone(), name.clone());
    let found: Result<_, PoolError> =
        blocking::look(move || open(&root, &name, look_at_foreign)).await;
    let Some((found, bytes)) = found? else {
        return Ok(None);
    };
    let report = gate::check_foreign(found, format, size_max)?;
    Ok(Some((report, bytes)))
}
