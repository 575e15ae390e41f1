//! `create_snapshot` with `overlay`: what the disk holds stays as it is, a new disk on top goes on.
//!
//! It's the making of an overlay and nothing else: what freezes the disk is that it has a child.
//! The one difference is that nobody may have the disk in use, as a snapshot of what is being
//! written would be none.

use crate::{
    catalog::Purpose,
    task::{
        Checked, Context, Pace, Steps, context, create_disk::CreateDisk, create_disk::Plan, done,
    },
};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    DiskId, JobError,
    protocol::lock::Mode,
    task::{
        image::DiskFormat,
        storage::{self as params, NewSnapshot, Preallocation},
    },
};
use virtbus_worker::perform::{Done, Stop};

pub(crate) struct Overlay<'a> {
    at: Context<'a>,
    disk: &'a DiskId,
    new: params::CreateDisk,
}

impl<'a> Overlay<'a> {
    /// The new disk `overlay` on top of `disk`.
    pub(crate) fn new(at: Context<'a>, disk: &'a DiskId, overlay: &DiskId) -> Self {
        let new = params::CreateDisk {
            disk: overlay.clone(),
            size: None,
            format: DiskFormat::Qcow2,
            backing: Some(disk.clone()),
            preallocation: Preallocation::Off,
            qcow2: None,
        };
        Self { at, disk, new }
    }

    fn making(&self) -> CreateDisk<'_> {
        CreateDisk {
            at: self.at,
            params: &self.new,
        }
    }

    fn result(&self) -> Result<Done, Stop> {
        done(&NewSnapshot::Overlay(self.new.disk.clone()))
    }
}

impl Steps for Overlay<'_> {
    type Plan = Plan;

    // Alone on the disk and the new one, shared on all below.
    async fn locks(&self) -> Result<LockSet, JobError> {
        let mut locks = self.making().locks().await?;
        locks.insert(context::lock_name(self.disk), Mode::Exclusive);
        Ok(locks)
    }

    async fn clean(&self) -> Result<(), Stop> {
        self.making().clean().await
    }

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let disk = self.at.admitted(self.disk, Purpose::Use).await?;
        self.at.admit_alone(&disk)?;
        self.making().check().await
    }

    async fn work(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        self.making().work(plan, pace).await
    }

    async fn intend(&self, plan: &mut Plan) -> Result<(), Stop> {
        self.making().intend(plan).await
    }

    async fn effect(&self, plan: &mut Plan, pace: &Pace<'_>) -> Result<(), Stop> {
        self.making().effect(plan, pace).await
    }

    async fn publish(&self, plan: &mut Plan) -> Result<Done, Stop> {
        self.making().publish(plan).await?;
        self.result()
    }

    async fn recover(&self) -> Result<Option<Done>, Stop> {
        let found = self.making().recover().await?;
        found.map(|_| self.result()).transpose()
    }

    async fn abandon(&self) -> Result<(), Stop> {
        self.making().abandon().await
    }
}
