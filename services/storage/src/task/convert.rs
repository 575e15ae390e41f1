//! `convert`: a copy of a disk in another format, all below it included.

use crate::{
    blocking,
    catalog::NewDisk,
    disks::Disk,
    draft::Draft,
    gate::{Expected, Known, Measured},
    pool::{Name, PoolError, Root},
    qemu_img::{Copy, Image, command::bytes_max},
    task::{Checked, Context, Pace, Steps, context, done, stage::Stage},
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    JobError,
    catalog::{DiskRecord, UseMode},
    protocol::lock::Mode,
    task::{
        image::{Compat, Compress, ImageFormat, Qcow2Options},
        storage as params,
    },
};
use virtbus_worker::perform::{Done, Stop};

/// The largest disk that the format can hold, in bytes; the others hold what a pool may.
const VPC_BYTES_MAX: u64 = 2040 << 30;

pub(crate) struct Convert<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::Convert,
}

pub(crate) struct Plan {
    root: Root,
    qcow2: Qcow2Options,
    /// The source and all below it.
    chain: Vec<Disk>,
    /// The source's virtual size, in bytes.
    size: u64,
    draft: Option<Draft>,
    made: Option<Measured>,
    intent: Option<Disk>,
}

impl Convert<'_> {
    /// The command, as data.
    async fn copy(&self, plan: &Plan, part: &Name, file_bytes_max: u64) -> Result<Copy, Stop> {
        let root = &plan.root;
        let cache = self.at.cache(root).await?;
        let source = self.at.pass(root, &plan.chain).await?;
        Ok(Copy {
            source,
            target: Image {
                path: root.path(part),
                format: self.params.format,
            },
            compress: self.params.compress,
            subformat: self.params.subformat,
            qcow2: plan.qcow2.clone(),
            cache,
            bandwidth: self.at.pool.config.bandwidth,
            bytes_max: file_bytes_max,
        })
    }

    /// A copy of the whole file by reference; none where it isn't to stay as it is, or the file
    /// system can't. (Where it can't, the tool is as fast as the kernel's copy: measured on ext4.)
    async fn cloned(&self, plan: &Plan) -> Result<Option<Draft>, Stop> {
        let (root, source) = (&plan.root, &plan.chain[0]);
        if [source.record.format, self.params.format] != [ImageFormat::Raw; 2] {
            return Ok(None);
        }
        self.at.pass(root, &plan.chain).await?;
        let draft = self.at.draft(root, &self.params.to, 0).await?;
        let (root, file, part) = (root.clone(), context::file_of(source), draft.part().clone());
        let cloned: Result<bool, PoolError> =
            blocking::act(move || root.clone_file(&file, &part)).await;
        Ok(cloned?.then_some(draft))
    }

    /// A copy by the tool, in room that was measured.
    async fn converted(&self, plan: &Plan, stage: Stage, pace: &Pace<'_>) -> Result<Draft, Stop> {
        let (root, tool) = (&plan.root, &self.at.store.tool);
        let source = self.at.pass(root, &plan.chain).await?;
        let measured = tool.measure(source, pace.stop).await;
        let measure = measured.map_err(context::tool)?;
        let draft = self
            .at
            .draft(root, &self.params.to, measure.required)
            .await?;
        let largest = bytes_max(measure.fully_allocated);
        let copy = self.copy(plan, draft.part(), largest).await?;
        let rise = |percent| stage.tell(pace, percent);
        let copied = tool.convert(copy, pace.stop, rise).await;
        copied.map_err(context::tool)?;
        draft.sync().await?;
        Ok(draft)
    }

    fn file(&self) -> Name {
        Name::disk(&self.params.to, self.params.format)
    }
}

fn result(record: &DiskRecord) -> Result<Done, Stop> {
    done(&params::Converted {
        virtual_size: record.virtual_size.unwrap_or_default(),
        actual_size: record.actual_size.unwrap_or_default(),
    })
}

impl Steps for Convert<'_> {
    type Plan = Plan;

    // Shared on the source and all below it, alone on the target.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = self.at.locks_below(&self.params.disk, Mode::Shared).await?;
        locks.insert(context::lock_name(&self.params.to), Mode::Exclusive);
        Ok(locks)
    }

    // Removes the temporary files of older claims.
    async fn clean(&self) -> Result<(), Stop> {
        self.at.clean(&self.params.to).await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let pool = self.at.admit_pool(true).await?;
        let root = self.at.root().await?;
        let chain = self.at.readable_chain(&self.params.disk).await?;
        self.at
            .admit_new(&root, &self.params.to, &self.file())
            .await?;
        let qcow2 = match self.params.format {
            ImageFormat::Qcow2 => context::qcow2_options(self.params.qcow2.as_ref(), &pool.qcow2)?,
            ImageFormat::Raw
            | ImageFormat::Vmdk
            | ImageFormat::Vdi
            | ImageFormat::Vhdx
            | ImageFormat::Vpc => Qcow2Options::default(),
        };
        if self.params.compress == Compress::Zstd && qcow2.compat == Some(Compat::V2) {
            return Err(JobError::invalid_params("compress", "zstd needs compat 1.1").into());
        }
        let size = context::virtual_size(&chain[0].record)?;
        context::admit_size(size, &pool)?;
        if self.params.format == ImageFormat::Vpc && size > VPC_BYTES_MAX {
            let text = "a vpc can't hold a disk of this size";
            return Err(JobError::invalid_params("format", text)
                .with("size", size)
                .with("size_max", VPC_BYTES_MAX)
                .into());
        }
        Ok(Checked::Plan(Plan {
            root,
            qcow2,
            chain,
            size,
            draft: None,
            made: None,
            intent: None,
        }))
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        let chain = &plan.chain;
        self.at.idle(&plan.root, chain, UseMode::Shared).await?;
        let stage = Stage::only("convert", plan.size);
        stage.tell(pace, 0.0);
        let draft = match self.cloned(plan).await? {
            Some(draft) => draft,
            None => self.converted(plan, stage, pace).await?,
        };
        stage.tell(pace, 100.0);
        let expected = Expected {
            format: self.params.format,
            backing: None,
            known: Known::default(),
        };
        let made = self
            .at
            .verify(&plan.root, draft.part(), expected, plan.size);
        plan.made = Some(made.await?);
        plan.draft = Some(draft);
        Ok(())
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        let chain = &plan.chain;
        self.at.idle(&plan.root, chain, UseMode::Shared).await?;
        let disk = NewDisk {
            pool: self.at.pool.name.clone(),
            format: self.params.format,
            virtual_size: plan.size,
            backing: None,
        };
        plan.intent = Some(self.at.intend_new(&self.params.to, disk).await?);
        Ok(())
    }

    async fn effect(&self, plan: &mut Plan, _: &Pace<'_>) -> Result<(), Stop> {
        let (draft, intent) = (plan.draft.as_mut(), plan.intent.as_ref());
        self.at.place(draft, intent, &self.file()).await
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        match (&plan.intent, plan.made) {
            (Some(intent), Some(made)) => result(&self.at.publish_new(intent, made).await?),
            (_, _) => Err(context::out_of_order()),
        }
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let found = self.at.recover_new(&self.params.to).await?;
        found.map(|record| result(&record)).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        self.at.abandon_new(&self.params.to).await
    }
}
