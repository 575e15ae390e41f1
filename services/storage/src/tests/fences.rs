//! The lock on a disk's file, held by others.

use super::{
    claims::{abandon, drive},
    site::{Site, code, ran},
};
use crate::{
    fence::{Fence, FenceError},
    pool::Name,
    task::Step,
};
use serde_json::json;
use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use virtbus_testbed::until;
use virtbus_wire::{Code, DiskId, JobId, catalog::DiskState, state::Owner};
use virtbus_worker::{Perform as _, Stop, process::no_starts};

struct Holder {
    child: Child,
    path: PathBuf,
}

impl Holder {
    /// A process that holds the lock of `d1`, and a tool of it.
    async fn start(site: &Site) -> Self {
        let name = Name::lock(&"d1".parse::<DiskId>().unwrap());
        drop(site.root().open_or_make(&name).unwrap());
        let path = site.path("locks/disk.d1");
        // Else it would keep the locks of a tool that a test beside this one starts just then.
        let alone = no_starts().await;
        let child = Command::new("flock")
            .args(["--no-fork", path.to_str().unwrap(), "sleep", "600"])
            .stdin(Stdio::null())
            .spawn();
        drop(alone);
        let child = child.unwrap();
        let mut holder = Self { child, path };
        until("the lock of another process", async || {
            assert!(holder.child.try_wait().unwrap().is_none());
            let path = holder.path.to_str().unwrap();
            if ran("flock", &["-n", path, "true"]).success() {
                Err("free")
            } else {
                Ok(())
            }
        })
        .await;
        holder
    }

    /// Says in the lock's file who that is.
    fn is(&self, owner: &Owner, pid: u32) {
        self.is_of("j0", owner, pid);
    }

    fn is_of(&self, job: &str, owner: &Owner, pid: u32) {
        let text = json!({ "worker": owner.worker, "boot": owner.boot, "job": job, "claim": 1,
                           "pid": pid });
        std::fs::write(&self.path, text.to_string()).unwrap();
    }

    fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn take(site: &Site) -> Result<Fence, FenceError> {
    let (disk, job): (DiskId, JobId) = ("d1".parse().unwrap(), "j1".parse().unwrap());
    let leases = &site.store.leases;
    Fence::take(&site.root(), &disk, &site.owner, (&job, 1), leases).await
}

#[tokio::test]
async fn a_holder_whose_lease_is_out_is_killed() {
    let site = Site::start().await;
    let mut holder = Holder::start(&site).await;
    let dead = Owner {
        worker: "st-9".parse().unwrap(),
        boot: site.owner.boot,
    };
    holder.is(&dead, holder.child.id());
    let fence = take(&site).await.unwrap();
    // A process that is killed lets its files go before it's over.
    until("the end of the holder", async || {
        if holder.is_alive() {
            Err("it's alive")
        } else {
            Ok(())
        }
    })
    .await;
    let text = std::fs::read_to_string(site.path("locks/disk.d1")).unwrap();
    assert!(text.contains("st-1"), "{text}");
    drop(fence);
    assert!(take(&site).await.is_ok());
}

#[tokio::test]
async fn a_holder_that_lives_is_left_alone() {
    let site = Site::start().await;
    let mut holder = Holder::start(&site).await;
    let owner = site.live_worker("st-9").await;
    holder.is(&owner, holder.child.id());
    assert!(matches!(take(&site).await, Err(FenceError::Busy { .. })));
    assert!(holder.is_alive());
}

#[tokio::test]
async fn a_holder_that_nobody_knows_is_left_alone() {
    let site = Site::start().await;
    let mut holder = Holder::start(&site).await;
    assert!(matches!(take(&site).await, Err(FenceError::Busy { .. })));
    // The text is of a worker that's gone, the lock is of a process that isn't that one.
    let dead = Owner {
        worker: "st-9".parse().unwrap(),
        boot: site.owner.boot,
    };
    holder.is(&dead, std::process::id());
    assert!(matches!(take(&site).await, Err(FenceError::Busy { .. })));
    assert!(holder.is_alive());
}

#[tokio::test]
async fn an_earlier_claim_of_the_job_that_keeps_the_lock_is_waited_for() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let envelope = json!({ "id": "j1", "task": "resize",
                           "params": { "disk": "d1", "size": "9MiB" } });
    let claim = |number| site.claimed(envelope.clone(), number);
    site.die(&claim(1), Step::Intend).await;
    let holder = Holder::start(&site).await;
    let owner = site.live_worker("st-9").await;
    holder.is_of("j1", &owner, holder.child.id());
    let busy = |stop: Option<Stop>| match stop {
        Some(Stop::Earlier(error)) => assert_eq!(error.code, Code::DiskBusy),
        other => panic!("{other:?}"),
    };
    busy(site.store.recover(&claim(2)).await.err());
    let error = abandon(&site.store, &claim(2)).await.unwrap_err();
    assert_eq!(error.code, Code::DiskBusy);
    // Where it comes by its lock only after it was looked for, it's in the way of the work.
    site.change("d1", |disk| disk.state = DiskState::Ready)
        .await;
    let never = virtbus_worker::process::Stop::new();
    let met = drive(&site.store, &claim(1), &never, &|_| {}, &|_| Ok(())).await;
    busy(met.err());
    drop(holder);
    site.run(&claim(2)).await.unwrap();
    assert_eq!(site.record("d1").await.virtual_size, Some(9 << 20));
}

#[tokio::test]
async fn a_tool_keeps_its_dead_workers_lock() {
    let site = Site::start().await;
    let fence = take(&site).await.unwrap();
    let shared = fence.share().unwrap();
    drop(fence);
    assert!(matches!(take(&site).await, Err(FenceError::Busy { .. })));
    drop(shared);
    assert!(take(&site).await.is_ok());
}

#[tokio::test]
async fn a_retired_lock_keeps_nobody_out() {
    let site = Site::start().await;
    take(&site).await.unwrap().retire();
    assert_eq!(site.files("locks"), Vec::<String>::new());
    let fence = take(&site).await.unwrap();
    assert!(matches!(take(&site).await, Err(FenceError::Busy { .. })));
    drop(fence);
}

#[tokio::test]
async fn a_disk_whose_lock_is_held_is_busy_and_unchanged() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let _holder = Holder::start(&site).await;
    let before = site.disk("d1").await;
    let resize = json!({ "disk": "d1", "size": "9MiB" });
    assert_eq!(
        code(&site.refused("j1", "resize", resize).await),
        Code::DiskBusy
    );
    let delete = json!({ "disk": "d1" });
    assert_eq!(
        code(&site.refused("j2", "delete_disk", delete).await),
        Code::DiskBusy
    );
    assert_eq!(site.disk("d1").await, before);
}
