//! Programs as somebody would run them by hand beside a task: with the flags that are best for it,
//! or with those of another system.

use crate::error::{Failure, failure};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{process::Command, task::spawn_blocking, time::Instant};

/// A command line: the program, and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Line(Vec<String>);

impl Line {
    /// Words as they would stand in a shell, and the files behind them.
    pub(crate) fn new(words: &str, files: &[&Path]) -> Self {
        let words = words.split_ascii_whitespace().map(str::to_owned);
        let files = files.iter().map(|file| file.display().to_string());
        Self(words.chain(files).collect())
    }

    /// Runs it to its good end; what it says is dropped.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let (program, arguments) = self.0.split_first().ok_or_else(|| failure("no program"))?;
        let status = Command::new(program)
            .args(arguments)
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|error| failure(format!("{program}: {error}")))?;
        if status.success() {
            return Ok(());
        }
        Err(failure(format!("{program} ended, {status}: {:?}", self.0)))
    }
}

/// How long lines take one after the other, with the fsync of what they made, in milliseconds.
pub(crate) async fn timed(lines: &[Line], made: Option<&Path>) -> Result<f64, Failure> {
    let began = Instant::now();
    for line in lines {
        line.run().await?;
    }
    if let Some(made) = made.map(PathBuf::from) {
        spawn_blocking(move || File::open(made)?.sync_all()).await??;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
