//! `create_disk`: an empty disk, or an overlay of another.

use crate::{
    catalog::NewDisk,
    disks::Disk,
    draft::Draft,
    gate::{Expected, Known, Measured},
    pool::{Name, Root},
    qemu_img::{Beneath, Image, NewImage},
    task::{Checked, Context, Pace, Steps, context, done, stage::Stage},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    JobError,
    catalog::{DiskRecord, UseMode, admit_depth},
    protocol::lock::Mode,
    task::{
        image::{DiskFormat, Qcow2Options},
        storage::{self as params, Preallocation},
    },
};
use virtbus_worker::perform::{Done, Stop};

/// What a new file takes that isn't measured: a raw file's first block, in bytes.
const FILE_BYTES_MIN: u64 = 4096;

pub(crate) struct CreateDisk<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::CreateDisk,
}

pub(crate) struct Plan {
    pub(crate) root: Root,
    /// In bytes.
    size: u64,
    qcow2: Qcow2Options,
    /// The backing and all below it.
    pub(crate) chain: Vec<Disk>,
    draft: Option<Draft>,
    made: Option<Measured>,
    intent: Option<Disk>,
}

impl CreateDisk<'_> {
    /// The command, as data.
    fn image(&self, plan: &Plan, backing: Beneath, part: &Name) -> NewImage {
        NewImage {
            image: Image {
                path: plan.root.path(part),
                format: self.params.format.into(),
            },
            size: plan.size,
            backing,
            preallocation: self.params.preallocation,
            qcow2: plan.qcow2.clone(),
        }
    }

    /// The room that the file will take at once, in bytes.
    async fn room(&self, size: u64, pace: &Pace<'_>) -> Result<u64, Stop> {
        let is_whole = match self.params.preallocation {
            Preallocation::Falloc | Preallocation::Full => true,
            Preallocation::Off | Preallocation::Metadata => false,
        };
        match self.params.format {
            DiskFormat::Raw if is_whole => Ok(size),
            DiskFormat::Raw => Ok(FILE_BYTES_MIN),
            DiskFormat::Qcow2 => {
                let measured = self.at.store.tool.measure_empty(size, pace.stop).await;
                let measure = measured.map_err(context::tool)?;
                Ok(if is_whole {
                    measure.fully_allocated
                } else {
                    measure.required
                })
            }
        }
    }

    fn file(&self) -> Name {
        Name::disk(&self.params.disk, self.params.format.into())
    }

    fn result(&self, record: &DiskRecord) -> Result<Done, Stop> {
        done(&params::Created {
            virtual_size: record.virtual_size.unwrap_or_default(),
            actual_size: record.actual_size.unwrap_or_default(),
            format: self.params.format,
        })
    }
}

impl Steps for CreateDisk<'_> {
    type Plan = Plan;

    // Alone on the disk, shared on its backing and all below it.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = match &self.params.backing {
            Some(backing) => self.at.locks_below(backing, Mode::Shared).await?,
            None => LockSet::new(),
        };
        locks.insert(context::lock_name(&self.params.disk), Mode::Exclusive);
        Ok(locks)
    }

    // Removes the temporary files of older claims.
    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(&self.params.disk).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(true).await?;
        let root = self.at.root().await?;
        self.at
            .admit_new(&root, &self.params.disk, &self.file())
            .await?;
        let chain = match &self.params.backing {
            Some(backing) => self.at.readable_chain(backing).await?,
            None => Vec::new(),
        };
        admit_depth(&self.params.disk, chain.len() + 1)?;
        let size = match (self.params.size, chain.first()) {
            (Some(size), _) => size.bytes(),
            (None, Some(backing)) => context::virtual_size(&backing.record)?,
            (None, None) => return Err(JobError::invalid_params("size", "is required").into()),
        };
        context::admit_size(size, &pool)?;
        let qcow2 = match self.params.format {
            DiskFormat::Qcow2 => context::qcow2_options(self.params.qcow2.as_ref(), &pool.qcow2)?,
            DiskFormat::Raw => Qcow2Options::default(),
        };
        Ok(Checked::Plan(Plan {
            root,
            size,
            qcow2,
            chain,
            draft: None,
            made: None,
            intent: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let (at, chain) = (&self.at, &plan.chain);
        at.idle(&plan.root, chain, UseMode::Shared).await?;
        let room = self.room(plan.size, pace).await?;
        Stage::only("create", plan.size).tell(pace, 0.0);
        let draft = self.at.draft(&plan.root, &self.params.disk, room).await?;
        let backing = match plan.chain.as_slice() {
            [] => Beneath::Nothing,
            chain => Beneath::There(self.at.pass(&plan.root, chain).await?),
        };
        let image = self.image(plan, backing, draft.part());
        let expected = Expected {
            format: image.image.format,
            backing: plan.chain.first().map(context::backing_of),
            known: Known::default(),
        };
        let made = self.at.store.tool.create(image, pace.stop).await;
        made.map_err(context::tool)?;
        draft.sync().await?;
        let (root, part) = (&plan.root, draft.part());
        plan.made = Some(self.at.verify(root, part, expected, plan.size).await?);
        plan.draft = Some(draft);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let (at, chain) = (&self.at, &plan.chain);
        at.idle(&plan.root, chain, UseMode::Shared).await?;
        let disk = NewDisk {
            pool: self.at.pool.name.clone(),
            format: self.params.format.into(),
            virtual_size: plan.size,
            backing: self.params.backing.clone(),
        };
        plan.intent = Some(self.at.intend_new(&self.params.disk, disk).await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let (draft, intent) = (plan.draft.as_mut(), plan.intent.as_ref());
        self.at.place(draft, intent, &self.file()).await
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.intent, plan.made) {
            (Some(intent), Some(made)) => {
                let record = self.at.publish_new(intent, made).await?;
                self.result(&record)
            }
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let found = self.at.recover_new(&self.params.disk).await?;
        found.map(|record| self.result(&record)).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        self.at.abandon_new(&self.params.disk).await
    }
}
