//! The work: three kinds of effect with the fence of each, on a pool that counts, told to the
//! catalogue before and after.

use crate::{
    broker::stream::Ms,
    catalogue::{Catalogue, Outcome},
    chance::{hash, mix},
    disk::{Disks, OsLock},
    hosts::Host,
    kind::{Kind, kind},
    net::Net,
    transport::Connection,
};
use serde_json::{Map, json};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::time::sleep;
use virtbus_bus::{Bus, Entry, locks::LockSet};
use virtbus_wire::{
    Class, Code, JobError, JobState, Record,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
    state::Progress,
};
use virtbus_worker::{Assignment, Confirm, Done, Look, Perform, Run, Stop};

/// The worst that a task may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The work's own fence is left out: no look at the claim, no lock of the operating system.
    pub no_fence: bool,
    /// The catalogue isn't told what is about to happen, nor what did.
    pub no_intent: bool,
}

/// What all workers have in common.
#[derive(Debug, Clone)]
pub struct Shop {
    /// For the time.
    pub net: Arc<Net>,
    /// The pool.
    pub disks: Disks,
    /// What is wrong with the work.
    pub faults: Faults,
}

/// A worker's tasks.
#[derive(Debug, Clone)]
pub struct Work {
    shop: Shop,
    catalogue: Catalogue,
    host: Option<Host>,
    life: Arc<Connection>,
}

/// Where a job may kill its worker before its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadly {
    Locks = 1,
    Clean = 2,
    Recover = 3,
}

/// A job whose work has begun kills no later claims: it could never end.
const DEADLY_MAX: u64 = 7;

