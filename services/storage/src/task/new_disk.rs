//! A new disk's way into pool and catalogue: what `create_disk` and `convert` share.

use crate::{
    blocking, catalog,
    catalog::NewDisk,
    disks::{CatalogError, Disk},
    draft::Draft,
    gate::{Expected, Measured},
    pool::{Name, Pool, PoolError, Root},
    space::{Reservation, SpaceError},
    task::{Context, context, is_own, now},
};
use virtbus_wire::{
    Code, DiskId, JobError,
    catalog::{DiskRecord, DiskState},
};
use virtbus_worker::perform::Stop;

impl Context<'_> {
    /// That neither catalogue nor pool has the disk.
    pub(crate) async fn admit_new(
        &self,
        root: &Root,
        id: &DiskId,
        file: &Name,
    ) -> Result<(), Stop> {
        let there = self.store.disks.get(id).await?;
        catalog::admit_new(id, there.as_ref().map(|disk| &disk.record), &self.job.id)?;
        self.admit_file(root, id, file).await
    }

    /// That the pool has no file of a disk's name.
    pub(crate) async fn admit_file(
        &self,
        root: &Root,
        id: &DiskId,
        file: &Name,
    ) -> Result<(), Stop> {
        let (root, file) = (root.clone(), file.clone());
        let facts: Result<_, PoolError> = blocking::look(move || root.facts(&file)).await;
        if facts?.is_some() {
            let text = "a file of that name is in the pool already";
            return Err(JobError::new(Code::DiskExists, text)
                .with("disk", id.as_str())
                .into());
        }
        Ok(())
    }

    /// Sets room aside for a new file, and takes its temporary name.
    pub(crate) async fn draft(&self, root: &Root, id: &DiskId, bytes: u64) -> Result<Draft, Stop> {
        self.draft_in(self.pool, root, id, bytes).await
    }

    /// The same in another place than the pool: in another one, or in the archive.
    pub(crate) async fn draft_in(
        &self,
        pool: &Pool,
        root: &Root,
        id: &DiskId,
        bytes: u64,
    ) -> Result<Draft, Stop> {
        let part = Name::part(&self.job.id, self.job.claim, id);
        let room = self.room_in(pool, root, &part, bytes).await?;
        Ok(Draft::new(root.clone(), part, room))
    }

    /// Sets room aside for what will be written to a file, new or there already.
    pub(crate) async fn room(
        &self,
        root: &Root,
        file: &Name,
        bytes: u64,
    ) -> Result<Reservation, Stop> {
        self.room_in(self.pool, root, file, bytes).await
    }

    async fn room_in(
        &self,
        pool: &Pool,
        root: &Root,
        file: &Name,
        bytes: u64,
    ) -> Result<Reservation, Stop> {
        let (space, spare) = (self.store.space.clone(), pool.config.free_min.bytes());
        let (root, file) = (root.clone(), file.clone());
        let room: Result<Reservation, SpaceError> =
            blocking::look(move || space.reserve(&root, &file, bytes, spare)).await;
        Ok(room?)
    }

    /// That a tool made what it should.
    pub(crate) async fn verify(
        &self,
        root: &Root,
        file: &Name,
        expected: Expected,
        size: u64,
    ) -> Result<Measured, Stop> {
        let measured = self.pass_file(root, file, expected).await?.measured();
        if measured.virtual_size != size {
            tracing::warn!(?measured, size, "a tool made something else");
            let text = "the result isn't what was asked for";
            return Err(JobError::new(Code::ToolFailed, text).into());
        }
        Ok(measured)
    }

    /// Writes the intent: the disk, and that it's on top of its backing.
    pub(crate) async fn intend_new(&self, id: &DiskId, disk: NewDisk) -> Result<Disk, Stop> {
        let disks = &self.store.disks;
        let mut record = catalog::new(disk, &self.job.record, now());
        let backing = record.backing.clone();
        let intent = match disks.get(id).await? {
            None => disks.create(id, record).await?,
            Some(there) => {
                catalog::admit_new(id, Some(&there.record), &self.job.id)?;
                record.epoch = there.record.epoch + 1;
                disks.update(&there, record).await?
            }
        };
        // After the intent, which names the backing: whoever takes it back finds the way.
        if let Some(backing) = backing {
            disks.add_child(&backing, id).await?;
        }
        Ok(intent)
    }

    /// Gives a new file its name. If the name was taken since the check, the intent goes at once:
    /// the file must not be thought this job's.
    pub(crate) async fn place(
        &self,
        draft: Option<&mut Draft>,
        intent: Option<&Disk>,
        file: &Name,
    ) -> Result<(), Stop> {
        let (Some(draft), Some(intent)) = (draft, intent) else {
            return Err(context::out_of_order());
        };
        let placed = draft.place(file).await;
        if let Err(PoolError::Taken { .. }) = &placed {
            self.withdraw(intent).await?;
        }
        Ok(placed?)
    }

    /// Writes the result on top of the intent.
    pub(crate) async fn publish_new(
        &self,
        intent: &Disk,
        measured: Measured,
    ) -> Result<DiskRecord, Stop> {
        let made = |record: &DiskRecord| catalog::made(record, measured, now());
        let finished = self.store.disks.finish(intent, made).await?;
        Ok(finished.ok_or(Stop::Lost)?.record)
    }

    /// What an earlier claim did. If its file has its name and is what the intent says, the
    /// catalogue is told.
    pub(crate) async fn recover_new(&self, id: &DiskId) -> Result<Option<DiskRecord>, Stop> {
        let Some(intent) = self.store.disks.get(id).await? else {
            return Ok(None);
        };
        if !is_own(intent.record.owner_job.as_ref(), self.job) {
            return Ok(None);
        }
        match intent.record.state {
            DiskState::Creating => {}
            DiskState::Deleted => return Ok(None),
            DiskState::Ready
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken => return Ok(Some(intent.record)),
        }
        let (root, file) = (self.root().await?, context::file_of(&intent));
        let (at, name) = (root.clone(), file.clone());
        let facts: Result<_, PoolError> = blocking::look(move || at.facts(&name)).await;
        if facts?.is_none() {
            return Ok(None);
        }
        let expected = self.expected(&intent).await?;
        let size = context::virtual_size(&intent.record)?;
        let measured = self.verify(&root, &file, expected, size).await?;
        if let Some(backing) = &intent.record.backing {
            self.store.disks.add_child(backing, id).await?;
        }
        self.publish_new(&intent, measured).await.map(Some)
    }

    /// Takes back an intent that had no effect, or whose effect nobody was told of.
    pub(crate) async fn abandon_new(&self, id: &DiskId) -> Result<(), Stop> {
        let Some(intent) = self.store.disks.get(id).await? else {
            return Ok(());
        };
        let is_own = is_own(intent.record.owner_job.as_ref(), self.job);
        if !is_own || intent.record.state != DiskState::Creating {
            return Ok(());
        }
        let (root, file) = (self.root().await?, context::file_of(&intent));
        let is_there = self.facts_of(&root, &file).await?.is_some();
        // Asked after both were looked at: what a later claim wrote and placed came after it.
        self.confirm().await?;
        if is_there {
            let aside = Name::trash(id, &self.job.id, self.job.claim);
            let moved: Result<(), PoolError> =
                blocking::act(move || root.rename_new(&file, &aside)).await;
            moved?;
        }
        self.withdraw(&intent).await
    }

    /// Removes the record of a disk that isn't made, and its place on its backing.
    pub(crate) async fn withdraw(&self, intent: &Disk) -> Result<(), Stop> {
        if let Some(backing) = &intent.record.backing {
            self.store.disks.drop_child(backing, &intent.id).await?;
        }
        let removed = self.store.disks.remove(intent).await;
        if let (Err(CatalogError::Conflict(_)), Some(backing)) = (&removed, &intent.record.backing)
        {
            // A later claim has it, and its place on the backing is that one's.
            let now = self.store.disks.get(&intent.id).await?;
            if now.is_some_and(|now| now.record.backing.as_ref() == Some(backing)) {
                self.store.disks.add_child(backing, &intent.id).await?;
            }
        }
        Ok(removed?)
    }
}
