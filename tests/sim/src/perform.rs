//! The work: three kinds of effect with the fence of each, on a pool that counts.

use crate::{
    broker::stream::Ms,
    chance::{hash, mix},
    disk::{Disks, OsLock},
    net::Net,
};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Class, Code, JobError, Timestamp,
    protocol::lock::Mode,
    state::{Progress, WaitReason},
};
use virtbus_worker::{Assignment, Done, Perform, Run, Stop};

/// The worst that a task may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The work's own fence is left out: no look at the claim, no lock of the operating system.
    pub no_fence: bool,
}

/// A worker's tasks.
#[derive(Debug, Clone)]
pub struct Work {
    /// For the time.
    pub net: Arc<Net>,
    /// The pool.
    pub disks: Disks,
    /// What is wrong with it.
    pub faults: Faults,
}

/// What a task does to which disk.
enum Kind {
    Make(String),
    Change(String, u64),
    Remove(String),
    Nothing,
}

fn kind(job: &Assignment) -> Kind {
    let params = &job.record.params;
    let disk = params["disk"].as_str().unwrap_or_default().to_owned();
    match job.record.task.as_str() {
        "create_disk" => Kind::Make(disk),
        "resize" => Kind::Change(disk, params["size"].as_u64().unwrap_or(0)),
        "delete_disk" => Kind::Remove(disk),
        _ => Kind::Nothing,
    }
}

/// How a job is to behave, as its publisher wrote it into its labels.
fn label(job: &Assignment, name: &str) -> u64 {
    let text = job.record.labels.get(name);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn result() -> Done {
    Map::from_iter([("done".to_owned(), json!(true))])
}

impl Work {
    fn now(&self) -> Ms {
        self.net.now()
    }

    /// A little time, as any call to the system takes.
    async fn moment(&self, job: &Assignment, step: u64) {
        let fate = mix(hash(job.claim ^ step << 8, job.id.as_str().as_bytes()));
        let wait = Duration::from_millis(fate % 3);
        sleep(wait).await;
    }

    /// The operating system's lock. Where an earlier claim of the same job has it, frozen in the
    /// middle of its effect, nothing may be said of the job before that is over: it waits, and
    /// no try is used up.
    fn os_lock(&self, job: &str, disk: &str) -> Result<OsLock, Stop> {
        self.disks.lock(disk, job).map_err(|holder| {
            let busy = JobError::new(Code::DiskBusy, "another program has the disk");
            if holder != job {
                return busy.into();
            }
            let until = Timestamp::from_millis(self.now() + 5_000);
            Stop::Wait(WaitReason::Time {
                until,
                error: Some(busy),
            })
        })
    }

    async fn long(&self, job: &Assignment, run: &Run) -> Result<(), Stop> {
        let steps = 4;
        for step in 1..=steps {
            let part = Duration::from_millis(label(job, "ms") / steps);
            tokio::select! {
                biased;
                () = run.stop().asked() => return Err(Stop::Stopped),
                () = sleep(part) => {}
            }
            run.progress(Progress {
                percent: u8::try_from(100 * step / steps).ok().map(Into::into),
                ..Progress::default()
            });
        }
        if u64::from(job.record.attempt) < label(job, "fails") {
            return Err(JobError::new(Code::ToolFailed, "as it was told").into());
        }
        Ok(())
    }

    async fn act(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let (id, claim) = (job.id.as_str(), job.claim);
        let kind = kind(job);
        if let Kind::Make(_) = kind {
            self.disks.begin(id, claim);
        }
        self.long(job, run).await?;
        let disk = match &kind {
            Kind::Change(disk, _) | Kind::Remove(disk) => Some(disk),
            Kind::Make(_) | Kind::Nothing => None,
        };
        if let Some(disk) = disk.filter(|_| !self.faults.no_fence) {
            run.keep(self.os_lock(id, disk)?);
        }
        self.moment(job, 4).await;
        if !self.faults.no_fence {
            run.commit().await?;
        }
        self.moment(job, 5).await;
        let effect = Duration::from_millis(label(job, "effect"));
        tokio::select! {
            biased;
            // A tool that takes its time is killed.
            () = run.stop().lost() => return Err(Stop::Lost),
            () = sleep(effect) => {}
        }
        match kind {
            Kind::Make(disk) => {
                if self.faults.no_fence {
                    self.disks.begin(id, claim);
                }
                if !self.disks.rename(self.now(), id, claim, &disk) {
                    // The next claim has swept it: this one is lost.
                    return Err(Stop::Lost);
                }
            }
            Kind::Change(disk, size) => {
                self.disks.resize(self.now(), id, claim, &disk, size);
            }
            Kind::Remove(disk) => self.disks.trash(self.now(), id, claim, &disk),
            Kind::Nothing => {}
        }
        self.moment(job, 6).await;
        Ok(result())
    }
}

impl Perform for Work {
    fn class(&self) -> Class {
        Class::Storage
    }

    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        self.moment(job, 1).await;
        Ok(match kind(job) {
            Kind::Make(disk) | Kind::Change(disk, _) | Kind::Remove(disk) => {
                LockSet::from([(format!("disk.{disk}"), Mode::Exclusive)])
            }
            Kind::Nothing => LockSet::new(),
        })
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        self.moment(job, 2).await;
        self.disks.sweep(job.id.as_str(), job.claim);
        Ok(())
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, JobError> {
        self.moment(job, 3).await;
        let id = job.id.as_str();
        let is_done = match kind(job) {
            Kind::Make(disk) => self.disks.is_made_by(&disk, id),
            Kind::Change(disk, size) => self.disks.has_size(&disk, size),
            Kind::Remove(disk) => self.disks.is_trashed_by(&disk, id),
            Kind::Nothing => false,
        };
        Ok(is_done.then(result))
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let acted = self.act(job, run).await;
        if acted.is_err() {
            // Also when the claim is lost: its own file is nobody else's. Who is killed doesn't.
            self.disks.sweep(job.id.as_str(), job.claim + 1);
        }
        acted
    }

    async fn abandon(&self, job: &Assignment) -> Result<(), JobError> {
        self.moment(job, 7).await;
        self.disks.sweep(job.id.as_str(), job.claim + 1);
        Ok(())
    }
}

/// What a publisher says of a job.
#[must_use]
pub fn params(task: &str, disk: &str, size: u64) -> Value {
    match task {
        "resize" => json!({"disk": disk, "size": size}),
        "create_disk" => json!({"disk": disk, "size": 1_048_576}),
        "delete_disk" => json!({"disk": disk}),
        _ => json!({}),
    }
}