/// How a job is to behave, as its publisher wrote it into its labels.
pub(crate) fn label(job: &Record, name: &str) -> u64 {
    let text = job.labels.get(name);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn result() -> Done {
    Map::from_iter([("done".to_owned(), json!(true))])
}

fn is_own(record: &DiskRecord, job: &Assignment) -> bool {
    record.owner_job.as_ref() == Some(&job.id)
}

impl Work {
    /// The tasks of one process.
    #[must_use]
    pub fn new(shop: Shop, bus: &Bus, host: Option<Host>, life: Arc<Connection>) -> Self {
        Self {
            shop,
            catalogue: Catalogue::new(bus),
            host,
            life,
        }
    }

    fn now(&self) -> Ms {
        self.shop.net.now()
    }

    /// A little time, as any call to the system takes.
    async fn moment(&self, job: &Assignment, step: u64) {
        let fate = mix(hash(job.claim ^ step << 8, job.id.as_str().as_bytes()));
        let wait = Duration::from_millis(fate % 3);
        sleep(wait).await;
    }

    /// Kills the process if that's what the job does here, to so many claims.
    async fn survive(&self, job: &Assignment, here: Deadly) {
        let record = &job.record;
        let most = match record.attempt {
            0 => u64::MAX,
            _ => DEADLY_MAX,
        };
        // Before a claim nobody would count it.
        let is_claimed = !matches!(record.state, JobState::Queued | JobState::Waiting(_));
        let is_here = label(record, "deadly") == here as u64 && is_claimed;
        if is_here && job.claim <= label(record, "kills").min(most) {
            self.life.gate().kill();
            pending().await
        }
    }

    /// The operating system's lock, if the task needs one. Where an earlier claim of the same job
    /// has it, frozen in the middle of its effect, nothing may be said of the job before that is
    /// over.
    fn os_lock(&self, job: &Assignment, kind: &Kind) -> Result<Option<OsLock>, Stop> {
        let disk = kind.disk().filter(|_| kind.is_in_place());
        let Some(disk) = disk.filter(|_| !self.shop.faults.no_fence) else {
            return Ok(None);
        };
        let id = job.id.as_str();
        let locked = self.shop.disks.lock(disk, id);
        locked.map(Some).map_err(|holder| {
            let busy = JobError::new(Code::DiskBusy, "another program has the disk");
            match holder == id {
                true => Stop::Earlier(busy),
                false => busy.into(),
            }
        })
    }

    /// The disk's record, if the job may change the disk.
    async fn admitted(
        &self,
        job: &Assignment,
        kind: &Kind,
    ) -> Result<Option<Entry<DiskRecord>>, Stop> {
        let Some(disk) = kind.disk() else {
            return Ok(None);
        };
        let seen = self.catalogue.get(disk).await?;
        let refuse = |code| Err(JobError::new(code, "the catalogue says no").into());
        let Some(record) = seen.as_ref().map(|entry| &entry.value) else {
            return match kind {
                Kind::Make(_) => Ok(None),
                Kind::Change(..) | Kind::Remove(_) | Kind::Nothing => refuse(Code::DiskNotFound),
            };
        };
        match record.state {
            DiskState::Creating | DiskState::Changing if is_own(record, job) => Ok(seen),
            DiskState::Ready if kind.is_in_place() => Ok(seen),
            DiskState::Ready => refuse(Code::DiskExists),
            DiskState::Creating | DiskState::Changing => refuse(Code::DiskBusy),
            DiskState::Uploading | DiskState::Archiving | DiskState::Archived => {
                refuse(Code::DiskWrongState)
            }
            DiskState::Trashed | DiskState::Missing | DiskState::Broken | DiskState::Deleted => {
                refuse(Code::DiskNotFound)
            }
        }
    }

    async fn long(&self, job: &Assignment, run: &Run) -> Result<(), Stop> {
        let steps = 4;
        for step in 1..=steps {
            let part = Duration::from_millis(label(&job.record, "ms") / steps);
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
        if u64::from(job.record.attempt) < label(&job.record, "fails") {
            return Err(JobError::new(Code::ToolFailed, "as it was told").into());
        }
        Ok(())
    }

    async fn act(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let (id, kind) = (job.id.as_str(), kind(job));
        let seen = self.admitted(job, &kind).await?;
        if let Kind::Make(_) = kind {
            self.shop.disks.begin(id, job.claim);
        }
        self.long(job, run).await?;
        let lock = self.os_lock(job, &kind)?;
        self.moment(job, 4).await;
        let told = kind.disk().filter(|_| !self.shop.faults.no_intent);
        let intent = match told {
            Some(disk) => {
                let (seen, state) = (seen.as_ref(), kind.intent());
                Some(self.catalogue.intend(disk, seen, state, &job.id).await?)
            }
            None => None,
        };
        if !self.shop.faults.no_fence {
            run.commit().await?;
        }
        self.moment(job, 5).await;
        let effect = Duration::from_millis(label(&job.record, "effect"));
        tokio::select! {
            biased;
            // A tool that takes its time is killed.
            () = run.stop().lost() => return Err(Stop::Lost),
            () = sleep(effect) => {}
        }
        self.effect(job, &kind)?;
        self.moment(job, 6).await;
        if let (Some(disk), Some(intent)) = (kind.disk(), &intent)
            && !self.catalogue.finish(disk, intent, kind.outcome()).await?
        {
            return Err(Stop::Lost);
        }
        run.keep(lock);
        Ok(result())
    }

    fn effect(&self, job: &Assignment, kind: &Kind) -> Result<(), Stop> {
        let (disks, id, claim) = (&self.shop.disks, job.id.as_str(), job.claim);
        match kind {
            Kind::Make(disk) => {
                if self.shop.faults.no_fence {
                    disks.begin(id, claim);
                }
                if !disks.rename(self.now(), id, claim, disk) {
                    // The next claim has swept it: this one is lost.
                    return Err(Stop::Lost);
                }
            }
            Kind::Change(disk, size) => {
                disks.resize(self.now(), id, claim, disk, *size);
            }
            Kind::Remove(disk) => disks.trash(self.now(), id, claim, disk),
            Kind::Nothing => {}
        }
        Ok(())
    }

    /// An intent of this job, with the lock that its effect would need.
    async fn begun(
        &self,
        job: &Assignment,
        kind: &Kind,
    ) -> Result<Option<(Entry<DiskRecord>, Option<OsLock>)>, Stop> {
        let Some(disk) = kind.disk() else {
            return Ok(None);
        };
        let found = self.catalogue.get(disk).await?;
        let own = found.filter(|entry| is_own(&entry.value, job));
        let Some(own) = own.filter(|entry| entry.value.state == kind.intent()) else {
            return Ok(None);
        };
        let lock = self.os_lock(job, kind)?;
        // Whoever had the lock may have changed the record too.
        let now = self.catalogue.get(disk).await?;
        let is_same = now.is_some_and(|now| now.revision == own.revision);
        match is_same {
            true => Ok(Some((own, lock))),
            false => Err(JobError::internal("the record changes").into()),
        }
    }

    fn is_done(&self, job: &Assignment, kind: &Kind) -> bool {
        let (disks, id) = (&self.shop.disks, job.id.as_str());
        match kind {
            Kind::Make(disk) => disks.is_made_by(disk, id),
            Kind::Change(disk, size) => disks.size(disk) == Some(*size),
            Kind::Remove(disk) => disks.is_trashed_by(disk, id),
            Kind::Nothing => false,
        }
    }
}

impl Perform for Work {
    fn class(&self) -> Class {
        Class::Storage
    }

    async fn look(&self, job: &Record, deliveries: u64) -> Look {
        let host = self.host.as_ref();
        host.map_or(Look::Claim, |host| host.look(job, deliveries))
    }

    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        self.moment(job, 1).await;
        self.survive(job, Deadly::Locks).await;
        let kind = kind(job);
        let lock = kind.disk().map(|disk| format!("disk.{disk}"));
        Ok(lock
            .map(|lock| (lock, Mode::Exclusive))
            .into_iter()
            .collect())
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        self.moment(job, 2).await;
        self.survive(job, Deadly::Clean).await;
        self.shop.disks.sweep(job.id.as_str(), job.claim);
        Ok(())
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        self.moment(job, 3).await;
        self.survive(job, Deadly::Recover).await;
        let kind = kind(job);
        let Some(disk) = kind.disk() else {
            return Ok(None);
        };
        let Some((intent, _lock)) = self.begun(job, &kind).await? else {
            let found = self.catalogue.get(disk).await?.map(|entry| entry.value);
            let own = found.filter(|record| is_own(record, job));
            return Ok(own.filter(|own| kind.is_said_by(own)).map(|_| result()));
        };
        if !self.is_done(job, &kind) {
            return Ok(None);
        }
        match self.catalogue.finish(disk, &intent, kind.outcome()).await? {
            true => Ok(Some(result())),
            false => Err(Stop::Lost),
        }
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        let acted = self.act(job, run).await;
        if acted.is_err() {
            // Also when the claim is lost: its own file is nobody else's. Who is killed doesn't.
            self.shop.disks.sweep(job.id.as_str(), job.claim + 1);
        }
        acted
    }

    async fn abandon(&self, job: &Assignment, own: &dyn Confirm) -> Result<(), JobError> {
        self.moment(job, 7).await;
        self.shop.disks.sweep(job.id.as_str(), job.claim + 1);
        let kind = kind(job);
        let begun = match self.begun(job, &kind).await {
            Ok(begun) => begun,
            Err(Stop::Failed(error) | Stop::Earlier(error)) => return Err(error),
            Err(stop) => return Err(JobError::internal(format!("{stop:?}"))),
        };
        let (Some(disk), Some((intent, _lock))) = (kind.disk(), begun) else {
            return Ok(());
        };
        let confirmed = own.confirm().await;
        confirmed.map_err(|stop| JobError::internal(format!("{stop:?}")))?;
        let is_there = match kind {
            Kind::Remove(_) if self.is_done(job, &kind) => Outcome::Deleted,
            Kind::Make(_) | Kind::Change(..) | Kind::Remove(_) | Kind::Nothing => {
                let size = self.shop.disks.size(disk);
                size.map_or(Outcome::Nothing, Outcome::Ready)
            }
        };
        match self.catalogue.finish(disk, &intent, is_there).await? {
            true => Ok(()),
            false => Err(JobError::internal("another claim came between")),
        }
    }
}
