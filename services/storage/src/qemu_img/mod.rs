//! qemu-img: its command lines, its answers, its complaints.
//!
//! Whatever opens an image that's there takes what the gate let through, and uses it up: a file is
//! inspected for each run.

mod answer;
pub mod chain;
pub mod command;
mod convert;
pub mod error;
mod relink;
mod resize;

pub use answer::{Health, Info, Kept, Measure};
pub use chain::{Act, Commit, Rebase, Snapshot};
pub use command::{Beneath, Image, NewImage};
pub use convert::Copy;
pub use error::ToolError;
pub use relink::Relink;
pub use resize::Resize;

use crate::{
    cage::{Reach, Rules},
    gate::{Passed, PassedChain},
};
use camino::Utf8PathBuf;
use serde::de::DeserializeOwned;
use std::os::fd::OwnedFd;
use virtbus_wire::task::storage::{Preallocation, Repair};
use virtbus_worker::process::{
    CommandLine, Ended, Exit, Monotonic, RunError, RunOptions, Stdout, Stop, find_program, percent,
    run,
};

/// The program's name.
const NAME: &str = "qemu-img";
/// Bytes of an answer: far above what an image of ours can make it say.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The tool.
#[derive(Debug, Clone)]
pub struct QemuImg {
    program: Utf8PathBuf,
    rules: Rules,
}

impl QemuImg {
    /// The tool of this folder, or of `PATH`, run by these rules. That it's missing shows with the
    /// first job.
    #[must_use]
    pub fn find(dir: Option<&Utf8PathBuf>, rules: Rules) -> Self {
        let in_path = || {
            let path = find_program(NAME).ok()?;
            Utf8PathBuf::from_path_buf(path).ok()
        };
        let program = dir.map(|dir| dir.join(NAME)).or_else(in_path);
        Self {
            program: program.unwrap_or_else(|| format!("/usr/bin/{NAME}").into()),
            rules,
        }
    }

    /// The tool's version, such as `7.2.22`.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn version(&self, stop: &Stop) -> Result<String, ToolError> {
        let line = command::version(&self.program);
        let line = self.rules.quick(line, &Reach::nothing());
        let text = answer(line, stop).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let word = text.split_ascii_whitespace().nth(2);
        Ok(word.unwrap_or("unknown").to_owned())
    }

    /// What an image's header says.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn info(&self, image: Passed, stop: &Stop) -> Result<Info, ToolError> {
        let (line, reach) = (
            command::info(&self.program, &image),
            Reach::nothing().read(image.path()),
        );
        ask(self.rules.quick(line, &reach), stop).await
    }

    /// The room that a copy of an image takes.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn measure(&self, image: PassedChain, stop: &Stop) -> Result<Measure, ToolError> {
        let (line, reach) = (
            command::measure(&self.program, &image),
            Reach::nothing().chain(image.first().path()),
        );
        ask(self.rules.quick(line, &reach), stop).await
    }

    /// The room that an empty image takes.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn measure_empty(&self, size: u64, stop: &Stop) -> Result<Measure, ToolError> {
        let line = command::measure_empty(&self.program, size);
        ask(self.rules.quick(line, &Reach::nothing()), stop).await
    }

    /// Makes an image.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn create(&self, new: NewImage, stop: &Stop) -> Result<(), ToolError> {
        let options = RunOptions {
            stop: stop.clone(),
            ..RunOptions::default()
        };
        let (line, path) = (command::create(&self.program, &new), &new.image.path);
        let is_read = matches!(new.backing, Beneath::There(_));
        let reach = Reach::nothing().write(path);
        let reach = if is_read { reach.chain(path) } else { reach };
        let line = match new.preallocation {
            Preallocation::Off | Preallocation::Metadata => self.rules.quick(line, &reach),
            // It may write as many bytes as the image has.
            Preallocation::Falloc | Preallocation::Full => self.rules.long(line, &reach),
        };
        act(line, options).await
    }

    /// Renames an image's backing in its header. The tool keeps `lock` open as long as it lives.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn relink(
        &self,
        relink: Relink,
        lock: OwnedFd,
        stop: &Stop,
    ) -> Result<(), ToolError> {
        let reach = Reach::nothing().write(relink.image.path());
        let line = relink::relink(&self.program, &relink);
        let line = self.rules.quick(line, &reach);
        follow(line, vec![lock], stop, |_| {}).await
    }

    /// Sets an image's virtual size. The tool keeps `lock` open as long as it lives.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn resize(
        &self,
        resize: Resize,
        lock: OwnedFd,
        stop: &Stop,
    ) -> Result<(), ToolError> {
        let line = resize::resize(&self.program, &resize);
        let line = self.rules.quick(line, &in_place(&resize.image));
        follow(line, vec![lock], stop, |_| {}).await
    }

    /// Changes an image's snapshots. The tool keeps `lock` open as long as it lives.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn snapshot(
        &self,
        snapshot: Snapshot,
        lock: OwnedFd,
        stop: &Stop,
    ) -> Result<(), ToolError> {
        let line = chain::snapshot(&self.program, &snapshot);
        let line = self.rules.quick(line, &in_place(&snapshot.image));
        follow(line, vec![lock], stop, |_| {}).await
    }

    /// Looks for damage in an image and puts right what it's asked to. The tool keeps `lock` open
    /// as long as it lives. Formats that know no damage have none.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn check(
        &self,
        image: PassedChain,
        repair: Repair,
        lock: Option<OwnedFd>,
        stop: &Stop,
    ) -> Result<Health, ToolError> {
        /// What the tool ends with when it found damage, when it found leaks, and when the format
        /// can't be checked.
        const ENDS: [i32; 2] = [2, 3];
        const UNCHECKED: i32 = 63;
        let reach = match repair {
            Repair::None => Reach::nothing().chain(image.first().path()),
            Repair::Leaks | Repair::All => in_place(&image),
        };
        let line = chain::check(&self.program, &image, repair);
        let line = self.rules.long(line, &reach);
        tracing::debug!(%line, "a tool starts");
        let options = RunOptions {
            stop: stop.clone(),
            stdout: Stdout::Capture {
                bytes_max: ANSWER_BYTES_MAX,
            },
            inherit: lock.into_iter().collect(),
            ..RunOptions::default()
        };
        let command = subcommand(&line);
        let exit = match run(&line, options).await {
            Ok(exit) if exit.ended == Ended::Code(UNCHECKED) => return Ok(Health::default()),
            Ok(exit) if ENDS.iter().any(|code| exit.ended == Ended::Code(*code)) => exit,
            other => ended_well(&command, other)?,
        };
        serde_json::from_slice(&exit.stdout).map_err(|source| ToolError::Answer { command, source })
    }

    /// Writes an overlay's content into its backing, telling the percentage as it rises. The tool
    /// keeps `locks` open as long as it lives.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn commit(
        &self,
        commit: Commit,
        locks: Vec<OwnedFd>,
        stop: &Stop,
        progress: impl FnMut(f64) + Send,
    ) -> Result<(), ToolError> {
        let reach = in_place(&commit.image).write(commit.into.path());
        let line = chain::commit(&self.program, &commit);
        follow(self.rules.long(line, &reach), locks, stop, progress).await
    }

    /// Puts an image onto another backing, telling the percentage as it rises.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn rebase(
        &self,
        rebase: Rebase,
        stop: &Stop,
        progress: impl FnMut(f64) + Send,
    ) -> Result<(), ToolError> {
        let line = chain::rebase(&self.program, &rebase);
        let line = self.rules.long(line, &in_place(&rebase.image));
        follow(line, Vec::new(), stop, progress).await
    }

    /// Copies an image, telling the percentage as it rises.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn convert(
        &self,
        copy: Copy,
        stop: &Stop,
        progress: impl FnMut(f64) + Send,
    ) -> Result<(), ToolError> {
        let reach = Reach::nothing()
            .chain(copy.source.first().path())
            .write(&copy.target.path);
        let line = convert::convert(&self.program, &copy);
        let line = self.rules.long(line, &reach);
        follow(line, Vec::new(), stop, progress).await
    }
}

