//! `commit` of a disk while its domain runs: what it holds goes into the disk below, and it stays
//! as an empty overlay.
//!
//! ```text
//! work     the content is copied down; until here all is as before
//! effect   the domain goes on with the disk below │ the disk's file is made anew, empty
//!          │ the domain goes on with that
//! ```
//! Between the first and the last the disk's own file is stale: nobody may start from it. So it's
//! `changing` meanwhile, and whoever takes over finds by the domain's file how far it came.

use super::{Checked, Context, Steps};
use crate::{
    catalog::{Disk, not_found},
    libvirt::{BlockJob, Seen},
    overlay_file::OverlayFile,
    place::disk_file,
    xml::Element,
};
use camino::Utf8PathBuf;
use std::time::Duration;
use virt::sys;
use virtbus_wire::{
    Code, DiskId, JobError, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy},
    state::Progress,
    task::hypervisor::{Committed, disk as params},
};
use virtbus_worker::{Done, Run, Stop, done};

/// How often is looked how far the copy came.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) struct Commit<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Commit,
}

pub(crate) struct Plan {
    /// The disk's name in the guest.
    target: String,
    files: Files,
    /// Whether an earlier claim had the domain go on with the disk below.
    is_below: bool,
}

/// The two files that it's about.
struct Files {
    below: DiskId,
    below_path: Utf8PathBuf,
    overlay: OverlayFile,
}

impl Commit<'_> {
    async fn chain(&self) -> Result<Vec<Disk>, JobError> {
        let chain = self.at.domains.catalog.chain(&self.params.disk).await?;
        if chain.is_empty() {
            let id = self.params.disk.as_str();
            return Err(not_found(Code::DiskNotFound, "disk", id));
        }
        Ok(chain)
    }

    fn files(&self, chain: &[Disk]) -> Result<Files, JobError> {
        let refuse = |text| {
            let error = JobError::new(Code::DiskWrongState, text);
            error.with("disk", self.params.disk.as_str())
        };
        let [(id, record), (below, below_record), ..] = chain else {
            return Err(refuse("the disk has no disk below it"));
        };
        let roots = &self.at.domains.settings.roots;
        let path = disk_file(roots, id, record)?.path;
        let below_file = disk_file(roots, below, below_record)?;
        let size = record.virtual_size;
        let virtual_size = size.ok_or_else(|| refuse("the disk's size isn't known"))?;
        let job = &self.at.job;
        let overlay = OverlayFile {
            part: format!(".{}.{}.{id}.part", job.id, job.claim),
            below: below_file.path.file_name().unwrap_or_default().to_owned(),
            below_format: below_file.format,
            virtual_size,
            path,
        };
        let below = below.clone();
        Ok(Files {
            below,
            below_path: below_file.path,
            overlay,
        })
    }

    /// Only this disk may read the one that is written, and only this domain.
    fn admit(&self, chain: &[Disk]) -> Result<(), JobError> {
        let holder = self.at.domains.holder(self.at.domain);
        let Some((below, record)) = chain.get(1) else {
            return Ok(());
        };
        if record
            .children
            .iter()
            .any(|child| *child != self.params.disk)
        {
            let text = "other disks depend on the disk below";
            let error = JobError::new(Code::DiskHasChildren, text);
            return Err(error.with("disk", below.as_str()));
        }
        let other = record.in_use_by.iter().find(|user| match user {
            InUseBy::Domain { domain, .. } => *domain != holder.domain,
            InUseBy::Job { expires_at, .. } => *expires_at > Timestamp::now(),
        });
        match other {
            None => Ok(()),
            Some(_) => Err(JobError::new(Code::DiskInUse, "the disk below is in use")
                .with("disk", below.as_str())),
        }
    }

    /// The disk's name in the guest, and whether the domain is on the disk below already.
    fn place(&self, seen: &Seen, files: &Files) -> Result<(String, bool), JobError> {
        let find = |path: &Utf8PathBuf| {
            let mut disks = seen.disks.iter();
            disks
                .find(|(_, file)| *file == path.as_str())
                .map(|(target, _)| target.clone())
        };
        match (find(&files.overlay.path), find(&files.below_path)) {
            (Some(target), _) => Ok((target, false)),
            (None, Some(target)) => Ok((target, true)),
            (None, None) => {
                let error = self
                    .at
                    .wrong_state("the domain doesn't have the disk", seen.state);
                Err(error.with("disk", self.params.disk.as_str()))
            }
        }
    }

    async fn job(&self, target: &str) -> Result<Option<BlockJob>, JobError> {
        let host = &self.at.domains.host;
        Ok(host.commit_job(self.at.domain, target.to_owned()).await?)
    }

    /// Gives the disk this state, if it's this job's to give.
    async fn mark(&self, state: DiskState) -> Result<(), JobError> {
        let job = &self.at.job.id;
        let step = |record: &DiskRecord| {
            let is_own = record.owner_job.as_ref() == Some(job);
            let may = if state == DiskState::Changing {
                record.state == DiskState::Ready || is_own
            } else {
                record.state == DiskState::Changing && is_own
            };
            let mut next = record.clone();
            if state == DiskState::Changing {
                next.epoch += 1;
            }
            (next.state, next.owner_job) = (state, Some(job.clone()));
            next.updated_at = Timestamp::now();
            Ok((may && record.state != state).then_some(next))
        };
        let catalog = &self.at.domains.catalog;
        Ok(catalog.change_disk(&self.params.disk, step).await?)
    }

    /// From the disk below onto the disk again, which is empty now.
    async fn go_up(&self, target: &str, files: &Files, is_active: bool) -> Result<(), JobError> {
        files.overlay.make(true).await?;
        if !is_active {
            return Ok(());
        }
        let seen = self.at.seen().await?.ok_or_else(|| self.at.not_found())?;
        let e = Element::new;
        let mut disks = e("disks");
        for (other, _) in &seen.disks {
            let disk = e("disk").with("name", other);
            disks.children.push(if other == target {
                disk.with("snapshot", "external")
                    .with("type", "file")
                    .containing(e("driver").with("type", "qcow2"))
                    .containing(e("source").with("file", &files.overlay.path))
            } else {
                disk.with("snapshot", "no")
            });
        }
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT;
        let xml = e("domainsnapshot").containing(disks).to_string();
        Ok(self
            .at
            .domains
            .host
            .make_snapshot(self.at.domain, xml, flags)
            .await?)
    }

    fn result(&self, below: &DiskId) -> Result<Done, JobError> {
        let result = done(&Committed {
            backing: below.clone(),
        });
        result.map_err(|_| JobError::internal("a result that is no object"))
    }

    /// Ends what an earlier claim, or this one, began: on the disk again if it was left, and as
    /// before if it wasn't. True in the first case.
    async fn end(&self) -> Result<Option<DiskId>, JobError> {
        self.at.settled().await?;
        let chain = self.chain().await?;
        let is_own = chain[0].1.owner_job.as_ref() == Some(&self.at.job.id);
        let is_begun = is_own && chain[0].1.state == DiskState::Changing;
        let files = self.files(&chain)?;
        let Some(seen) = self.at.seen().await? else {
            return Ok(None);
        };
        let (target, is_below) = self.place(&seen, &files)?;
        if is_begun && is_below {
            self.go_up(&target, &files, seen.is_active).await?;
            self.mark(DiskState::Ready).await?;
            return Ok(Some(files.below));
        }
        if seen.is_active && !is_below && self.job(&target).await?.is_some() {
            let host = &self.at.domains.host;
            host.end_commit(self.at.domain, target, false).await?;
        }
        self.mark(DiskState::Ready).await?;
        Ok(None)
    }
}

