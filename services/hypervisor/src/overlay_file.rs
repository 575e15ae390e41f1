//! The file of a disk on top of another one. It names what is below by its bare name, as all disks
//! of a pool do, and doesn't open it: a domain may be writing there.

use camino::{Utf8Path, Utf8PathBuf};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with, unlink},
    io::Errno,
};
use std::time::Duration;
use tokio::task::spawn_blocking;
use virtbus_wire::{Code, DiskId, JobError, JobId};
use virtbus_worker::process::{Cage, CommandLine, Hold, Limits, RunOptions, find_program, run};

/// The largest file that an empty overlay may be, in bytes: its tables grow with its size.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a claim makes a disk's file as, before it's in its place.
pub(crate) fn part(job: &JobId, claim: u64, disk: &DiskId) -> String {
    format!(".{job}.{claim}.{disk}.part")
}

/// Takes away what older claims of a job left in a folder of what they made for a disk: none that
/// hangs there can put it in its place any more.
///
/// # Errors
/// `pool.unreachable`.
pub(crate) async fn remove_older(
    folder: &Utf8Path,
    (job, claim): (&JobId, u64),
    disk: &DiskId,
) -> Result<(), JobError> {
    let older = (1..claim).map(|older| folder.join(part(job, older, disk)));
    remove(older.collect()).await
}

/// What is made.
#[derive(Debug, Clone)]
pub(crate) struct OverlayFile {
    /// Its place.
    pub(crate) path: Utf8PathBuf,
    /// Under which name it's made, in the same folder.
    pub(crate) part: String,
    /// The bare name of the file below.
    pub(crate) below: String,
    /// The format of the file below.
    pub(crate) below_format: &'static str,
    /// What a guest sees, in bytes.
    pub(crate) virtual_size: u64,
}

impl OverlayFile {
    /// The command, as data.
    fn command(&self, program: std::path::PathBuf, part: &Utf8Path) -> CommandLine {
        let limits = Limits {
            file_size_bytes: FILE_BYTES_MAX,
            wall: LIMIT,
            ..Limits::default()
        };
        // It opens no image but the one it makes.
        let cage = Cage {
            write: vec![part.into()],
            hold: Hold::Offered,
            ..Cage::new()
        };
        CommandLine::new(program)
            .args(["create", "-q", "-f", "qcow2", "-u"])
            .args(["-b", &self.below, "-F", self.below_format, "--"])
            .arg(part.as_str())
            .arg(self.virtual_size.to_string())
            .limits(limits)
            .cage(cage)
    }

    /// Makes it, unless it's there; with `replace` in place of what is there.
    ///
    /// # Errors
    /// `tool.missing`, `tool.failed`.
    pub(crate) async fn make(&self, replace: bool) -> Result<(), JobError> {
        if !replace && self.path.exists() {
            return Ok(());
        }
        let missing = |_| JobError::new(Code::ToolMissing, "qemu-img isn't installed");
        let program = find_program("qemu-img").map_err(missing)?;
        let folder = self.path.parent().unwrap_or(Utf8Path::new("/"));
        let part = folder.join(&self.part);
        remove(vec![part.clone()]).await?;
        let failed = || JobError::new(Code::ToolFailed, "the overlay's file can't be made");
        let made = run(&self.command(program, &part), RunOptions::default()).await;
        let made = made.map_err(|error| {
            tracing::warn!(%error, "qemu-img");
            failed()
        })?;
        if !made.success() {
            tracing::warn!(stderr = %made.stderr, "qemu-img");
            return Err(failed());
        }
        let path = self.path.clone();
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        let renamed = spawn_blocking(move || {
            std::fs::File::open(&part)?.sync_all()?;
            renameat_with(CWD, part.as_str(), CWD, path.as_str(), flags)?;
            let folder = path.parent().unwrap_or(Utf8Path::new("/"));
            std::fs::File::open(folder)?.sync_all()
        });
        match renamed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an overlay's file can't be put in its place");
                Err(failed())
            }
            Err(_) => Err(JobError::internal("the rename panicked")),
        }
    }

    /// Takes it away again, and what of it isn't in its place.
    pub(crate) async fn unmake(&self) -> Result<(), JobError> {
        remove(vec![
            self.path.with_file_name(&self.part),
            self.path.clone(),
        ])
        .await
    }
}

/// Takes files away. What isn't there is gone already.
async fn remove(paths: Vec<Utf8PathBuf>) -> Result<(), JobError> {
    let remove = |path: &Utf8PathBuf| match unlink(path.as_str()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    };
    let removed = spawn_blocking(move || paths.iter().try_for_each(remove));
    let gone = removed.await.is_ok_and(|removed| removed.is_ok());
    let text = "a file can't be taken away from the pool";
    gone.then_some(())
        .ok_or_else(|| JobError::new(Code::PoolUnreachable, text))
}
