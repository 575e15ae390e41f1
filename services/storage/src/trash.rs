//! Files on their way out, and back.
//!
//! Every file that goes, goes by way of the trash, under a name that says which claim put it there:
//! that's how a later claim knows its own effect.

use crate::{
    blocking,
    pool::{Folder, Name, PoolError, Root, Tell},
    task::{Pace, relay::relayed, stage::Stage},
};
use virtbus_wire::{
    JobError, JobId,
    catalog::UseMode,
    task::{Target, storage::DeleteMode},
};
use virtbus_worker::perform::Stop;

/// A place where a file of something is, or was.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    /// The pool, or its archive.
    pub(crate) root: Root,
    /// The file's name there.
    pub(crate) file: Name,
}

/// Where a file was that is to be in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// There.
    InPlace,
    /// In the trash.
    InTrash,
    /// It's gone.
    Nowhere,
}

impl Home {
    /// The room it takes, in the trash too, in bytes.
    pub(crate) fn allocated(&self, of: &Target) -> Result<u64, PoolError> {
        let mut names = in_trash(&self.root, of)?;
        names.push(self.file.clone());
        names.iter().try_fold(0, |sum, name| {
            let facts = self.root.facts(name)?;
            Ok(sum + facts.map_or(0, |facts| facts.allocated))
        })
    }

    /// Whether this job moved it to the trash.
    pub(crate) fn is_left_by(&self, of: &Target, job: &JobId) -> Result<bool, PoolError> {
        let names = in_trash(&self.root, of)?;
        Ok(names.iter().any(|name| is_by(name, job)))
    }

    /// Whether there's nothing of it, in its place or in the trash.
    pub(crate) fn is_gone(&self, of: &Target) -> Result<bool, PoolError> {
        let is_here = self.root.facts(&self.file)?.is_some();
        Ok(!is_here && in_trash(&self.root, of)?.is_empty())
    }

    /// Brings the file back that this job had moved to the trash.
    pub(crate) fn put_back(&self, of: &Target, job: &JobId) -> Result<Found, PoolError> {
        if self.root.facts(&self.file)?.is_some() {
            return Ok(Found::InPlace);
        }
        let names = in_trash(&self.root, of)?;
        match names.iter().find(|name| is_by(name, job)) {
            Some(name) => {
                self.root.rename_new(name, &self.file)?;
                Ok(Found::InTrash)
            }
            None => Ok(Found::Nowhere),
        }
    }

    /// That no other program has it open, in the trash either.
    pub(crate) async fn idle(&self, of: &Target) -> Result<(), Stop> {
        let (home, of) = (self.clone(), of.clone());
        let looked: Result<(), JobError> = blocking::look(move || {
            let mut names = in_trash(&home.root, &of)?;
            names.push(home.file);
            let mut idle = names
                .iter()
                .map(|name| home.root.idle(name, UseMode::Exclusive));
            idle.try_for_each(|idle| idle.map_err(|error| used(error, &of)))
        })
        .await;
        Ok(looked?)
    }

    /// Moves the file to the trash, if it's there.
    pub(crate) async fn discard(
        &self,
        of: &Target,
        (job, claim): (&JobId, u64),
    ) -> Result<(), Stop> {
        let (home, trash) = (self.clone(), Name::trash(of, job, claim));
        let moved: Result<(), PoolError> = blocking::act(move || {
            if home.root.facts(&home.file)?.is_some() {
                home.root.rename_new(&home.file, &trash)?;
            }
            Ok(())
        })
        .await;
        Ok(moved?)
    }

    /// Removes what was moved to the trash, by this claim, an older one, or an older job.
    pub(crate) async fn remove(&self, of: &Target) -> Result<(), Stop> {
        let (root, of) = (self.root.clone(), of.clone());
        let removed: Result<(), PoolError> = blocking::act(move || empty(&root, &of)).await;
        Ok(removed?)
    }
}

/// Removes what was moved to the trash of all homes of something, as [`Home::remove`], unless it's
/// to stay there. What is overwritten before is this stage of the work; only a lost claim stops it.
pub(crate) async fn purge(
    homes: &[Home],
    of: &Target,
    mode: DeleteMode,
    stage: Stage,
    pace: &Pace<'_>,
) -> Result<(), Stop> {
    match mode {
        DeleteMode::Trash => return Ok(()),
        DeleteMode::Unlink => {}
        DeleteMode::Wipe => {
            let (homes, of) = (homes.to_vec(), of.clone());
            let pace = Pace {
                stop: pace.lost,
                ..*pace
            };
            relayed(&pace, stage, move |tell| wipe(&homes, &of, tell)).await?;
        }
    }
    for home in homes {
        home.remove(of).await?;
    }
    Ok(())
}

/// Overwrites what there is of something in the trash of all its homes.
fn wipe(homes: &[Home], of: &Target, tell: Tell<'_>) -> Result<(), PoolError> {
    let mut files = Vec::new();
    for home in homes {
        for name in in_trash(&home.root, of)? {
            let length = home.root.facts(&name)?.map_or(0, |facts| facts.length);
            files.push((&home.root, name, length));
        }
    }
    let all = files.iter().map(|(_, _, length)| length).sum();
    let mut before = 0;
    for (root, name, length) in files {
        root.wipe(&name, |passed, _| tell(before + passed, all))?;
        before += length;
    }
    Ok(())
}

/// What there is of something in the trash, whoever put it there.
pub(crate) fn in_trash(root: &Root, of: &Target) -> Result<Vec<Name>, PoolError> {
    let mut names = root.list(Folder::Trash)?;
    names.retain(|name| name.as_trash().is_some_and(|(target, _, _)| target == *of));
    Ok(names)
}

/// Removes what there is of something in the trash.
pub(crate) fn empty(root: &Root, of: &Target) -> Result<(), PoolError> {
    let names = in_trash(root, of)?;
    names
        .iter()
        .try_for_each(|name| root.unlink(name).map(|_| ()))
}

/// What a job is told of something that another program has open.
pub(crate) fn used(error: PoolError, of: &Target) -> JobError {
    let error = JobError::from(error);
    match of {
        Target::Disk(id) => error.with("disk", id.as_str()),
        Target::Media(id) => error.with("media", id.as_str()),
    }
}

fn is_by(name: &Name, job: &JobId) -> bool {
    name.as_trash().is_some_and(|(_, by, _)| by == *job)
}
