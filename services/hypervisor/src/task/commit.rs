//! `commit` of a disk while its domain runs: what it holds goes into the disk below, and it stays
//! as an empty overlay.
//!
//! ```text
//! intend    the disk below is `changing`
//! effect    the disk is `changing` │ its content is copied down │ the domain goes on with the disk
//!           below │ the disk's file is made anew, empty │ the domain goes on with that
//! publish   the disk below is `ready`, then the disk
//! ```
//! From the first byte on, the disk below is neither what it was nor what it's to be, and only the
//! disk hides that; later the disk's own file is stale. Nothing takes that back, so nothing stops
//! it: as long as the disk is `changing`, whoever takes over goes on, from what libvirt says.
//!
//! A copy that fails, or whose domain goes off, ends it: then the disk is `ready`, as it was, and
//! the one below `broken`, so that nobody reads it or loses the disk that makes it whole. The
//! domain starts from both, and another commit puts it right.

use super::{
    Checked, Context, Steps,
    merge::{Files, Merge},
};
use crate::{
    admit::admit_states,
    catalog::{Disk, not_found},
    libvirt::Seen,
    overlay_file::{OverlayFile, part},
    place::{self, disk_file},
};
use camino::Utf8PathBuf;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Code, DiskId, JobError, Timestamp,
    catalog::{DiskRecord, DiskState, InUseBy},
    protocol::lock::Mode,
    task::hypervisor::{Committed, disk as params},
};
use virtbus_worker::{Done, Run, Stop, done};

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
    /// Whether no earlier claim can have written there.
    is_first: bool,
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
            part: part(&job.id, job.claim, id),
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
        let [(_, top), (below, record), ..] = chain else {
            return Ok(());
        };
        if !self.at.has_taken(top) && !self.at.has_taken(record) {
            admit_states(chain)?;
        }
        if !top.snapshots.is_empty() {
            let text = "the disk's snapshots would show what is committed now";
            let error = JobError::new(Code::DiskWrongState, text);
            return Err(error.with("disk", self.params.disk.as_str()));
        }
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

    fn merge<'a>(&'a self, target: &'a str, files: &'a Files) -> Merge<'a> {
        let at = &self.at;
        Merge { at, target, files }
    }

    fn result(&self, below: &DiskId) -> Result<Done, JobError> {
        let result = done(&Committed {
            backing: below.clone(),
        });
        result.map_err(|_| JobError::internal("a result that is no object"))
    }

    /// What the job is told of a copy that failed.
    fn halfway(&self, stop: Stop, below: &DiskId) -> Stop {
        let Stop::Failed(mut error) = stop else {
            return stop;
        };
        error.message += "; the disk is whole, the one below is not until the commit is run again";
        let error = error.with("disk", self.params.disk.as_str());
        Stop::Failed(error.with("backing", below.as_str()))
    }

    /// Copies once more what an earlier claim began to copy, or waits for that.
    async fn copied(&self, target: &str, files: &Files) -> Result<(), Stop> {
        let merge = self.merge(target, files);
        merge.begin().await.map_err(JobError::from)?;
        merge.end(None).await
    }

    /// Gives back both disks: the one below holds everything, and may have grown for it.
    async fn written(&self, below: &DiskId) -> Result<Done, JobError> {
        let domains = self.at.domains;
        let roots = &domains.settings.roots;
        let size = place::virtual_size(&domains.catalog, roots, below).await?;
        let sized = |record: &mut DiskRecord| record.virtual_size = size;
        self.at.give(below, DiskState::Ready, sized).await?;
        let disk = &self.params.disk;
        self.at.give(disk, DiskState::Ready, |_| {}).await?;
        self.result(below)
    }

    /// Gives back the disk below, to which nothing was done. One that was half written stays so, and
    /// it's this job of which both disks tell that.
    async fn give_back(&self, below: &DiskId) -> Result<(), JobError> {
        let chain = self.chain().await?;
        let is_half = |(id, record): &Disk| {
            id == below && record.state == DiskState::Broken && self.at.has_taken(record)
        };
        if !chain.iter().any(is_half) {
            return self.at.give(below, DiskState::Ready, |_| {}).await;
        }
        let job = &self.at.job.id;
        let told = |record: &DiskRecord| {
            let mut next = record.clone();
            next.owner_job = Some(job.clone());
            Ok((next != *record).then_some(next))
        };
        let catalog = &self.at.domains.catalog;
        Ok(catalog.change_disk(&self.params.disk, told).await?)
    }

    /// How far this job came, and where the domain is.
    async fn begun(&self) -> Result<Begun, JobError> {
        self.at.settled().await?;
        let chain = self.chain().await?;
        let [(_, top), (below_id, below), ..] = chain.as_slice() else {
            return Ok(Begun::Nothing);
        };
        let is_own = |record: &DiskRecord| record.owner_job.as_ref() == Some(&self.at.job.id);
        if is_own(top) && is_own(below) && below.state == DiskState::Ready {
            return Ok(Begun::Written(below_id.clone()));
        }
        if !self.at.has_taken(top) || top.state != DiskState::Changing {
            return Ok(Begun::Intent(below_id.clone()));
        }
        let files = self.files(&chain)?;
        let seen = self.at.seen().await?;
        let place = match &seen {
            Some(seen) => self.place(seen, &files).ok(),
            None => None,
        };
        let is_active = seen.is_some_and(|seen| seen.is_active);
        Ok(match place {
            Some((target, true)) => Begun::Below(target, files, is_active),
            Some((target, false)) => Begun::Copy(files, is_active.then_some(target)),
            None => Begun::Copy(files, None),
        })
    }
}