/// An image that is changed where it is, on top of others.
fn in_place(image: &PassedChain) -> Reach {
    let path = image.first().path();
    Reach::nothing().chain(path).write(path)
}

/// Runs a tool that holds `locks`, and tells the percentages that it prints.
async fn follow(
    line: CommandLine,
    locks: Vec<OwnedFd>,
    stop: &Stop,
    progress: impl FnMut(f64) + Send,
) -> Result<(), ToolError> {
    follow_with(line, percent, locks, stop, progress).await
}

/// The same with a tool that prints its progress in its own way.
pub(crate) async fn follow_with(
    line: CommandLine,
    mut read: impl FnMut(&str) -> Option<f64> + Send,
    locks: Vec<OwnedFd>,
    stop: &Stop,
    mut progress: impl FnMut(f64) + Send,
) -> Result<(), ToolError> {
    let mut rising = Monotonic::new();
    let mut tell = |record: &str| {
        if let Some(percent) = read(record).and_then(|percent| rising.rise(percent)) {
            progress(percent);
        }
    };
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        inherit: locks,
        ..RunOptions::default()
    };
    act(line, options).await
}

async fn ask<T: DeserializeOwned>(line: CommandLine, stop: &Stop) -> Result<T, ToolError> {
    let command = subcommand(&line);
    let answer = answer(line, stop).await?;
    serde_json::from_slice(&answer).map_err(|source| ToolError::Answer { command, source })
}

async fn answer(line: CommandLine, stop: &Stop) -> Result<Vec<u8>, ToolError> {
    let stdout = Stdout::Capture {
        bytes_max: ANSWER_BYTES_MAX,
    };
    let options = RunOptions {
        stop: stop.clone(),
        stdout,
        ..RunOptions::default()
    };
    let exit = ended_well(&subcommand(&line), run(&line, options).await)?;
    Ok(exit.stdout)
}

async fn act(line: CommandLine, options: RunOptions<'_>) -> Result<(), ToolError> {
    tracing::debug!(%line, "a tool starts");
    ended_well(&subcommand(&line), run(&line, options).await).map(|_| ())
}

fn ended_well(command: &str, exit: Result<Exit, RunError>) -> Result<Exit, ToolError> {
    let command = command.to_owned();
    match exit {
        Ok(exit) if exit.success() => Ok(exit),
        Ok(exit) => Err(ToolError::Failed {
            command,
            ended: exit.ended,
            said: exit.stderr.to_string(),
        }),
        Err(source) => Err(ToolError::Run {
            command,
            source: Box::new(source),
        }),
    }
}

/// The first argument, if it's one of qemu-img's; else the program's name.
fn subcommand(line: &CommandLine) -> String {
    let first = line.args.first().cloned().unwrap_or_default();
    let first = first.to_string_lossy().into_owned();
    if first.starts_with('-') {
        line.name()
    } else {
        first
    }
}