impl Steps for Commit<'_> {
    type Plan = Plan;

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let (record, seen) = self.at.active().await?;
        if !record.disks.contains(&self.params.disk) {
            let error = self
                .at
                .wrong_state("the domain doesn't have the disk", seen.state);
            return Err(error.with("disk", self.params.disk.as_str()).into());
        }
        let chain = self.chain().await?;
        let files = self.files(&chain)?;
        self.admit(&chain)?;
        let (target, is_below) = self.place(&seen, &files)?;
        Ok(Checked::Plan(Plan {
            target,
            files,
            is_below,
        }))
    }

    async fn work(&self, plan: &mut Plan, run: &Run) -> Result<(), Stop> {
        if plan.is_below {
            return Ok(());
        }
        let (host, domain) = (&self.at.domains.host, self.at.domain);
        if self.job(&plan.target).await?.is_none() {
            let begun = host.begin_commit(domain, plan.target.clone()).await;
            begun.map_err(JobError::from)?;
        }
        loop {
            let Some(job) = self.job(&plan.target).await? else {
                let text = "the copy into the disk below ended by itself";
                return Err(JobError::new(Code::ToolFailed, text).into());
            };
            run.progress(progress(job));
            if job.done == job.total {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // What was copied changes nothing: the disk above still has it all.
                () = run.stop().asked() => return Err(Stop::Stopped),
            }
        }
    }

    async fn intend(&self, _: &mut Plan) -> Result<(), Stop> {
        Ok(self.mark(DiskState::Changing).await?)
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        let (host, domain) = (&self.at.domains.host, self.at.domain);
        if !plan.is_below {
            let pivoted = host.end_commit(domain, plan.target.clone(), true).await;
            pivoted.map_err(JobError::from)?;
        }
        Ok(self.go_up(&plan.target, &plan.files, true).await?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        self.mark(DiskState::Ready).await?;
        self.at.domains.sync(self.at.domain).await?;
        Ok(self.result(&plan.files.below)?)
    }

    async fn recover(&self) -> Result<Option<Done>, JobError> {
        match self.end().await {
            Ok(Some(below)) => self.result(&below).map(Some),
            Ok(None) => Ok(None),
            Err(error) if error.code.is_retryable() => Err(error),
            // What can't be said of it, the check says.
            Err(_) => Ok(None),
        }
    }

    async fn abandon(&self) -> Result<(), JobError> {
        match self.end().await {
            Err(error) if error.code.is_retryable() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
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
