//! What libvirt does of a live commit: it copies a disk's content into the one below, has the
//! domain go on there, and then on the disk again, whose file is new and empty.

use super::Context;
use crate::{
    libvirt::{BlockJob, LibvirtError},
    overlay_file::OverlayFile,
};
use camino::Utf8PathBuf;
use std::time::Duration;
use virtbus_wire::{Code, DiskId, JobError, state::Progress};
use virtbus_worker::{Run, Stop, Why};

/// How often is looked how far the copy came.
const LOOK: Duration = Duration::from_millis(200);

/// The two files that it's about.
pub(super) struct Files {
    pub(super) below: DiskId,
    pub(super) below_path: Utf8PathBuf,
    pub(super) overlay: OverlayFile,
}

/// The disk in its domain.
pub(super) struct Merge<'a> {
    pub(super) at: &'a Context<'a>,
    /// The disk's name in the guest.
    pub(super) target: &'a str,
    pub(super) files: &'a Files,
}

impl Merge<'_> {
    async fn job(&self) -> Result<Option<BlockJob>, LibvirtError> {
        let (host, target) = (&self.at.domains.host, self.target.to_owned());
        host.commit_job(self.at.domain, target).await
    }

    /// Begins to copy the content down, unless that goes on already.
    pub(super) async fn begin(&self) -> Result<(), LibvirtError> {
        if self.job().await?.is_some() {
            return Ok(());
        }
        let (host, target) = (&self.at.domains.host, self.target.to_owned());
        host.begin_commit(self.at.domain, target).await
    }

    /// Waits until everything is copied, and has the domain go on there. Nothing but the loss of the
    /// claim stops it.
    pub(super) async fn end(&self, run: Option<&Run>) -> Result<(), Stop> {
        let (host, domain) = (&self.at.domains.host, self.at.domain);
        loop {
            let Some(job) = self.job().await.map_err(JobError::from)? else {
                let text = "the copy into the disk below ended by itself";
                return Err(JobError::new(Code::ToolFailed, text).into());
            };
            if let Some(run) = run {
                run.progress(progress(job));
                if run.stop().why() == Some(Why::Lost) {
                    return Err(Stop::Lost);
                }
            }
            if job.done == job.total {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let pivoted = host.end_commit(domain, self.target.to_owned(), true).await;
        Ok(pivoted.map_err(JobError::from)?)
    }

    /// Ends a copy that still goes on.
    pub(super) async fn give_up(&self) -> Result<(), JobError> {
        if self.job().await?.is_none() {
            return Ok(());
        }
        let (host, target) = (&self.at.domains.host, self.target.to_owned());
        Ok(host.end_commit(self.at.domain, target, false).await?)
    }

    /// From the disk below onto the disk again, which is empty now.
    pub(super) async fn go_up(&self, is_active: bool) -> Result<(), JobError> {
        self.files.overlay.make(true).await?;
        if !is_active {
            let (domains, domain) = (self.at.domains, self.at.domain);
            let record = self.at.record().await?;
            let blueprint = domains.last_blueprint(domain, &record)?;
            let (mark, uuid) = (self.at.mark(), record.uuid);
            return domains.redefine(domain, (&blueprint, uuid), &mark).await;
        }
        let seen = self.at.seen().await?.ok_or_else(|| self.at.not_found())?;
        let disks = seen.disks.iter().map(|(target, _)| {
            let is_this = target == self.target;
            let path = self.files.overlay.path.as_path();
            (target.as_str(), is_this.then_some(path))
        });
        let disks: Vec<_> = disks.collect();
        self.at.go_on_with(&disks, false).await
    }
}

fn progress(job: BlockJob) -> Progress {
    let percent = (job.total > 0).then(|| job.done as f64 * 100.0 / job.total as f64);
    Progress {
        percent,
        phase: Some("commit".to_owned()),
        done_bytes: Some(job.done),
        total_bytes: Some(job.total),
        ..Progress::default()
    }
}