/// How far a commit came.
enum Begun {
    /// There is nothing below the disk.
    Nothing,
    /// The disk below may be taken, and nothing was done to it.
    Intent(DiskId),
    /// The disk below may be half written; the disk's name in the domain that runs.
    Copy(Files, Option<String>),
    /// The domain, running or not, is on the disk below: the disk itself is stale.
    Below(String, Files, bool),
    /// All is done.
    Written(DiskId),
}

impl Steps for Commit<'_> {
    type Plan = Plan;

    /// Alone on the disk below, which others may be about to read. The disk itself is held by its
    /// domain.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let chain = self.at.domains.catalog.chain(&self.params.disk).await?;
        let below = chain.iter().skip(1).enumerate().map(|(at, (id, _))| {
            let mode = if at == 0 {
                Mode::Exclusive
            } else {
                Mode::Shared
            };
            (format!("disk.{id}"), mode)
        });
        Ok(below.collect())
    }

    async fn clean(&self) -> Result<(), JobError> {
        let disk = &self.params.disk;
        self.at.remove_parts(disk, disk).await
    }

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
        let is_first = !self.at.has_taken(&chain[0].1);
        Ok(Checked::Plan(Plan {
            target,
            files,
            is_below,
            is_first,
        }))
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        Ok(self.at.take(&plan.files.below).await?)
    }

    async fn effect(&self, plan: &mut Plan, run: &Run) -> Result<(), Stop> {
        let (disk, below) = (&self.params.disk, &plan.files.below);
        let merge = self.merge(&plan.target, &plan.files);
        self.at.take(disk).await?;
        if !plan.is_below {
            if let Err(error) = merge.begin().await {
                if plan.is_first && !error.is_in_doubt() {
                    // Nothing was written. Without this job's name, or it would pass for done.
                    let unnamed = |record: &mut DiskRecord| record.owner_job = None;
                    self.at.give(disk, DiskState::Ready, unnamed).await?;
                }
                return Err(JobError::from(error).into());
            }
            let ended = merge.end(Some(run)).await;
            ended.map_err(|stop| self.halfway(stop, below))?;
        }
        Ok(merge.go_up(true).await?)
    }

    async fn publish(&self, plan: Plan) -> Result<Done, Stop> {
        let done = self.written(&plan.files.below).await?;
        self.at.domains.sync(self.at.domain).await?;
        Ok(done)
    }

    async fn recover(&self) -> Result<Option<Done>, JobError> {
        let (target, files, is_active) = match self.begun().await? {
            Begun::Nothing | Begun::Intent(_) | Begun::Copy(_, None) => return Ok(None),
            Begun::Copy(files, Some(target)) => {
                match self.copied(&target, &files).await {
                    Ok(()) => (target, files, true),
                    Err(Stop::Failed(error)) if error.code == Code::HypervisorUnreachable => {
                        return Err(error);
                    }
                    // It failed, and fails once more: then it's given up.
                    Err(stop) => {
                        tracing::warn!(job = %self.at.job.id, ?stop, "a commit can't go on");
                        return Ok(None);
                    }
                }
            }
            Begun::Below(target, files, is_active) => (target, files, is_active),
            Begun::Written(below) => return self.written(&below).await.map(Some),
        };
        self.merge(&target, &files).go_up(is_active).await?;
        self.written(&files.below).await.map(Some)
    }

    async fn abandon(&self) -> Result<(), JobError> {
        match self.begun().await {
            // No such disk, or none below it: nothing was begun.
            Err(error) if error.code == Code::DiskNotFound => Ok(()),
            Err(error) => Err(error),
            Ok(Begun::Nothing) => Ok(()),
            Ok(Begun::Written(below)) => self.written(&below).await.map(|_| ()),
            Ok(Begun::Intent(below)) => self.give_back(&below).await,
            Ok(Begun::Copy(files, target)) => {
                if let Some(target) = target {
                    self.merge(&target, &files).give_up().await?;
                }
                let half = DiskState::Broken;
                self.at.give(&files.below, half, |_| {}).await?;
                let disk = &self.params.disk;
                self.at.give(disk, DiskState::Ready, |_| {}).await
            }
            // It can't be undone any more, so it's done.
            Ok(Begun::Below(target, files, is_active)) => {
                self.merge(&target, &files).go_up(is_active).await?;
                self.written(&files.below).await.map(|_| ())
            }
        }
    }
}
